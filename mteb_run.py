"""mteb's own evaluation of a retriever: any of its retrieval tasks, by name.

    python mteb_run.py --model runs/dream --tasks AILACasedocs,HumanEvalRetrieval

Needs `pip install mteb` and, for mteb's own tasks, the model hub. `MTEBEncoder` is the whole bridge: mteb hands over
batches and says whether they are queries or documents; prompts, pooling and lengths stay the retriever's own.
"""
import argparse

import mteb
import torch
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from data import BadInput, command
from model import Retriever


class MTEBEncoder:
    """A Retriever in mteb's EncoderProtocol."""

    def __init__(self, retriever):
        self.retriever = retriever
        self.mteb_model_meta = ModelMeta.create_empty({"name": "dream/retriever", "revision": "local"})

    def encode(self, inputs, *, prompt_type=None, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        return self.retriever.encode(texts, kind="query" if prompt_type == PromptType.query else "document").numpy()

    def similarity(self, embeddings1, embeddings2):
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2):
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


def run(retriever, tasks):
    """A Retriever on mteb task objects -> {task's name: its main score}; mteb's own cache of results is not used."""
    results = mteb.evaluate(MTEBEncoder(retriever), tasks, cache=None)
    return {result.task_name: result.get_score() for result in results}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="as for evaluate.py, except bm25")
    parser.add_argument("--tasks", required=True, help="mteb's names, separated by commas")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    try:
        tasks = [mteb.get_task(name) for name in args.tasks.split(",")]
    except KeyError as error:
        raise BadInput(f"--tasks: {' '.join(str(error).split())[:160]}") from None
    for name, score in run(Retriever.load(args.model, args.device), tasks).items():
        print(f"{name:40s} {score:.3f}")


if __name__ == "__main__":
    command(main)
