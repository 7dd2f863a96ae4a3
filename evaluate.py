"""How good is a retriever: exact search and the metrics of trec_eval.

    python evaluate.py --model runs/dream --data classroom            # a folder that train.py wrote, any encoder, or bm25
    python evaluate.py --model SmolLM2-135M --data DIR,DIR --out result.json --run run.txt
    python evaluate.py --model runs/dream --data classroom --ask "Which river is the longest?"
    torchrun --nproc-per-node 4 evaluate.py --model runs/dream --data DIR --cache embeddings

Metrics are means over the judged queries, as `trec_eval -c` has them: a query that the run misses counts 0, a document
without judgment is not relevant, gains are linear, equal scores (compared as float32) are ordered by document id,
descending. A corpus is encoded and searched a chunk at a time; neither all scores nor all embeddings are ever held.
"""
import argparse
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from bm25 import BM25
from cache import SMALL, Cache
from data import load_collections, load_corpus
from files import BadInput, check_file, command, write_json
from model import Retriever
from output import check_ids, table, write_run
from processes import end_processes, gather, processes, start_processes
from record import Clock, about_run
from search import merge, search

METRICS = ("ndcg", "map", "recall", "precision", "mrr", "success")
GEOMETRY = ("alignment", "uniformity", "spread")
ENCODE_CHUNK = 2048  # documents encoded, searched and cached together; also what processes share out among them
FIND_THEMSELVES = ("queries are documents of the corpus, with the same id, and find themselves; --drop-self leaves those out, as is usual for "
                   "ArguAna and Quora")
SAMPLE = 2048  # documents whose embeddings the geometry is measured on


def places(scored, documents):
    """The ranks, from 1, of some `documents` of {document: score}: 1 + how many score higher; of equal scores the greater id comes first.

    >>> places({"a": 1.0, "b": 2.0, "c": 1.0}, ["a", "c"])
    [3, 2]
    """
    values = np.fromiter(scored.values(), np.float32, len(scored))
    own, ascending = np.array([scored[d] for d in documents], np.float32), np.sort(values)
    less, not_more = np.searchsorted(ascending, own), np.searchsorted(ascending, own, side="right")  # how many score so
    result = (1 + len(values) - not_more).tolist()
    for i in np.flatnonzero(not_more - less > 1):  # others have the same score
        result[i] += sum(d > documents[i] for d, value in zip(scored, values) if value == own[i])
    return result


def compute_metrics(run, qrels, ks=(1, 3, 5, 10, 100)):
    """{query: {document: score}} and {query: {document: relevance}} -> {"ndcg@10": ...}, means over qrels' queries.

    ndcg: linear gain over log2(rank + 1); map, recall: over all relevant documents; precision: over k; mrr: 0 below
    rank k; success: a relevant one within k. Relevant means relevance >= 1. A query without relevant documents counts 0.

    >>> compute_metrics({"q": {"a": 1.0, "b": 2.0}}, {"q": {"a": 1}}, ks=(1, 2))["mrr@2"]
    0.5
    """
    depth = max(ks)
    found, best = [], []  # (the query's row, rank, relevance) of relevant documents: as the run ranks them, as the best possible run would
    for row, (query, judged) in enumerate(qrels.items()):
        grades = {d: r for d, r in judged.items() if r > 0}
        best += [(row, place, r) for place, r in enumerate(sorted(grades.values(), reverse=True), 1)]
        if here := [d for d in grades if d in run.get(query, ())]:
            found += [(row, place, grades[d]) for d, place in zip(here, places(run[query], here))]
    gains, ideal = np.zeros((2, len(qrels), depth))  # (Q, depth): relevance at each rank
    for matrix, entries in ((gains, found), (ideal, best)):
        at = np.array(entries, np.int64).reshape(-1, 3)
        at = at[at[:, 1] <= depth]
        matrix[at[:, 0], at[:, 1] - 1] = at[:, 2]
    relevant = np.bincount([row for row, _, _ in best], minlength=len(qrels))  # (Q,): how many relevant documents there are
    ranks = np.arange(1, depth + 1)
    hits = gains > 0
    precisions = hits.cumsum(1) / ranks  # (Q, depth): precision at each rank
    discount = 1 / np.log2(ranks + 1)
    total = relevant.clip(min=1)
    result = {}
    for k in ks:
        top = (ideal * discount)[:, :k].sum(1)
        values = {
            "ndcg": (gains * discount)[:, :k].sum(1) / np.where(top > 0, top, 1),
            "map": (precisions * hits)[:, :k].sum(1) / total,
            "recall": hits[:, :k].sum(1) / total,
            "precision": hits[:, :k].sum(1) / k,
            "mrr": (hits / ranks)[:, :k].max(1),
            "success": hits[:, :k].any(1),
        }
        result.update({f"{name}@{k}": float(values[name].mean()) for name in METRICS})
    return result


