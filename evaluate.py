"""How good is a retriever: exact search and the metrics of trec_eval, in torch.

    python evaluate.py --model runs/dream --data classroom            # a folder that train.py wrote
    python evaluate.py --model SmolLM2-135M --data DIR,DIR --out result.json
    python evaluate.py --model bm25 --data classroom

Metrics are means over the judged queries, as trec_eval defines them: a query that the run misses counts 0, a document
without judgment is not relevant, gains are linear, equal scores (compared as float32) are ordered by document id,
descending. Needs nothing but the folder and the collection; knows nothing of training.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from bm25 import BM25
from data import BadInput, load_collections, write_json
from model import Retriever

METRICS = ("ndcg", "map", "recall", "precision", "mrr")


def search(queries, documents, k, chunk=16384):
    """Exact search by inner product: (N, D) and (M, D) -> (scores, indices), each (N, min(k, M)), best first.

    Documents are scored `chunk` at a time and merged into a running top k; the full score matrix never exists.
    """
    assert queries.shape[1] == documents.shape[1], "queries and documents must have the same width"
    k = min(k, len(documents))
    scores = queries.new_empty(len(queries), 0, dtype=torch.float32)
    indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(documents), chunk):
        block = queries.float() @ documents[start : start + chunk].float().T  # (N, chunk)
        best, at = block.topk(min(k, block.shape[1]), dim=1)
        tied = (block >= best[:, -1:]).sum(1) > at.shape[1]  # documents left out score like the last one taken
        at[tied] = block[tied].sort(dim=1, descending=True, stable=True).indices[:, : at.shape[1]]
        at = at.sort(dim=1).values  # corpus order, for the stable sort below
        scores = torch.cat([scores, block.gather(1, at)], 1)
        indices = torch.cat([indices, at + start], 1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # stable: equal scores keep corpus order
        scores, indices = scores[:, :k], indices.gather(1, order)[:, :k]
    return scores, indices


def rank(scored, depth):
    """{document: score} -> the best `depth` documents, trec_eval's way: float32 score, then id, both descending."""
    values = np.fromiter(scored.values(), np.float32, len(scored)).tolist()
    return [document for _, document in sorted(zip(values, scored), reverse=True)[:depth]]


def compute_metrics(run, qrels, ks=(1, 3, 5, 10, 100)):
    """{query: {document: score}} and {query: {document: relevance}} -> {"ndcg@10": ...}, means over qrels' queries.

    ndcg: linear gain over log2(rank + 1); map, recall: over all relevant documents; precision: over k; mrr: 0 below
    rank k. Relevant means relevance >= 1. A query of qrels without relevant documents counts 0.

    >>> compute_metrics({"q": {"a": 1.0, "b": 2.0}}, {"q": {"a": 1}}, ks=(1, 2))["mrr@2"]
    0.5
    """
    depth = max(ks)
    gains = torch.zeros(len(qrels), depth, dtype=torch.float64)  # (Q, depth): relevance at each rank of the run
    ideal = torch.zeros(len(qrels), depth, dtype=torch.float64)  # the same for the best possible run
    relevant = torch.zeros(len(qrels), dtype=torch.float64)  # (Q,): how many relevant documents there are
    for row, (query, judged) in enumerate(qrels.items()):
        found = [max(judged.get(d, 0), 0) for d in rank(run.get(query, {}), depth)]
        best = sorted((r for r in judged.values() if r > 0), reverse=True)
        gains[row, : len(found)] = torch.tensor(found, dtype=torch.float64)
        ideal[row, : len(best[:depth])] = torch.tensor(best[:depth], dtype=torch.float64)
        relevant[row] = len(best)
    ranks = torch.arange(1, depth + 1, dtype=torch.float64)
    hits = (gains > 0).double()
    precisions = hits.cumsum(1) / ranks  # (Q, depth): precision at each rank
    discount = 1 / torch.log2(ranks + 1)
    total = relevant.clamp(min=1)
    result = {}
    for k in ks:
        best = (ideal * discount)[:, :k].sum(1)
        values = {
            "ndcg": (gains * discount)[:, :k].sum(1) / torch.where(best > 0, best, 1),
            "map": (precisions * hits)[:, :k].sum(1) / total,
            "recall": hits[:, :k].sum(1) / total,
            "precision": hits[:, :k].sum(1) / k,
            "mrr": (hits / ranks)[:, :k].amax(1),
        }
        result.update({f"{name}@{k}": values[name].mean().item() for name in METRICS})
    return result


