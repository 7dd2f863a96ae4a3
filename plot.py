"""Pictures of what a run has written: curves, the heads, one question's weights, metrics beside baselines.

    python plot.py run runs/dream                                            # all four, into the run's own folder
    python plot.py curves results/dream-*.json --out curves.png              # a result.json each, or the folder that has it
    python plot.py heads runs/dream --out heads.png
    python plot.py weights runs/dream --data classroom --question Greenland --out weights.png
    python plot.py bars results/dream-*.json scifact.json --out bars.png     # also what evaluate.py --out wrote

Needs matplotlib, which nothing else does. A function that draws returns the Figure; save() writes it. Files that differ in
their seed alone are one name: runs/dream-0 and runs/dream-1 are two seeds of `dream`. Left out: smoothing; a curve shows
every step as it was.
"""
import argparse
import functools
import json
import statistics
import textwrap
from pathlib import Path

import torch

from data import (BadInput, Example, command, find_file, find_qrels, load_collection, load_corpus, load_examples, make_pools,
                  read_jsonl, replacing)
from model import Retriever

WIDTH, DPI = 8.2, 200  # inches, pixels per inch: sharp on dense screens, and the text is still readable at half the size
BLUE, RED, GREY, PALE, GRID = "#0072b2", "#c8500a", "#6b6b6b", "#bdbdbd", "#e6e6e6"
COLOURS = (BLUE, "#d55e00", "#009e73", "#a8508c", "#8a6d00", "#444444")  # told apart by the colour-blind too
DASHES = ("-", "--", "-.", ":")
LOOK = {"font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": GREY, "axes.axisbelow": True, "grid.color": GRID, "legend.frameon": False, "figure.dpi": DPI}
FORMATS = (".png", ".svg", ".pdf")
LOSSES = {"dream": "NLL of the answer, eq (5)", "infonce": "cross-entropy on the source", "replug": "KL divergence",
          "emdr": "NLL, marginal over documents"}
MOST = 20  # documents in the picture of weights


# -------------------------------------------------------------------------------------------------- figures and files


def library():
    """matplotlib, without a screen. Raises BadInput where it is not installed."""
    try:
        import matplotlib.figure
    except ImportError:
        raise BadInput("pictures need matplotlib: pip install matplotlib") from None
    return matplotlib


def drawing(function):
    """Draw in one look, on white, whatever the reader's own settings of matplotlib are."""
    @functools.wraps(function)
    def draw(*args, **kwargs):
        matplotlib = library()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(LOOK)
            return function(*args, **kwargs)
    return draw


