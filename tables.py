"""The README's tables, made from results/*.json alone.

    python tables.py            # rewrites the parts of README.md and results/README.md between the marks

results/NAME-SEED.json is what train.py wrote, results/NAME-COLLECTION.json what evaluate.py wrote (science.py runs both); runs
that differ in the seed alone make one row: mean and sample standard deviation. Ratios come from bench.py's files.
"""
import json
import re
import statistics
from os.path import commonprefix
from pathlib import Path

import output
from science import ABLATIONS, CLASSROOM, COLLECTIONS, EXERCISES, GPU, LONG, OWN, SEEDS, TUNING, VARIANTS, WIKI

ROOT = Path(__file__).parent
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md")
MARK = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.S)
METRICS = ("ndcg@10", "recall@10", "mrr@10")


def runs(names):
    """{NAME: [result of each seed]} of results/NAME-SEED.json."""
    found = {name: sorted((ROOT / "results").glob(f"{name}-[0-9].json")) for name in names}
    return {name: [json.loads(path.read_text()) for path in paths] for name, paths in found.items()}


def bare(figures):
    """"0.550, -0.071" -> ".550, -.071"."""
    return re.sub(r"\b0\.", ".", figures)


def cell(values):
    """[0.5, 0.6] -> ".550 +- .071"; one value stands alone, none is "not run"."""
    if not values:
        return "not run"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return bare(f"{statistics.mean(values):.3f}{spread}")


def command_of(result):
    return f"`{re.sub(r' --(resume|(seed|out|dtype) [^ ]+)', '', result['command'])}`"


def row(label, scores, command):
    """scores: the metrics of each seed."""
    return f"| {label} | " + " | ".join(cell([s[m] for s in scores]) for m in METRICS) + f" | {len(scores)} | {command} |"


def main():
    """What `make train` prints at its end, and what it took."""
    result = read("make-train")
    found = {f"classroom {label}": result[when]["classroom"] for label, when in (("BM25", "bm25"), ("before", "before"), ("after", "after"))}
    lines = [f"`make train` ends after {sum(result['seconds'].values()) / 60:.1f} minutes ({result['hardware']}; the first call sets up `.venv` before, as "
             f"fast as torch comes), with {result['peak_mb'] / 1000:.1f} GB at its peak:", "", *("    " + line for line in output.table(found).splitlines()),
             "    saved in runs/dream; try: .venv/bin/python evaluate.py --model runs/dream --data classroom"]
    return "\n".join(lines) + "\n"


def table():
    """classroom/: every objective, and what stands beside them."""
    lines = ["| retriever | nDCG@10 | Recall@10 | MRR@10 | seeds | command |", "|---|---|---|---|---|---|"]
    for label, name in (("SmolLM2-135M, last token, untrained", "plain"), ("SmolLM2-135M, with the prompt, untrained", "untrained"),
                        ("BM25", "bm25"), ("all-MiniLM-L6-v2, a billion collected pairs", "minilm")):
        result = read(f"{name}-classroom")
        lines.append(row(label, [result["metrics"]["classroom"]] if result else [], command_of(result) if result else ""))
    for name, results in runs(CLASSROOM).items():
        lines.append(row(name, [next(iter(r["after"].values())) for r in results], command_of(results[0]) if results else ""))
    return "\n".join(lines) + "\n"


def on_collections(files):
    """nDCG@10 on each of COLLECTIONS, a list for each of results/FILES-beir.json; FILES may have [0-9] for a seed."""
    found = [json.loads(path.read_text())["metrics"] for path in sorted((ROOT / "results").glob(f"{files}-beir.json"))]
    return [[metrics[c]["ndcg@10"] for c in COLLECTIONS] for metrics in found]


def on_dev(results):
    """nDCG@10 on the development part, of each seed."""
    return [r["after"]["dev"]["ndcg@10"] for r in results]


def collections(trained, beside=()):
    """nDCG@10 on the development part and on collections that nothing was trained on: means over seeds, the last column's deviation too.

    trained: names of training runs, of which those not run are left out; beside: (name, label, cell on the development part) of
    what was not trained here."""
    lines = ["| retriever | seeds | dev | " + " | ".join(COLLECTIONS) + " | mean |", "|" + "---|" * (len(COLLECTIONS) + 4)]
    rows = [(label, dev, name) for name, label, dev in beside]
    rows += [(name, cell([statistics.mean(on_dev(results))]), f"{name}-[0-9]")
             for name, results in runs(trained).items() if results]
    for label, dev, files in rows:
        values = on_collections(files)
        cells = [cell([statistics.mean(column)]) for column in zip(*values)] or ["not run"] * len(COLLECTIONS)
        lines.append(f"| {label} | {len(values)} | {dev} | " + " | ".join(cells) + f" | {cell([statistics.mean(seed) for seed in values])} |")
    return "\n".join(lines) + "\n"