def geometry(query_emb, document_emb, pairs, sample):
    """How embeddings lie on the unit sphere (Wang & Isola 2020, arXiv 2005.10242): lower is better, except for spread.

    query_emb: (N, D); document_emb: (W, D); pairs: (P, 2) long, rows of a query and of a document relevant to it;
    sample: rows of documents. alignment: mean |q - d|^2 over pairs; uniformity: log mean exp(-2 |d - d'|^2) over
    different documents of the sample; spread: 1 - |their mean|^2, 0 where all vectors are one.
    """
    q, d = F.normalize(query_emb.float(), dim=-1), F.normalize(document_emb.float(), dim=-1)
    result = {"spread": 1 - d[sample].mean(0).square().sum().item()}
    if len(pairs):
        result["alignment"] = (q[pairs[:, 0]] - d[pairs[:, 1]]).square().sum(1).mean().item()
    if len(sample) > 1:
        result["uniformity"] = torch.pdist(d[sample]).square().mul(-2).exp().mean().log().item()
    return result


def encode_chunks(retriever, texts, kind, progress=False, share=True):
    """Yield (start, embeddings) of the chunks of `texts`: this process's share of them, or all."""
    place, size = processes() if share else (0, 1)
    starts = range(0, len(texts), ENCODE_CHUNK)[place::size]
    label = {"query": "queries", "document": "documents"}[kind]
    with tqdm(total=sum(len(texts[s : s + ENCODE_CHUNK]) for s in starts), desc=f"encoding {label}", unit="text",
              disable=not progress or processes()[0] > 0, leave=False) as bar:
        for start in starts:
            embeddings = retriever.encode(texts[start : start + ENCODE_CHUNK], kind=kind, bar=bar)
            if not embeddings.isfinite().all():
                raise BadInput(f"the embeddings of {label} {start + 1} to {start + len(embeddings)} are not all finite numbers; "
                               "try --dtype float32, or train with a smaller --lr")
            yield start, embeddings.to(getattr(retriever, "device", "cpu"))


