"""Is ranking quality the same in bfloat16 and in float32? A reduced classroom/: its first queries, and the documents judged for them.

    python tests/precision.py --queries 60                         # -> results/precision.json

Every query is measured in both; the mean of the differences is compared with its own standard error, and with that of nDCG itself.
"""
import argparse
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data import Collection, load_collection
from evaluate import compute_metrics, retrieve
from files import command, write_json
from model import Retriever
from record import about_run, commit

METRIC = "ndcg@10"


def reduced(folder, queries):
    """The first judged queries of a collection, and the documents that any of them asks for, of several families."""
    whole = load_collection(folder)
    qrels = dict(islice(whole.qrels.items(), queries))
    wanted = {document for judged in qrels.values() for document in judged}
    return Collection({d: text for d, text in whole.corpus.items() if d in wanted}, {q: whole.queries[q] for q in qrels}, qrels)


def compare(load, collection):
    """load(dtype) -> a retriever; nDCG@10 in both, their mean difference, and the standard errors of difference and nDCG."""
    each, seconds = {}, {}
    for dtype in ("float32", "bfloat16"):
        retriever, start = load(dtype), time.perf_counter()
        run, _ = retrieve(retriever, collection)
        seconds[dtype] = round(time.perf_counter() - start, 1)
        each[dtype] = [compute_metrics(run, {query: judged})[METRIC] for query, judged in collection.qrels.items()]
    differences = [half - full for full, half in zip(*each.values())]
    root = len(differences) ** 0.5
    return {**{dtype: statistics.mean(values) for dtype, values in each.items()}, "difference": statistics.mean(differences),
            "standard error of the difference": statistics.stdev(differences) / root,
            "standard error of nDCG": statistics.stdev(each["float32"]) / root,
            "queries that differ": sum(d != 0 for d in differences), "seconds": seconds}


def within_noise(found):
    """Do the two differ by less than twice what chance alone would make of the difference, or by less than a fifth of what it makes of nDCG?"""
    return abs(found["difference"]) <= max(2 * found["standard error of the difference"], found["standard error of nDCG"] / 5)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="precision.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--backbone", default="SmolLM2-135M")
    parser.add_argument("--data", default=str(ROOT / "classroom"))
    parser.add_argument("--out", default=str(ROOT / "results" / "precision.json"))
    args = parser.parse_args(argv)
    commit()  # now, not when all is measured
    collection = reduced(args.data, args.queries)
    found = compare(lambda dtype: Retriever.load(args.backbone, device="cpu", dtype=dtype), collection)
    write_json(args.out, {"queries": len(collection.queries), "documents": len(collection.corpus), **found, "within noise": within_noise(found),
                          **about_run("tests/precision.py", argv, "cpu")})
    print(", ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    command(main)
