"""Pictures of what a run has written: curves, the heads, one question's weights, metrics beside baselines.

    python plot.py run runs/dream                                            # all four, into the run's own folder
    python plot.py curves results/dream-*.json --out curves.png              # a result.json each, or the folder that has it
    python plot.py heads runs/dream --out heads.png
    python plot.py weights runs/dream --data classroom --question jewellers --out weights.png
    python plot.py bars results/dream-*.json scifact.json --out bars.png     # also what evaluate.py --out wrote

How they are drawn, with matplotlib: pictures.py. Files that differ in their seed alone are one name: runs/dream-0 and
runs/dream-1 are two seeds of `dream`, of whatever --dtype. Left out: smoothing; a curve shows every step as it was.
"""
import argparse
import json
from pathlib import Path

import torch

from bm25 import ordered
from data import Example, find_file, find_qrels, load_collection, load_corpus, load_examples, make_pools, read_jsonl
from checkpoints import NO_MATTER
from files import BadInput, command
from model import Retriever
from objectives import document_weights
from pictures import bars, candidates, check_picture, curves, heads, save, weights


PICTURES = ("curves.png", "heads.png", "weights.png", "bars.png")  # of a run, in its own folder


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
        for other in groups.get(name, []):
            if ("curve" in other) != ("curve" in result):
                raise BadInput(f"{path}: a training run is called {name!r}, and an evaluation too; rename one")
        for other in (r.get("config", {}) for r in groups.get(name, [])):
            if own.get("seed") == other.get("seed") or any(own[k] != other[k] for k in own.keys() & other.keys() - {"seed", "dtype", *NO_MATTER}):
                raise BadInput(f"{path}: another run is called {name!r} too, but has the same seed or other options; rename one")
        groups.setdefault(name, []).append(result)
    return groups


def read_heads(run):
    """RUN/heads.json -> (scores (layers, heads), [(layer, head)] that are injected). Raises BadInput."""
    path = Path(run) / "heads.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; train.py --objective dream writes it")
    data = read_object(path, "scores")
    try:
        scores, chosen = torch.tensor(data["scores"], dtype=torch.float64), [(layer, head) for layer, head in data["heads"]]
        layers, H = scores.shape
        if not chosen or not all(layer in range(layers) and head in range(H) for layer, head in chosen):
            raise ValueError("no heads, or heads without scores")
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: not what train.py writes ({error})") from None
    return scores, chosen


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


def before_and_after(retriever, query, documents, temperature):
    """A question and K texts -> the (K,) weights of eq (2) of the untrained backbone (adapters off), and of the trained retriever."""
    def weigh():
        scores = retriever.encode([query], kind="query") @ retriever.encode(documents, kind="document").T  # (1, K)
        return document_weights(scores, temperature)[0]

    with retriever.adapters_off():
        before = weigh()
    return before, weigh()


def weights_of(run, data="", question="0", retriever=None, device="auto"):
    """The picture of weights() for one question of the folder `data`, among candidates drawn as those of training were."""
    result = read_object(Path(run) / "result.json", "config")
    config = result["config"]
    data = data or config["data"]
    example, examples = find_question(data, question)
    corpus = load_corpus(data)
    pools = make_pools(examples, ordered(corpus, examples, config.get("order")), candidates(result), 1, config["neighbours"], config["seed"])
    documents = next(pool.documents for pool in pools if example.document in pool.documents)
    titles = {row["_id"]: row.get("title") or row["text"] for _, row in read_jsonl(find_file(data, "corpus.jsonl"), "_id", "text")}
    temperature = config.get("final_temperature") or config["temperature"]
    measured = before_and_after(retriever or Retriever.load(run, device), example.query, [corpus[d] for d in documents], temperature)
    return weights([titles[d] for d in documents], *measured, documents.index(example.document), example.query, temperature)


def read_bars(groups):
    """{name: [result]} -> {label: {collection: [nDCG@10 of each seed]}}: BM25, the untrained backbones, then every name."""
    series, bases = {"BM25": {}}, {}
    for name, result in ((name, result) for name, results in groups.items() for result in results):
        if "metrics" in result:
            found = {"BM25" if result.get("model") == "bm25" else name: result["metrics"]}
        else:
            base = tuple(result["config"].get(flag) or "" for flag in ("backbone", "prompt", "query_prompt"))  # what the untrained retriever depends on
            untrained = bases.setdefault(base, f"{name}, untrained" if bases else "untrained")
            found = {"BM25": result.get("bm25", {}), untrained: result["before"], name: result["after"]}
        for label, measured in found.items():
            for collection, values in measured.items():
                own = series.setdefault(label, {}).setdefault(collection, [])
                if label == name or not own:  # a baseline is the same for every seed
                    own.append(values["ndcg@10"])
    ordered = sorted(series, key=lambda label: (label != "BM25", not label.endswith("untrained")))
    return {label: series[label] for label in ordered if series[label]}


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
    check_picture(getattr(args, "out", PICTURES[0]))
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
