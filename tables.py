"""The README's results table, made from results/*.json alone.

    python tables.py            # rewrites the part of README.md between the two `results` marks

A run's file is the result.json that train.py wrote, kept as results/NAME-SEED.json; runs that differ in the seed alone
make one row. Figures are nDCG@10, Recall@10 and MRR@10 on the first collection: mean and sample standard deviation.
"""
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent
MARK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.S)
METRICS = ("ndcg@10", "recall@10", "mrr@10")


def runs():
    """{NAME: [result]} of results/NAME-SEED.json, in order of name and seed."""
    groups = {}
    for path in sorted((ROOT / "results").glob("*-[0-9].json")):
        groups.setdefault(path.stem[:-2], []).append(json.loads(path.read_text()))
    return groups


def cell(values):
    """[0.5, 0.6] -> ".550 +- .071"; one value stands alone."""
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return re.sub(r"\b0\.", ".", f"{statistics.mean(values):.3f}{spread}")


def row(label, results, when, command=""):
    scores = [next(iter(r[when].values())) for r in results]
    return f"| {label} | " + " | ".join(cell([s[m] for s in scores]) for m in METRICS) + f" | {len(results)} | {command} |"


def table():
    groups = runs()
    first, bm25 = next(iter(groups.values()))[:1], json.loads((ROOT / "results" / "bm25.json").read_text())
    lines = ["| retriever | nDCG@10 | Recall@10 | MRR@10 | seeds | command |", "|---|---|---|---|---|---|",
             row("BM25", [{"bm25": bm25["metrics"]}], "bm25", "`python evaluate.py --model bm25 --data classroom --out results/bm25.json`"),
             row("SmolLM2-135M, untrained", first, "before", "`python evaluate.py --model SmolLM2-135M --data classroom`")]
    for name, results in groups.items():
        command = re.sub(r" --(seed|out) \S+", "", results[0]["command"])
        lines.append(row(name, results, "after", f"`{command}`"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(MARK.sub(lambda m: m[1] + table() + m[2], readme.read_text()))