def beir():
    """What every retriever is compared by."""
    seen = read("qa-dream-0")  # a training run measures both on the development part
    dev = {when: cell([seen[when]["dev"]["ndcg@10"]] if seen else []) for when in ("before", "bm25")}
    return collections((*LONG, *WIKI), (("untrained", "untrained, with the prompt", dev["before"]), ("bm25", "BM25", dev["bm25"]), ("minilm", "all-MiniLM-L6-v2", "")))


def variants():
    """Other settings of the long runs."""
    return collections((*VARIANTS, *GPU))


def by_seed():
    """Dream with the settings for longer runs less each other run of three seeds, seed by seed: mean of COLLECTIONS, and on the development part."""
    values = {name: ([statistics.mean(seed) for seed in on_collections(f"{name}-[0-9]")], on_dev(results))
              for name, results in runs(("qa-dream-keep-temperature-.05", *LONG, *VARIANTS)).items()}
    ours, *others = (name for name, measured in values.items() if all(len(seeds) == len(SEEDS) for seeds in measured))
    lines = [f"| {ours} less | seeds 0, 1, 2 | mean | dev: seeds 0, 1, 2 | mean |", "|---|---|---|---|---|"]
    for name in others:
        cells = []
        for own, other in zip(values[ours], values[name]):
            less = [a - b for a, b in zip(own, other)]
            cells += [bare(", ".join(f"{x:+.3f}" for x in part)) for part in (less, [statistics.mean(less)])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ablations():
    """What changes when one thing changes: seed 0, nDCG@10 on classroom/."""
    lines = ["| changed | nDCG@10 | flags |", "|---|---|---|"]
    for label, name, flags in [("nothing", "dream", ""), ("random heads", "dream-random-heads", CLASSROOM["dream-random-heads"]),
                               ("the LLM learns too", "unfrozen-llm", f"exercises/{EXERCISES['unfrozen-llm']}"),
                               *((n, f"ablation-{n}", f) for n, f in ABLATIONS.items())]:
        result = read(f"{name}-0")
        lines.append(f"| {label} | {cell([result['after']['classroom']['ndcg@10']] if result else [])} | `{flags or 'none'}` |")
    return "\n".join(lines) + "\n"


def evidence():
    """What the losses ask for while they train: means over a run's first and last quarter of steps, and over its seeds; then the embeddings' spread."""
    lines = ["| objective | run | source weight: first quarter, last quarter | accuracy: first, last | agreement: first, last | spread at the end |", "|" + "---|" * 6]

    def quarters(results, key):
        parts = [[r["curve"][: len(r["curve"]) // 4], r["curve"][-(len(r["curve"]) // 4) :]] for r in results]
        return ", ".join(cell([statistics.mean(step[key] for both in parts for step in both[i])]) for i in (0, 1))

    for where, names in (("classroom", CLASSROOM), ("train/qa", (*LONG, *VARIANTS)), ("train/wiki", WIKI), ("train/qa", GPU)):
        for name, results in runs(names).items():
            if results:
                cells = " | ".join(quarters(results, key) for key in ("source_weight", "accuracy", "agreement"))
                spread = cell([statistics.mean(measured["spread"] for r in results for measured in r["after"].values())])
                lines.append(f"| {name} | {where}, {len(results[0]['curve'])} steps, seeds: {len(results)} | {cells} | {spread} |")
    return "\n".join(lines) + "\n"


def saturation():
    """How much weight on the source each loss asks for: saturation.py's means, the rest of the weight shared equally."""
    columns = {"dream": "dream", "dream-keep": "dream `--budget keep`", "replug": "replug", "emdr": "emdr", "infonce": "infonce"}
    lines = ["| weight on the source | " + " | ".join(columns.values()) + " | dream, the rest on one other document |", "|" + "---|" * (len(columns) + 2)]
    found = read("saturation")["losses"]
    for share, losses in found["equal"].items():
        cells = [f"{losses[name]:.2f}" for name in columns] + [f"{found['one'][share]['dream']:.2f}"]
        lines.append(f"| {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


JUDGES = {"SmolLM2-135M": "saturation-qa", "larger": "saturation-larger-llm"}  # saturation.py on train/qa


def saturation_qa():
    """Dream's loss on train/qa, with either LLM and budget: all rows, and those whose target is still there once documents are cut.

    What was not measured is left out."""
    found = {(llm, rows): read(name + part)["losses"]["equal"]
             for llm, name in JUDGES.items() for rows, part in (("all rows", ""), ("targets that are read", "-read"))}
    shares = list(found["SmolLM2-135M", "all rows"])
    lines = [f"| LLM | questions | `--budget` | weight on the source: {' | '.join(shares)} |", "|" + "---|" * (len(shares) + 3)]
    for (llm, rows), losses in found.items():
        for budget, name in (("documents", "dream"), ("keep", "dream-keep")) if losses else ():
            values = [losses[share][name] for share in shares]
            cells = [f"**{value:.3f}**" if value == min(values) else f"{value:.3f}" for value in values]
            lines.append(f"| {llm} | {rows} | {budget} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def attention():
    """Where the heads that dream injects look by themselves: eq (6), on the rows that predict the target."""
    columns = {"source": "the source", "others": "the pool's other documents", "outside": "question, target and prompt"}
    lines = ["| LLM | " + " | ".join(columns.values()) + " |", "|---|---|---|---|"]
    for llm, name in JUDGES.items():
        masses = read(name)["attention"]
        lines.append(f"| {llm} | " + " | ".join(f"{masses[where]:.2f}" for where in columns) + " |")
    return "\n".join(lines) + "\n"


def tuning():
    """Settings tried on a development part of the training questions."""
    lines = ["| changed | nDCG@10 before | after 60 steps | flags |", "|---|---|---|---|"]
    for name, flags in TUNING.items():
        result = read(f"tuning-{name}-0")
        before, after = ([result[when]["dev"]["ndcg@10"]] if result else [] for when in ("before", "after"))
        lines.append(f"| {name} | {cell(before)} | {cell(after)} | `{flags or 'none'}` |")
    return "\n".join(lines) + "\n"


def corpus():
    """Trained on rows made from a collection's own documents; its questions were never seen. nDCG@10."""
    columns = {"untrained": ("", "before"), "default settings": ("", "after"), "`--budget keep --temperature .05`": ("keep-", "after"), "BM25": ("", "bm25")}
    lines = ["| collection | " + " | ".join(columns) + " |", "|---|---|---|---|---|"]
    rows = {}
    for name in OWN:
        found = [read(f"own-{kind}{name}-0")[when][name] for kind, when in columns.values()]
        rows[name] = [[metrics["ndcg@10"]] if metrics else [] for metrics in found]
    columns_of_four = zip(*(rows[name] for name in OWN[:4]))
    rows["mean of the first four"] = [[statistics.mean(v for (v,) in column)] if all(column) else [] for column in columns_of_four]
    lines += [f"| {name} | " + " | ".join(map(cell, values)) + " |" for name, values in rows.items()]
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


def interoperation():
    """The same by other tools: a line for each test, with the largest difference of its cases (pytest --record)."""
    lines, tests = ["| what | checked against | cases | largest difference (allowed) | test |", "|---|---|---|---|---|"], {}
    for what, row in read("interoperation").items():
        tests.setdefault(row["test"], []).append((what, row))
    for test, found in tests.items():
        names, rows = zip(*found)
        name = names[0] if len(names) == 1 else commonprefix(names).rpartition(",")[0] + ":" + names[0].rpartition(":")[2]
        cells = (name, ", ".join(dict.fromkeys(row["against"] for row in rows)), str(sum(row["cases"] for row in rows)),
                 f"{max(row['difference'] for row in rows):.0e} ({max(row['bound'] for row in rows):.0e})", f"`pytest {test.partition('::')[0]}`")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("0e+00", "0") + "\n"


def checkup():
    """A real model of Qwen2's architecture with half a billion weights, from its .gguf file to ten training steps."""
    found = read("qwen2-0.5b")
    if not found:
        return "not run\n"
    model, nll, steps = found["model"], found["nll"], found["training"]["curve"]
    name, before = next(iter(found["training"]["before"].items()))
    rows = [("loaded as", f"{model['class']}, {model['layers']} layers, {model['parameters'] / 1e6:.0f}M weights, the vocabulary's twice"),
            ("questions answered from their document", f"{sum(a['right'] for a in found['answers'])} of {len(found['answers'])}"),
            ("heads that look at the source document", ", ".join(f"({layer},{head}) {cell([score])}" for layer, head, score in found["heads"][:6])),
            ("target NLL, query-focused heads: gold, uniform, wrong weights", ", ".join(f"{nll[f'query-focused, {w}']:.2f}" for w in ("gold", "uniform", "wrong"))),
            ("the same with random heads; the untouched LLM", ", ".join(f"{nll[f'random, {w}']:.2f}" for w in ("gold", "uniform", "wrong")) + f"; {nll['untouched']:.2f}"),
            ("embeddings, against transformers' own forward pass", f"{found['embeddings']['difference']:.0e}"),
            ("of the trained adapter, in peft", f"{found['trained embeddings']['difference']:.0e}" if "trained embeddings" in found else "not run"),
            ("losses and gradients, against full sequences", f"{found['injection']['losses']:.0e}, {found['injection']['gradients, relative']:.0e} of the largest"),
            (f"{len(steps)} training steps: weight on the source document", ", ".join(cell([s["source_weight"]]) for s in steps)),
            (f"nDCG@10 on {name}'s first judged documents, before and after",
             f"{cell([before['ndcg@10']])}, {cell([found['training']['after'][name]['ndcg@10']])}"),
            ("peak of resident memory", f"{found['peaks_mb']['training'] / 1000:.1f} GB")]
    return "\n".join([f"| `{found['command']}` | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]) + "\n"


def costs():
    """Ratios within one run each."""
    step, gpu, naive, peft, peers = (read(f"bench{name}") for name in ("", "-gpu", "-naive", "-peft", "-peers"))
    ratios = naive["ratios"]
    rows = [("a DREAM step, in InfoNCE steps: time; memory beyond the models", f"{step['ratios']['dream / infonce']:.2f}; "
             f"{step['ratios']['peak beyond the models']:.2f}", step),
            ("by the count of operations alone", f"{step['ratios']['by count']:.2f}", step),
            (f"the same on {gpu['hardware']}, 32 questions x 32 documents of at most 256 tokens, bfloat16: time; memory; by the count", f"{gpu['ratios']['dream / infonce']:.2f}; "
             f"{gpu['ratios']['peak beyond the models']:.2f}; {gpu['ratios']['by count']:.2f}", gpu),
            ("share of a DREAM step outside matrix products and fused attention", f"{step['outside_products']:.0%}", step),
            ("against the naive implementation: a step; the judge's part alone", f"{ratios['time of a step']:.0f} times as fast; "
             f"{ratios['time of the judge']:.0f} times", naive),
            ("memory against it: where it frees each question's graph before the next; where it keeps all, reckoned from one and two questions", f"{ratios['memory of the judge']:.0f} times less; "
             f"{ratios['memory, all graphs']:.0f} times", naive),
            ("encoder forward and backward, against peft's LoRA", f"{peft['ratios']['peft / ours']:.2f} times as fast", peft),
            ("encoding, against sentence-transformers", f"{peers['encoding']['ratio']:.2f} times as fast", peers),
            ("search, against faiss IndexFlatIP", f"{peers['search']['ratio']:.2f} times as fast, "
             f"{peers['search_peak_mb']} MB more memory", peers),
            ("metrics, against pytrec_eval", f"{peers['metrics']['ratio']:.2f} times as fast", peers)]
    return "\n".join(["| measured in one run | result | command |", "|---|---|---|",
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
    lines = ["| option | time, in plain steps | loss | first step, s |", "|---|---|---|---|"]
    lines += [f"| {name} | {ratio:.2f} | {figures['losses'][name]:.4f} | {figures['first_seconds'][name]:.1f} |"
              for name, ratio in figures["ratios"].items()]
    return "\n".join(lines) + "\n"


TABLES = {"main": main, "results": table, "beir": beir, "variants": variants, "by_seed": by_seed, "ablations": ablations, "evidence": evidence, "saturation": saturation,
          "saturation_qa": saturation_qa, "attention": attention, "tuning": tuning, "corpus": corpus, "costs": costs, "parts": parts, "growth": growth,
          "options": options, "interoperation": interoperation, "checkup": checkup}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[4], page.read_text()))