def panels(count, columns, height, **more):
    """A Figure and `count` axes in rows of `columns`; height: inches of a row."""
    rows = -(-count // columns)
    figure = library().figure.Figure(figsize=(WIDTH, rows * height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False, **more).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def check_picture(path):
    """Raise BadInput unless pictures can be drawn, and the name `path` says as what."""
    library()
    if Path(path).suffix.lower() not in FORMATS:
        raise BadInput(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")


def save(figure, path):
    """Write a Figure as the ending of its name says, whole or not at all. Raises BadInput."""
    check_picture(path)
    with replacing(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower(), facecolor="white")


def read_object(path, *fields):
    """A JSON file -> its object, which has one of `fields` at least. Raises BadInput."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict) or not data.keys() & set(fields):
        raise BadInput(f"{path}: not what train.py or evaluate.py writes; it has no {' or '.join(map(repr, fields))}")
    return data


def read_results(paths):
    """Files of train.py and evaluate.py, or folders with result.json -> {name: [result]}, the seeds of a name together."""
    groups = {}
    for path in map(Path, paths):
        path = path / "result.json" if path.is_dir() else path
        result = read_object(path, "curve", "metrics")
        own = result.get("config", {})
        name = path.resolve().parent.name if path.name == "result.json" else path.stem
        name = name.removesuffix(f"-{own.get('seed')}")
        for other in (r.get("config", {}) for r in groups.get(name, [])):
            if own.get("seed") == other.get("seed") or any(own[k] != other[k] for k in own.keys() & other.keys() - {"seed", "out"}):
                raise BadInput(f"{path}: another run is called {name!r} too, but has the same seed or other options; rename one")
        groups.setdefault(name, []).append(result)
    return groups


# ------------------------------------------------------------------------------------------------------------ curves


def plot_mean(ax, results, field, **look):
    """A run is a line; several are thin lines and their mean, over the steps that all of them made."""
    lines = [[record[field] for record in result["curve"]] for result in results]
    for line in lines if len(lines) > 1 else []:
        ax.plot(range(1, len(line) + 1), line, color=look["color"], linewidth=0.8, alpha=0.4)
    mean = [statistics.fmean(values) for values in zip(*lines)]
    ax.plot(range(1, len(mean) + 1), mean, linewidth=2, **look)


@drawing
def curves(groups):
    """{name: [result]} -> weight on the source and accuracy, comparable among all, and each objective's own loss apart."""
    groups = {name: results for name, results in groups.items() if "curve" in results[0]}
    if not groups:
        raise BadInput("there is no curve: give result.json files of train.py")
    objectives = list(dict.fromkeys(results[0]["config"]["objective"] for results in groups.values()))
    names = ["weight on the source document", "accuracy: source has the highest weight", *(f"loss of {o}: {LOSSES[o]}" for o in objectives)]
    columns = 3 if len(names) in (3, 5, 6) else 2
    figure, axes = panels(len(names), columns, 2.9)
    chances = set()
    for place, (name, results) in enumerate(groups.items()):
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
                "label": name + (f" (mean of {len(results)} seeds)" if len(results) > 1 else "")}
        config = results[0]["config"]
        for field, ax in (("source_weight", axes[0]), ("accuracy", axes[1]), ("loss", axes[2 + objectives.index(config["objective"])])):
            plot_mean(ax, results, field, **look)
        chances.add(config["pool"] * (results[0].get("processes", 1) if config.get("gather") else 1))
    for ax in axes[:2]:
        ax.set_ylim(0, 1.02)
        for pool in sorted(chances):
            ax.axhline(1 / pool, color=GREY, linestyle=":", linewidth=1.4, label=f"by chance: 1/{pool}")
    for ax, name in zip(axes, names):
        ax.set_title(textwrap.fill(name, 30 if columns == 3 else 50))
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


# ------------------------------------------------------------------------------------------------------------- heads


def read_heads(run):
    """RUN/heads.json -> (scores (layers, heads), [(layer, head)] that are injected). Raises BadInput."""
    path = Path(run) / "heads.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; train.py --objective dream writes it")
    data = read_object(path, "scores")
    try:
        scores, chosen = torch.tensor(data["scores"], dtype=torch.float64), [(layer, head) for layer, head in data["heads"]]
        L, H = scores.shape
        if not chosen or not all(layer in range(L) and head in range(H) for layer, head in chosen):
            raise ValueError("no heads, or heads without scores")
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: not what train.py writes ({error})") from None
    return scores, chosen


@drawing
def heads(scores, chosen):
    """Scores of eq (6), (layers, heads), as a map: layers from left to right, the chosen heads framed."""
    L, H = scores.shape
    figure, (ax,) = panels(1, 1, min(8.0, max(2.6, 1.2 + 0.8 * WIDTH * H / L)))
    image = ax.imshow(scores.T, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    for layer, head in chosen:
        ax.add_patch(library().patches.Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, edgecolor=RED, clip_on=False,
                                                 linewidth=2 if L <= 40 else 1.2))
    ax.set_xticks(range(0, L, 1 + L // 20))
    ax.set_yticks(range(0, H, 1 + H // 16))
    ax.set_xlabel("layer of the frozen LLM")
    ax.set_ylabel("head")
    ax.spines[:].set_visible(False)
    share = statistics.fmean(scores[at].item() for at in chosen)
    ax.set_title(f"framed: the {len(chosen)} injected heads, {share:.2f} of whose attention is on the source document;\n"
                 f"the mean of all {L * H} heads is {scores.mean():.2f}")
    figure.colorbar(image, ax=ax, pad=0.01, label="attention on the\nsource document, eq (6)")
    return figure


# ----------------------------------------------------------------------------------------------------------- weights


def find_question(folder, question):
    """A place in the list of questions ("0", "1", ...), or words of one -> (Example, all of them). Raises BadInput.

    The questions are a folder's judged ones, each with its best document, or else the training questions.
    """
    if find_qrels(folder, "test").is_file():
        collection = load_collection(folder)
        pairs = [(q, max(judged, key=judged.get)) for q, judged in collection.qrels.items()]
        examples = [Example(collection.queries[q], "", d) for q, d in pairs if collection.qrels[q][d] > 0 and d in collection.corpus]
    else:
        examples = load_examples(folder)
    if question.isdecimal() and int(question) < len(examples):
        return examples[int(question)], examples
    found = next((e for e in examples if question.lower() in e.query.lower()), None)
    if found is None:
        raise BadInput(f"--question {question}: {folder} has {len(examples)} questions, from 0 on, and none with these words")
    return found, examples


def document_weights(retriever, query, documents, temperature):
    """K texts -> the (K,) weights of eq (2) by the untrained backbone (adapters off), and by the trained retriever."""
    def weigh():
        scores = retriever.encode([query], kind="query") @ retriever.encode(documents, kind="document").T  # (1, K)
        return (scores[0] / temperature).softmax(0)

    with retriever.adapters_off():
        before = weigh()
    return before, weigh()


@drawing
def weights(titles, before, after, source, query, temperature):
    """titles: of K documents; before, after: (K,) weights; source: the index of the document that answers `query`."""
    K = len(titles)
    order = after.argsort(descending=True, stable=True).tolist()
    order = order[:MOST] if source in order[:MOST] else [*order[: MOST - 1], source]
    figure, (ax,) = panels(1, 1, 1.5 + 0.27 * len(order))
    place = torch.arange(len(order), dtype=torch.float64)
    ax.barh(place - 0.2, before[order], 0.38, color=PALE, label="before training")
    ax.barh(place + 0.2, after[order], 0.38, color=BLUE, label="after training")
    ax.axvline(1 / K, color=GREY, linestyle=":", linewidth=1.4, label=f"equal weights: 1/{K}")
    ax.set_yticks(place, [("source: " if k == source else "") + textwrap.shorten(titles[k], 40, placeholder=" ...") for k in order])
    ax.get_yticklabels()[order.index(source)].set(color=RED, fontweight="bold")
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"weight of the document, eq (2), tau = {temperature:g}" + (f"; {len(order)} of {K} documents" if len(order) < K else ""))
    ax.grid(True, axis="x")
    ax.legend(loc="lower right")
    figure.suptitle(textwrap.fill(query, 90), x=0.01, ha="left", fontsize=10.5)
    return figure


def weights_of(run, data="", question="0", retriever=None, device="auto"):
    """The picture of weights() for one question of the folder `data`, among candidates drawn as those of training were."""
    config = read_object(Path(run) / "result.json", "config")["config"]
    data = data or config["data"]
    example, examples = find_question(data, question)
    corpus = load_corpus(data)
    pools = make_pools(examples, list(corpus), config["pool"], 1, config["neighbours"], config["seed"])
    documents = next(pool.documents for pool in pools if example.document in pool.documents)
    titles = {row["_id"]: row.get("title") or row["text"] for _, row in read_jsonl(find_file(data, "corpus.jsonl"), "_id", "text")}
    temperature = config.get("final_temperature") or config["temperature"]
    measured = document_weights(retriever or Retriever.load(run, device), example.query, [corpus[d] for d in documents], temperature)
    return weights([titles[d] for d in documents], *measured, documents.index(example.document), example.query, temperature)


# -------------------------------------------------------------------------------------------------------------- bars


def read_bars(groups, metric="ndcg@10"):
    """{name: [result]} -> {label: {collection: [value of each seed]}}: BM25, the untrained backbones, then every name."""
    series, bases = {"BM25": {}}, {}
    for name, result in ((name, result) for name, results in groups.items() for result in results):
        if "metrics" in result:
            found = {"BM25" if result.get("model") == "bm25" else name: result["metrics"]}
        else:
            base = result["config"]["backbone"], result["config"].get("prompt")  # what the untrained retriever depends on
            untrained = bases.setdefault(base, f"{name}, untrained" if bases else "untrained")
            found = {"BM25": result["bm25"], untrained: result["before"], name: result["after"]}
        for label, measured in found.items():
            for collection, values in measured.items():
                own = series.setdefault(label, {}).setdefault(collection, [])
                if label == name or not own:  # a baseline is the same for every seed
                    own.append(values[metric])
    ordered = sorted(series, key=lambda label: (label != "BM25", not label.endswith("untrained")))
    return {label: series[label] for label in ordered if series[label]}


@drawing
def bars(series, metric="nDCG@10"):
    """{label: {collection: [value of each seed]}} -> a panel of horizontal bars per collection: means, seeds as dots."""
    collections = list(dict.fromkeys(c for measured in series.values() for c in measured))
    if not collections:
        raise BadInput("there is nothing to draw: no collection was measured")
    figure, axes = panels(len(collections), min(3, len(collections)), 0.9 + 0.34 * len(series), sharey=True)
    for ax, collection in zip(axes, collections):
        for place, (label, measured) in enumerate(series.items()):
            values = measured.get(collection, [])
            mean = statistics.fmean(values or [0])
            ax.barh(place, mean, 0.7, color=GREY if label == "BM25" else PALE if label.endswith("untrained") else BLUE)
            if len(values) > 1:
                ax.plot(values, [place] * len(values), "o", color="black", markersize=3.5)
            text = f"{mean:.3f}" if values else "not run"
            ax.annotate(text, (max([mean, *values]), place), (6, 0), textcoords="offset points", va="center")
        ax.set_title(collection)
        ax.set_yticks(range(len(series)), series)
        ax.set_ylim(len(series) - 0.45, -0.55)
        ax.set_xlim(0, 1 if len(collections) == 1 else 1.15)  # room for a figure beside a long bar
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        several = any(len(m.get(collection, [])) > 1 for m in series.values())
        ax.set_xlabel(metric + (" (dots: single seeds)" if several else ""))
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return figure


# --------------------------------------------------------------------------------------------- for the other commands


def plot_metrics(measured, path):
    """{label: {collection: {metric: value}}} -> the picture of bars, at `path`."""
    save(bars({label: {c: [values["ndcg@10"]] for c, values in own.items()} for label, own in measured.items()}), path)


def plot_run(out, retriever=None, data=""):
    """Every picture of a run, into its own folder -> their paths. data: the folder of questions, if not the run's own."""
    out, groups = Path(out), read_results([out])
    figures = {"curves": curves(groups), "weights": weights_of(out, data, retriever=retriever)}
    if (out / "heads.json").is_file():
        figures["heads"] = heads(*read_heads(out))
    if series := read_bars(groups):
        figures["bars"] = bars(series)
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")
    return [out / f"{name}.png" for name in figures]


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="plot.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    pictures = parser.add_subparsers(dest="picture", required=True)
    for name, what in {"run": "every picture of a run, into its folder", "curves": "training, objectives side by side",
                       "heads": "scores of the LLM's heads, the injected ones framed", "bars": "nDCG@10 beside the baselines",
                       "weights": "the documents' weights for one question, before and after training"}.items():
        own = pictures.add_parser(name, help=what, description=what, allow_abbrev=False)
        if name in ("curves", "bars"):
            own.add_argument("results", nargs="+", help="result.json files, or the folders that have them")
        else:
            own.add_argument("run", help="a folder that train.py wrote")
        if name in ("run", "weights"):
            own.add_argument("--data", default="", help="the folder with corpus and questions (default: the run's training folder)")
        if name == "weights":
            own.add_argument("--question", default="0", help="words of a question, or its place in the list (default: %(default)s)")
            own.add_argument("--device", default="auto", help="cpu, cuda or auto")
        if name != "run":
            own.add_argument("--out", default=f"{name}.png", help="the picture: .png, .svg or .pdf (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    check_picture(getattr(args, "out", ".png"))
    if args.picture == "run":
        print(*plot_run(args.run, data=args.data), sep="\n")
        return
    if args.picture == "heads":
        figure = heads(*read_heads(args.run))
    elif args.picture == "weights":
        figure = weights_of(args.run, args.data, args.question, device=args.device)
    else:
        groups = read_results(args.results)
        figure = curves(groups) if args.picture == "curves" else bars(read_bars(groups))
    save(figure, args.out)


if __name__ == "__main__":
    command(main)