def search_collection(retriever, collection, k, progress=False):
    """Encode and search a whole Collection -> (scores, indices), both (N, min(k, M)), and the embeddings' geometry."""
    texts, queries = list(collection.corpus.values()), list(collection.queries.values())
    row_of = {document: row for row, document in enumerate(collection.corpus)}
    pairs = [(n, row_of[d]) for n, query in enumerate(collection.queries)
             for d, relevance in collection.qrels[query].items() if relevance > 0 and d in row_of]
    pairs = torch.tensor(pairs[:: len(pairs) // 10_000 + 1], dtype=torch.long).view(-1, 2)  # 10,000 at most
    sample = torch.arange(0, len(texts), math.ceil(len(texts) / SAMPLE))
    wanted = torch.cat([sample, pairs[:, 1]]).unique()  # the documents whose embeddings the geometry needs
    query_emb = torch.cat([emb for _, emb in encode_chunks(retriever, queries, "query", progress, share=False)])
    kept = query_emb.new_zeros(len(wanted), query_emb.shape[1])
    found = search(query_emb, query_emb[:0], k)
    for start, document_emb in encode_chunks(retriever, texts, "document", progress):
        found = search(query_emb, document_emb, k, found=found, offset=start)
        here = (wanted >= start) & (wanted < start + len(document_emb))
        kept[here.to(kept.device)] = document_emb[(wanted[here] - start).to(kept.device)].float()
    if processes()[1] > 1:
        dist.all_reduce(kept)  # each row is zero but in the process that has it
        found = merge(gather(found[0], -torch.inf), gather(found[1], len(texts)), min(k, len(texts)))
    pairs[:, 1] = torch.searchsorted(wanted, pairs[:, 1].contiguous())
    return *found, geometry(query_emb.cpu(), kept.cpu(), pairs, torch.searchsorted(wanted, sample))


def retrieve(retriever, collection, k=100, drop_self=False, progress=False):
    """Search all judged queries -> {query: {document: score}} with the k best documents of each, and the geometry.

    drop_self: the document that has the query's own id is left out (ArguAna and Quora, whose queries are documents).
    """
    ids, depth, lexical = list(collection.corpus), k + drop_self, isinstance(retriever, BM25)
    if lexical:
        scores, indices = retriever.search(list(collection.queries.values()), list(collection.corpus.values()), depth)
        shape = {}
    else:
        scores, indices, shape = search_collection(retriever, collection, depth, progress)
    run = {}
    for query, row, values in zip(collection.queries, indices.tolist(), scores.tolist()):
        scored = [(ids[i], value) for i, value in zip(row, values)
                  if not (drop_self and ids[i] == query) and not (lexical and value <= 0)]  # 0: a document without the words
        run[query] = dict(scored[:k])
    return run, shape


def evaluate(retriever, collection, ks=(1, 3, 5, 10, 100), drop_self=False, progress=False):
    """A Retriever (or BM25) on a Collection -> {"ndcg@10": ..., "alignment": ...}; see compute_metrics and geometry."""
    run, shape = retrieve(retriever, collection, max(ks), drop_self, progress)
    return {**compute_metrics(run, collection.qrels, ks), **shape}


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a retriever folder, a backbone's name, an encoder (folder or hub id), or bm25")
    parser.add_argument("--data", required=True, help="folders in BEIR layout, separated by commas")
    parser.add_argument("--split", default="test", help="qrels/SPLIT.tsv (default: %(default)s)")
    parser.add_argument("--run", help="write the rankings here, in TREC run format (one collection)")
    parser.add_argument("--out", help="write the metrics here, as JSON")
    parser.add_argument("--cache", help="a folder to keep embeddings in: encoded once, resumable")
    parser.add_argument("--prompt", help="how an untrained backbone reads a text, such as 'query: {text}' (default: PromptEOL's)")
    parser.add_argument("--query-prompt", help="another prompt for queries, with the same behind its {text} as documents have (default: theirs)")
    parser.add_argument("--max-tokens", type=int, help="cut texts here (default: what the model's own files say)")
    parser.add_argument("--plot", metavar="FILE", help="draw nDCG@10 here, beside BM25's (.png, .svg or .pdf; pip install matplotlib)")
    parser.add_argument("--drop-self", action="store_true", help="leave out the document that has the query's own id")
    parser.add_argument("--ask", nargs="?", const="", metavar="QUESTION", help="no measuring: show the best passages for a "
                        "question; without one, type them in")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    args = parser.parse_args(argv)
    if args.plot:
        from pictures import check_picture

        check_picture(args.plot)
    for path in filter(None, (args.out, args.run, args.plot)):
        check_file(path)
    if args.run and ("," in args.data or args.run == args.out):
        raise BadInput("--run takes one collection, and a file of its own")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise BadInput("--max-tokens must be at least 1")
    if args.ask is not None and ("," in args.data or int(os.environ.get("WORLD_SIZE") or 1) > 1):
        raise BadInput("--ask is for one process and one folder")
    if args.ask is not None and (args.out or args.run or args.plot or args.drop_self or args.split != parser.get_default("split")):
        raise BadInput("--ask measures nothing: leave out --split, --out, --run, --plot and --drop-self")
    return args


def main(argv=None):
    args, clock = parse(argv), Clock()
    start_processes(args.device)
    collections = {} if args.ask is not None else load_collections(args.data, args.split)
    corpus = load_corpus(args.data) if args.ask is not None else None
    if not collections and not corpus:
        raise BadInput("--data names no folder")
    if args.run:
        check_ids([name for c in collections.values() for names in (c.queries, c.corpus) for name in names])
    retriever = BM25() if args.model == "bm25" else load_retriever(args)
    if corpus:
        from ask import ask, typed

        own = Path(args.model) / "embeddings"  # what train.py has left there
        return ask(retriever, corpus, [args.ask] if args.ask else typed(), args.cache or (own if own.is_dir() else None),
                   keep=bool(args.cache) or len(corpus) <= SMALL and os.access(own, os.W_OK))  # others may only read a run
    if args.cache and args.model != "bm25":
        retriever = Cache(retriever, args.cache)
    results, runs = {}, {}
    clock.lap("load")
    for name, collection in collections.items():
        runs[name], shape = retrieve(retriever, collection, drop_self=args.drop_self, progress=True)
        results[name] = {**compute_metrics(runs[name], collection.qrels), **shape,
                         "absent judgments": collection.absent, "queries that are documents": own_queries(collection)}
    clock.lap("evaluate")
    if processes()[0] == 0:
        show(args, argv, retriever, results, runs, clock)
        if args.plot:
            from plot import plot_metrics

            plot_metrics({"BM25": {name: evaluate(BM25(), c, drop_self=args.drop_self) for name, c in collections.items()},
                          "BM25" if args.model == "bm25" else Path(args.model).resolve().name: results}, args.plot)
    end_processes()


def load_retriever(args):
    """The retriever that the command line asks for."""
    retriever = Retriever.load(args.model, args.device, args.dtype)
    retriever.set_prompt(args.prompt, args.query_prompt)
    if args.max_tokens:
        if args.max_tokens > retriever.max_tokens and processes()[0] == 0:
            print(f"{args.model} reads {retriever.max_tokens} tokens of a text, not {args.max_tokens}", file=sys.stderr)
        retriever.max_tokens = min(args.max_tokens, retriever.max_tokens)
    return retriever


def own_queries(collection):
    """How many queries are documents of the corpus, with the same id: each would find itself."""
    return sum(text != "" and collection.corpus.get(query, "").endswith(text) for query, text in collection.queries.items())


def show(args, argv, retriever, results, runs, clock):
    """Write the files that were asked for, and print the tables."""
    if args.out:
        write_json(args.out, {"model": args.model, "split": args.split, "drop_self": args.drop_self, "max_tokens": retriever.max_tokens,
                              "metrics": results, "seconds": clock.seconds, **about_run("evaluate.py", argv, retriever.device)})
    if args.run:
        write_run(args.run, *runs.values(), "_".join(Path(args.model).resolve().name.split()))
    for name, values in results.items():
        if values["queries that are documents"] and not args.drop_self:
            print(f"{name}: {values['queries that are documents']} {FIND_THEMSELVES}", file=sys.stderr)
    ours = " of this process's share" * (processes()[1] > 1)
    if retriever.cut:
        print(f"{retriever.cut} texts{ours} reach {retriever.max_tokens} tokens; what lies behind is not read", file=sys.stderr)
    if isinstance(retriever, Cache):
        print(f"{retriever.found} of {retriever.asked} embeddings{ours} were read from {args.cache}"
              + "; whether those texts were cut is not known" * (retriever.found > 0), file=sys.stderr)
    rows = dict(results)
    if len(rows) > 1:
        shared = set.intersection(*map(set, results.values()))
        rows["mean"] = {m: sum(r[m] for r in results.values()) / len(results) for m in shared}
    print(table(rows, ("ndcg@10", "map@100", "recall@10", "recall@100", "mrr@10", "success@5")))
    if args.model != "bm25":
        print(table(rows, GEOMETRY))


if __name__ == "__main__":
    command(main)
