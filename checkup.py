"""A backbone examined from end to end, before a long run is started on it: does everything hold that DREAM needs?

    python checkup.py --backbone Qwen2-0.5B                                    # or any other name that train.py takes
    python checkup.py --backbone FILE.gguf --out results/qwen2-0.5b.json --keep runs/checkup

It loads and answers questions from a document; eq (6) finds heads that look at the source document; with their weights on the
source, targets are likelier than with equal or wrong weights; embeddings are those of transformers' own forward pass, before and
after training; injection is that of the naive implementation; some training steps. Each part says its seconds and the peak of
resident memory so far. Every fault is a line, and exit code 1. Left out: how good a retriever it becomes (train.py, evaluate.py).
"""
import argparse
import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from backbones import find_backbone
from bench import judged
from data import QUESTION, Collection
from evaluate import evaluate
from files import BadInput, check_file, command, write_json
from inject import select_heads, target_nll
from measure import alone
from record import Clock, about_run, peak_mb
from train import Run, Training, parse, train

EMBEDDINGS, LOSSES, GRADIENTS = 1e-5, 1e-4, 1e-3  # the largest differences allowed; of gradients, relative to the largest
TEXTS = ("a", "Who patented the telephone?", "naïve café 水 \n\tx", "def f(x): return x ** 2")  # beside the collection's own


# ------------------------------------------------------------------------------------------------- the language model


def describe(llm):
    config = llm.config
    return {"class": type(llm).__name__, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
            "key_value_heads": config.num_key_value_heads, "width": config.hidden_size, "vocabulary": config.vocab_size,
            "parameters": sum(p.numel() for name, p in llm.named_parameters() if "lora_" not in name)}


def answers(run, examples, tokens=16):
    """Each question behind its own document alone -> what the LLM says, greedily, until the line ends."""
    told = []
    with run.judge() as llm:
        for example in examples:
            context, _ = run.prompts.context([run.corpus[example.document]])
            asked = torch.cat([context, torch.tensor([run.prompts.tokenize(QUESTION.format(query=example.query))])], 1).to(llm.device)
            ids = llm.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=tokens, do_sample=False,
                               pad_token_id=run.retriever.tokenizer.eos_token_id)
            said = run.retriever.tokenizer.decode(ids[0, asked.shape[1]:], skip_special_tokens=True).strip().partition("\n")[0]
            told.append({"document": run.corpus[example.document], "question": example.query, "target": example.target, "answer": said,
                         "right": example.target.lower() in said.lower()})
    return told


@torch.no_grad()
def losses(run, pools):
    """Mean target NLL over the pools' questions, with all weight on the source, equal weights, and on another document."""
    total, config = {}, run.retriever.llm.config
    none = torch.zeros(config.num_hidden_layers, config.num_attention_heads)  # of their scores: random heads need none
    heads = {"query-focused": run.heads, "random": select_heads(none, len(run.heads), "random", run.config.seed)}
    with run.judge() as llm:
        for pool in pools:
            read, K = run.read(llm, pool.documents, pool.examples), len(pool.documents)
            gold = torch.nn.functional.one_hot(pool.source, K).float().to(llm.device)  # (B, K)
            weights = {"gold": gold, "uniform": torch.full_like(gold, 1 / K), "wrong": gold.roll(1, dims=1)}
            found = {f"{kind}, {name}": target_nll(llm, *read, w, chosen) for kind, chosen in heads.items() for name, w in weights.items()}
            for name, nll in {"untouched": target_nll(llm, *read), **found}.items():
                total.setdefault(name, []).append(nll)
    return {name: torch.cat(values).mean().item() for name, values in total.items()}


# ------------------------------------------------------------------------------------------------------- references


