"""classroom/ through the tools that are known for their figures, beside this project's own: rows of the README's table of interoperation."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from test_evaluate import trec_eval

from bm25 import BM25, tokenize
from data import load_collection
from evaluate import compute_metrics, retrieve
from search import search


@pytest.fixture(scope="module")
def classroom():
    return load_collection(ROOT / "classroom")


def test_metrics_of_classroom_are_trec_eval_s(classroom, measured):
    run, ks = retrieve(BM25(), classroom)[0], (1, 3, 5, 10, 100)
    ours, theirs = compute_metrics(run, classroom.qrels, ks), trec_eval(run, classroom.qrels, ks)
    assert ours.keys() == theirs.keys() and 0.3 < ours["ndcg@10"] < 0.9
    measured("BM25 on classroom/: nDCG, MAP, recall, P, MRR, success at 1 to 100", "pytrec-eval-terrier", 1e-6,
             max(abs(ours[name] - theirs[name]) for name in ours))


def test_bm25_scores_classroom_as_bm25s_does(classroom, measured):
    bm25s = pytest.importorskip("bm25s", reason="the independent BM25 that scores are compared with")
    texts, queries = list(classroom.corpus.values()), list(classroom.queries.values())
    theirs = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    theirs.index([tokenize(text) for text in texts], show_progress=False)
    scores, indices = BM25().search(queries, texts, len(texts))
    expected = torch.from_numpy(np.stack([theirs.get_scores(tokenize(query)) for query in queries])).gather(1, indices)
    assert scores.shape == (240, 400) and scores.max() > 10
    measured("BM25 on classroom/: every score, the same tokens", "bm25s", 1e-5, (scores - expected).abs().max())


def test_search_finds_what_faiss_finds(measured):
    faiss = pytest.importorskip("faiss", reason="the exact search that results are compared with: pip install faiss-cpu")
    generator = torch.Generator().manual_seed(0)
    queries, documents = (F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (50, 5000))
    index = faiss.IndexFlatIP(64)
    index.add(documents.numpy())
    scores, indices = search(queries, documents, 100, chunk=640)
    their_scores, their_indices = map(torch.from_numpy, index.search(queries.numpy(), 100))
    assert (indices == their_indices).float().mean() > 0.999  # but for scores that rounding swaps
    measured("exact search, 50 queries x 5,000 vectors, the 100 best: scores", "faiss-cpu", 1e-6, (scores - their_scores).abs().max())
