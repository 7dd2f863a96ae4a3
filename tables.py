"""The README's tables, made from results/*.json alone.

    python tables.py            # rewrites the parts of README.md between the marks

A run's file is the result.json that train.py wrote, kept as results/NAME-SEED.json; runs that differ in the seed alone
make one row. Figures are nDCG@10, Recall@10 and MRR@10 on the first collection: mean and sample standard deviation.
"""
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent
MARK = re.compile(r"(<!-- (results|costs|parts|growth|options) -->\n)(.*?)(<!-- end of \2 -->)", re.S)
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
    first = next(iter(groups.values()))[:1]
    lines = ["| retriever | nDCG@10 | Recall@10 | MRR@10 | seeds | command |", "|---|---|---|---|---|---|",
             row("BM25", first, "bm25", "`python evaluate.py --model bm25 --data classroom`"),
             row("SmolLM2-135M, untrained", first, "before", "`python evaluate.py --model SmolLM2-135M --data classroom`")]
    for name, results in groups.items():
        command = re.sub(r" --(seed|out) \S+", "", results[0]["command"])
        lines.append(row(name, results, "after", f"`{command}`"))
    return "\n".join(lines) + "\n"


class NotRun(dict):
    """What stands in a table for a measurement that is not in results/."""

    def __missing__(self, key):
        return NotRun()

    def __format__(self, spec):
        return "not run"


def read(name):
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else NotRun()


def costs():
    """Ratios within one run each."""
    step, naive, peft, peers = (read(f"bench{name}") for name in ("", "-naive", "-peft", "-peers"))
    ratios = naive["ratios"]
    rows = [("a DREAM step, in InfoNCE steps: time; memory beyond the models", f"{step['ratios']['dream / infonce']:.2f}; "
             f"{step['ratios']['peak beyond the models']:.2f}", step),
            ("by the count of operations alone", f"{step['ratios']['by count']:.2f}", step),
            ("share of a DREAM step outside matrix products and fused attention", f"{step['outside_products']:.0%}", step),
            ("against the naive implementation: a step; the judge's part alone", f"{ratios['time of a step']:.0f} times as fast; "
             f"{ratios['time of the judge']:.0f} times", naive),
            ("its memory, one question's graph at a time; all graphs at once (slope of two)", f"{ratios['memory of the judge']:.0f} times less; "
             f"{ratios['memory, all graphs']:.0f} times", naive),
            ("encoder forward and backward, against peft's LoRA", f"{peft['ratios']['peft / ours']:.2f} times as fast", peft),
            ("encoding, against sentence-transformers", f"{peers['encoding']['ratio']:.2f} times as fast", peers),
            ("search, against faiss IndexFlatIP", f"{peers['search']['ratio']:.2f} times as fast, "
             f"{peers['search_peak_mb']} MB more memory", peers),
            ("metrics, against pytrec_eval", f"{peers['metrics']['ratio']:.2f} times as fast", peers)]
    return "\n".join(["| measured in one run | | command |", "|---|---|---|",
                      *(f"| {what} | {figure} | `{source['command']}` |" for what, figure, source in rows)]) + "\n"


def parts():
    """Where a step's time goes: operations counted, seconds measured."""
    step = read("bench")
    lines = [f"| part | GFLOP | seconds | GFLOPS ({step['product_rate'] / 1e9:.0f} for a plain product) |", "|---|---|---|---|"]
    lines += [f"| {name} | {flops / 1e9:.0f} | {step['part_seconds'][name]:.2f} | {flops / step['part_seconds'][name] / 1e9:.0f} |"
              for name, flops in step["flops"].items()]
    lines += [f"| memory beyond the models: {name} | | {megabytes:,} MB | |" for name, megabytes in step["extra_mb"].items()]
    return "\n".join(lines) + "\n"


def growth():
    """Time and memory of a step as one size grows; the exponent is that of the growth from the row above."""
    lines = ["| what grows | to | seconds | exponent | MB beyond the model | exponent |", "|---|---|---|---|---|---|"]
    for name, points in read("bench-growth")["growth"].items():
        for value, point in points.items():
            time, memory = ("" if x is None else f"{x:.2f}" for x in point["exponents"])
            lines.append(f"| {name.replace('_', ' ').replace('pool', 'documents')} | {value} | {point['median']:.2f} | {time} | "
                         f"{point['extra_mb']:,} | {memory} |")
    return "\n".join(lines) + "\n"


def options():
    """A step's time with an option, in plain steps, and what its loss says."""
    figures = read("bench-options")
    lines = ["| option | time of the plain step | loss | first step, s |", "|---|---|---|---|"]
    lines += [f"| {name} | {ratio:.2f} | {figures['losses'][name]:.4f} | {figures['first_seconds'][name]:.1f} |"
              for name, ratio in figures["ratios"].items()]
    return "\n".join(lines) + "\n"


TABLES = {"results": table, "costs": costs, "parts": parts, "growth": growth, "options": options}

if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[4], readme.read_text()))