def reference(backbone, batches, adapter=None):
    """Batches of token ids -> the last hidden state of each last token, unit norm: transformers (and peft) alone, rows padded and masked."""
    llm = AutoModelForCausalLM.from_pretrained(find_backbone(backbone), dtype=torch.float32).eval()
    if adapter:
        from peft import PeftModel

        llm = PeftModel.from_pretrained(llm, adapter).eval()
    found = []
    for rows in ([torch.tensor(row) for row in batch] for batch in batches):
        input_ids, mask = (torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (rows, [torch.ones_like(row) for row in rows]))
        with torch.no_grad():
            output = llm(input_ids=input_ids, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        last = output.hidden_states[-1][torch.arange(len(rows)), mask.sum(1) - 1]
        found += torch.nn.functional.normalize(last, dim=-1).tolist()
    return found


def embedding_difference(run, texts, adapter=None):
    """The largest difference of an embedding's component, and how far two texts are apart: the comparison is not blind."""
    found, rows = run.retriever.encode(texts, "document"), run.retriever.tokenize(texts, "document")
    expected = torch.tensor(alone(reference, run.config.backbone, [rows[:-1], rows[-1:]], adapter and str(adapter)))  # the last is long
    return {"difference": (found - expected).abs().max().item(), "between texts": torch.pdist(expected).median().item()}


def injection_difference(run, pool):
    """Losses of two of the pool's questions and gradients of their weights: prefix shared, against full sequences and eager attention."""
    pool = replace(pool, examples=pool.examples[:2])
    (ours, gradient), (naive, expected) = (judged(run, pool, how) for how in ("ours", "naive"))
    return {"losses": (ours - naive).abs().max().item(), "gradients, relative": ((gradient - expected).abs().max() / expected.abs().max()).item()}


# ----------------------------------------------------------------------------------------------------------- training


def small(collection, documents):
    """The first judged documents alone, one question each: enough to see a change, too easy for any table."""
    queries, judged_documents = {}, []
    for query, judged_here in collection.qrels.items():
        best = max(judged_here, key=judged_here.get)
        if len(judged_documents) < documents and judged_here[best] > 0 and best not in judged_documents:
            queries[query] = collection.queries[query]
            judged_documents.append(best)
    kept = set(judged_documents)
    return Collection({d: text for d, text in collection.corpus.items() if d in kept}, queries,
                      {q: {d: r for d, r in collection.qrels[q].items() if d in kept} for q in queries})


def measured(run, collection):
    return {name: value for name, value in evaluate(run.retriever, collection).items() if name in ("ndcg@10", "recall@10", "mrr@10")}


def trained(run, collections):
    """The run's steps -> their records, and metrics before and after."""
    before = {name: measured(run, collection) for name, collection in collections.items()}
    curve = train(run, training=Training(run)).curve
    return {"curve": curve, "before": before, "after": {name: measured(run, collection) for name, collection in collections.items()}}


def faults(figures):
    """What does not hold, a line each."""
    nll = figures["nll"]
    checks = [
        (figures["embeddings"]["difference"] <= EMBEDDINGS, "embeddings differ from those of transformers' own forward pass"),
        (figures["injection"]["losses"] <= LOSSES, "losses differ from the naive implementation's"),
        (figures["injection"]["gradients, relative"] <= GRADIENTS, "gradients differ from the naive implementation's"),
        (nll["query-focused, gold"] < min(nll["query-focused, uniform"], nll["query-focused, wrong"]),
         "weight on the source document does not make targets likelier: no head of this model reads documents for a question")]
    if "trained embeddings" in figures:
        checks.append((figures["trained embeddings"]["difference"] <= EMBEDDINGS, "the trained adapter has other embeddings in peft"))
    return [says for holds, says in checks if not holds]


# ---------------------------------------------------------------------------------------------------------- everything


def examine(args):
    """Every part in turn -> its figures."""
    clock, figures, peaks = Clock(), {}, {}

    def lap(name, value):
        figures[name] = value
        clock.lap(name)
        peaks[name] = peak_mb()
        print(f"{name} ({clock.seconds[name]:.0f} s, peak {peaks[name]:,} MB so far):", show(value), flush=True)

    run = Run(parse(["--backbone", args.backbone, "--data", args.data, "--steps", str(args.steps), "--pool", str(args.pool), "--questions",
                     str(args.pool), "--document-tokens", str(args.document_tokens), "--save-every", "0", "--device", "cpu", "--dtype", "float32"]))
    lap("model", {**describe(run.retriever.llm), "source": Path(find_backbone(args.backbone)).name})
    asked = random.Random(0).sample(run.examples, min(args.asked, len(run.examples)))
    lap("answers", answers(run, asked))
    scores = run.choose_heads()
    lap("heads", [[layer, head, scores[layer, head].item()] for layer, head in run.heads])
    stream = run.pools(run.config.seed + 2)
    lap("nll", losses(run, [next(stream) for _ in range(4)]))
    texts = [*TEXTS, *(e.query for e in asked[:4]), *(run.corpus[e.document] for e in asked[:4]), " ".join(run.corpus.values())]  # the last is cut
    lap("embeddings", embedding_difference(run, texts))
    lap("injection", injection_difference(run, next(stream)))
    collections = run.collections if args.documents else {}  # none without judgments
    lap("training", trained(run, {name: small(c, args.documents) for name, c in collections.items()}))
    if args.keep:
        run.retriever.save(args.keep)
        write_json(Path(args.keep) / "heads.json", {"heads": run.heads, "scores": scores.tolist()})
        lap("trained embeddings", embedding_difference(run, texts, args.keep))
    return {**figures, "scores": scores.tolist(), "seconds": clock.seconds, "peaks_mb": peaks}


def show(value):
    """A part's figures, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items() if k != "curve")
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{sum(row['right'] for row in value)} of {len(value)} right, such as {value[0]['question']!r}: {value[0]['answer']!r}"
    if isinstance(value, list):
        return " ".join(f"({layer},{head}) {score:.2f}" for layer, head, score in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="checkup.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbone", required=True, help="a short name (python model.py lists them), hub id, folder or .gguf")
    parser.add_argument("--data", default="classroom", help="a training folder; without qrels/ nothing is evaluated (default: %(default)s)")
    for name, value, what in (
            ("steps", 10, "training steps"), ("pool", 8, "documents and questions of a step"),
            ("document-tokens", 128, "documents are cut here, for both models"), ("asked", 8, "questions that the LLM answers itself"),
            ("documents", 20, "of a small evaluation before and after; 0: none")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default: %(default)s)")
    parser.add_argument("--keep", help="write the trained adapter and the heads here, and open the adapter with peft")
    parser.add_argument("--out", help="write the figures here, as JSON")
    args = parser.parse_args(argv)
    if args.out:
        check_file(args.out)
    if args.keep and not importlib.util.find_spec("peft"):
        raise BadInput("--keep opens the adapter with peft, which is not installed: pip install -r requirements-peers.txt")
    figures = examine(args)
    if args.out:
        write_json(args.out, {**about_run("checkup.py", argv, "cpu"), "threads": torch.get_num_threads(), **figures})
    wrong = faults(figures)
    for line in wrong:
        print(f"checkup.py: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    command(main)
