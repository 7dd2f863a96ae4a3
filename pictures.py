"""How pictures are drawn: curves, the map of heads, one question's weights, metrics as bars. What is drawn: plot.py.

Needs matplotlib, which nothing else does. What draws takes plain data and returns a Figure; save() writes it.
"""
import functools
import math
import statistics
import textwrap
from pathlib import Path

import torch

from files import BadInput, replacing

WIDTH, DPI = 8.2, 200  # inches, pixels per inch: sharp on dense screens, and the text is still readable at half the size
BLUE, RED, GREY, PALE, GRID = "#0072b2", "#c8500a", "#6b6b6b", "#bdbdbd", "#e6e6e6"
COLOURS = (BLUE, "#d55e00", "#009e73", "#a8508c", "#8a6d00", "#444444")  # told apart by the colour-blind too
DASHES = ("-", "--", "-.", ":")
LOOK = {"font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": GREY, "axes.axisbelow": True, "grid.color": GRID, "legend.frameon": False, "figure.dpi": DPI, "text.parse_math": False}
FORMATS = (".png", ".svg", ".pdf")
LOSSES = {"dream": "NLL of the answer, eq (5)", "infonce": "cross-entropy on the source", "replug": "KL divergence",
          "emdr": "NLL, marginal over documents"}
MOST = 20  # documents in the picture of weights


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
    rows = math.ceil(count / columns)
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


@drawing
def save(figure, path):
    """Write a Figure as the ending of its name says, whole or not at all. Raises BadInput."""
    check_picture(path)
    with replacing(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower(), facecolor="white")


def plot_mean(ax, results, field, faint, **look):
    """A run is a line; several are thin lines, of opacity `faint`, and their mean over the steps that all of them made."""
    lines = [[record[field] for record in result["curve"]] for result in results]
    for line in lines if len(lines) > 1 else []:
        ax.plot(range(1, len(line) + 1), line, color=look["color"], linewidth=0.8, alpha=faint, zorder=1.5)
    mean = [statistics.fmean(values) for values in zip(*lines)]
    ax.plot(range(1, len(mean) + 1), mean, linewidth=2, **look)


def candidates(result):
    """How many documents a question of a training run chose among; the results of older runs do not say."""
    config = result["config"]
    return result.get("candidates") or config["pool"] * (result.get("processes", 1) if config.get("gather") else 1)


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
                "label": name + (f" ({len(results)} seeds)" if len(results) > 1 else "")}
        config = results[0]["config"]
        for field, ax in (("source_weight", axes[0]), ("accuracy", axes[1]), ("loss", axes[2 + objectives.index(config["objective"])])):
            plot_mean(ax, results, field, 0.4 if field == "loss" or len(groups) < 4 else 0.2, **look)
        chances.add(candidates(results[0]))
    for ax in axes[:2]:
        ax.set_ylim(0, 1.02)
        for pool in sorted(chances):
            ax.axhline(1 / pool, color=GREY, linestyle=":", linewidth=1.4, label=f"by chance: 1/{pool}")
    for ax, name, unit in zip(axes, names, ["weight", "share of questions", *["loss"] * len(objectives)]):
        ax.set_title(textwrap.fill(name, 30 if columns == 3 else 50))
        ax.set_xlabel("step")
        ax.set_ylabel(unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(True)
    several = any(len(results) > 1 for results in groups.values())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  title="thick: mean of the seeds; thin: each seed" if several else None)
    return figure


@drawing
def heads(scores, chosen):
    """Scores of eq (6), (layers, heads), as a map: layers from left to right, the chosen heads framed."""
    layers, H = scores.shape
    figure, (ax,) = panels(1, 1, min(8.0, max(2.6, 1.2 + 0.8 * WIDTH * H / layers)))
    image = ax.imshow(scores.T.tolist(), cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    for layer, head in chosen:
        ax.add_patch(library().patches.Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, edgecolor=RED, clip_on=False,
                                                 linewidth=2 if layers <= 40 else 1.2))
    ax.set_xticks(range(0, layers, 1 + layers // 20))
    ax.set_yticks(range(0, H, 1 + H // 16))
    ax.set_xlabel("layer of the frozen LLM")
    ax.set_ylabel("head")
    ax.spines[:].set_visible(False)
    share = statistics.fmean(scores[at].item() for at in chosen)
    ax.set_title(f"framed: the {len(chosen)} injected heads, {share:.2f} of whose attention is on the source document;\n"
                 f"the mean of all {layers * H} heads is {scores.mean():.2f}")
    figure.colorbar(image, ax=ax, pad=0.01, label="attention on the\nsource document, eq (6)")
    return figure


@drawing
def weights(titles, before, after, source, query, temperature):
    """titles: of K documents; before, after: (K,) weights; source: the index of the document that answers `query`."""
    K = len(titles)
    order = after.argsort(descending=True, stable=True).tolist()
    order = order[:MOST] if source in order[:MOST] else [*order[: MOST - 1], source]
    figure, (ax,) = panels(1, 1, 1.5 + 0.27 * len(order))
    place = torch.arange(len(order), dtype=torch.float64)
    ax.barh((place - 0.2).tolist(), before[order].tolist(), 0.38, color=PALE, label="before training")
    ax.barh((place + 0.2).tolist(), after[order].tolist(), 0.38, color=BLUE, label="after training")
    ax.axvline(1 / K, color=GREY, linestyle=":", linewidth=1.4, label=f"equal weights: 1/{K}")
    ax.set_yticks(place.tolist(), [("source: " if k == source else "") + textwrap.shorten(titles[k], 40, placeholder=" ...") for k in order])
    ax.get_yticklabels()[order.index(source)].set(color=RED, fontweight="bold")
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"weight of the document, eq (2), tau = {temperature:g}" + (f"; {len(order)} of {K} documents" if len(order) < K else ""))
    ax.grid(True, axis="x")
    ax.legend(loc="lower right")
    figure.suptitle(textwrap.fill(query, 90), x=0.01, ha="left", fontsize=10.5)
    return figure


@drawing
def bars(series):
    """{label: {collection: [nDCG@10 of each seed]}} -> a panel of horizontal bars per collection: means, seeds as dots."""
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
        ax.set_xlabel("nDCG@10" + (" (dots: single seeds)" if several else ""))
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return figure
