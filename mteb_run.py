"""mteb's own evaluation of a retriever: any of its retrieval tasks, by name.

    python mteb_run.py --model runs/dream --tasks AILACasedocs,HumanEvalRetrieval

Needs `pip install mteb` and, for mteb's own tasks, the model hub. `MTEBEncoder` is the whole bridge: mteb hands over
batches and says whether they are queries or documents; prompts, pooling and lengths stay the retriever's own.
"""
import argparse

import torch

from files import BadInput, brief, command
from model import Retriever


class MTEBEncoder:
    """A Retriever in mteb's EncoderProtocol."""

    def __init__(self, retriever):
        from mteb.models.model_meta import ModelMeta

        self.retriever = retriever
        self.mteb_model_meta = ModelMeta.create_empty({"name": "dream/retriever", "revision": "local"})

    def encode(self, inputs, *, prompt_type=None, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        return self.retriever.encode(texts, kind="query" if prompt_type == "query" else "document").numpy()

    def similarity(self, embeddings1, embeddings2):
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2):
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


def run(retriever, tasks):
    """A Retriever on mteb task objects -> {task's name: its main score}; mteb's own cache of results is not used."""
    import mteb

    results = mteb.evaluate(MTEBEncoder(retriever), tasks, cache=None)
    return {result.task_name: result.get_score() for result in results}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="as for evaluate.py, except bm25")
    parser.add_argument("--tasks", required=True, help="mteb's names, separated by commas")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    args = parser.parse_args(argv)
    try:
        import mteb
    except ImportError:
        raise BadInput("mteb is not installed: pip install mteb") from None
    try:
        tasks = [mteb.get_task(name) for name in args.tasks.split(",")]
    except KeyError as error:
        raise BadInput(f"--tasks: {brief(error, 160)}") from None
    other = next((t.metadata for t in tasks if t.metadata.type != "Retrieval"), None)
    if other:
        raise BadInput(f"--tasks: {other.name} is of the kind {other.type}, not Retrieval")
    retriever = Retriever.load(args.model, args.device, args.dtype)
    try:
        scores = run(retriever, tasks)
    except OSError as error:  # also what the hub's libraries raise without a connection
        raise BadInput(f"the task's data cannot be had ({brief(error, 160)})") from None
    for name, score in scores.items():
        print(f"{name:40s} {score:.3f}")


if __name__ == "__main__":
    command(main)