def retrieve(retriever, collection, k=100, progress=False):
    """Search all judged queries: {query: {document: score}} with the k best documents of each."""
    ids, texts = list(collection.corpus), list(collection.corpus.values())
    if isinstance(retriever, BM25):
        scores, indices = retriever.search(list(collection.queries.values()), texts, k)
    else:
        documents = retriever.encode(texts, kind="document", progress=progress)
        queries = retriever.encode(list(collection.queries.values()), kind="query", progress=progress)
        scores, indices = search(queries, documents, k)
    return {query: dict(zip((ids[i] for i in row), values))
            for query, row, values in zip(collection.queries, indices.tolist(), scores.tolist())}


def evaluate(retriever, collection, ks=(1, 3, 5, 10, 100), progress=False):
    """A Retriever (or BM25) on a Collection -> {"ndcg@10": ...}; see compute_metrics."""
    return compute_metrics(retrieve(retriever, collection, max(ks), progress), collection.qrels, ks)


def table(rows, metrics=("ndcg@10", "recall@10", "mrr@10")):
    """{label: {metric: value}} -> lines for people."""
    width = max(len(label) for label in rows)
    names = {"ndcg": "nDCG", "recall": "Recall", "mrr": "MRR", "map": "MAP", "precision": "P"}
    heads = [f"{names[m.partition('@')[0]]}@{m.partition('@')[2]}" for m in metrics]
    lines = [" " * width + "".join(f"{h:>12s}" for h in heads)]
    return "\n".join(lines + [f"{label:{width}s}" + "".join(f"{values[m]:12.3f}" for m in metrics)
                              for label, values in rows.items()])


def write_run(path, run, tag):
    """TREC run format: query, Q0, document, rank, score, tag."""
    with open(path, "w", encoding="utf-8") as file:
        for query, scored in run.items():
            for place, document in enumerate(rank(scored, len(scored)), 1):
                file.write(f"{query} Q0 {document} {place} {np.float32(scored[document]):.9g} {tag}\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a retriever folder, a backbone's name, or bm25")
    parser.add_argument("--data", required=True, help="folders in BEIR layout, separated by commas")
    parser.add_argument("--split", default="test", help="qrels/SPLIT.tsv (default: %(default)s)")
    parser.add_argument("--run", help="write the rankings here, in TREC run format (one collection)")
    parser.add_argument("--out", help="write the metrics here, as JSON")
    args = parser.parse_args(argv)
    for path in filter(None, (args.out, args.run)):
        if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
            raise BadInput(f"{path}: cannot be written; name a file in a folder that is there")
    if args.run and "," in args.data:
        raise BadInput("--run takes one collection")
    collections = load_collections(args.data, args.split)
    if not collections:
        raise BadInput("--data names no folder")
    retriever = BM25() if args.model == "bm25" else Retriever.load(args.model)
    results = {}
    for name, collection in collections.items():
        run = retrieve(retriever, collection, progress=True)
        results[name] = compute_metrics(run, collection.qrels)
        if args.run:
            write_run(args.run, run, Path(args.model).resolve().name.replace(" ", "_"))
    print(table(results))
    if args.out:
        write_json(args.out, {"model": args.model, "split": args.split, "metrics": results})


def command(main):
    """Run a script's main(): 2 and one line for bad input, 130 when interrupted."""
    try:
        main()
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    command(main)
