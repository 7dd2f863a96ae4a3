"""Metrics against trec_eval's own code and by hand, search against the full matrix and a sort, the command."""
import io
import json
import math
import random
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import evaluate
import search as search_module
from data import BadInput, Collection, load_collection, load_corpus
from evaluate import compute_metrics, search
from model import Retriever
from output import rank, table, write_run

# Code points above U+FFFF sort after U+FFFD here and as UTF-8, but before it as UTF-16.
NAMES = ["é", "e\u0301", "ß", "Ω", "文", "\ufffd", "😀", "D1", "d", "D"] + [f"d{i}" for i in range(160)]


def trec_eval(run, qrels, ks):
    """trec_eval -c: means over all queries of qrels; pytrec_eval leaves out what the run (also a file) misses."""
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="the reference: pip install pytrec-eval-terrier")
    if not isinstance(run, dict):
        run = pytrec_eval.parse_run(run.read_text(encoding="utf-8").splitlines())
    measures = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "success": "success"}
    cuts = ",".join(map(str, ks))
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"{m}.{cuts}" for m in measures.values()} | {"recip_rank"})
    rows = evaluator.evaluate({query: scored for query, scored in run.items() if scored}).values()
    means = {f"{name}@{k}": sum(row[f"{measure}_{k}"] for row in rows) / len(qrels)
             for name, measure in measures.items() for k in ks}
    for k in ks:  # a reciprocal rank within k, else 0
        means[f"mrr@{k}"] = sum(r for row in rows if (r := row["recip_rank"]) > 1 / (k + 0.5)) / len(qrels)
    return means


def random_case(rng, longest):
    """Runs with missing, empty and unjudged queries, ties before and after rounding; judgments from -2 to 4."""
    names = rng.sample(NAMES, min(longest + 5, len(NAMES)))
    qrels, run = {}, {}
    for i in range(rng.randint(1, 4)):
        grades = rng.choice([[0, 1], [1], [-2, -1, 0], [-1, 0, 1, 2, 3, 4]])
        query = rng.choice(["q", "ü", "問"]) + str(i)
        qrels[query] = {d: rng.choice(grades) for d in rng.sample(names, rng.randint(1, len(names)))}
        qrels[query].setdefault("never found", 0)  # pytrec_eval 0.5.11 crashes where all judgments are negative
        base = rng.choice([[0.0], [1.0, 2.0], [-0.3, 0.1, 0.7, 12.5, 1e5], [rng.gauss(0, 1) for _ in range(50)]])
        noise = rng.choice([0, 1e-9, 3e-8])  # below, and about, the resolution of float32
        if rng.random() < 0.85:
            documents = rng.sample(names, rng.randint(0, min(longest, len(names))))
            run[query] = {d: rng.choice(base) * (1 + noise * rng.randint(-3, 3)) for d in documents}
    run["not judged"] = {"d1": 1.0}
    return run, qrels


def test_metrics_agree_with_trec_eval():
    rng = random.Random(0)
    for case in range(2000):
        longest, ks = rng.choice([(6, (1, 3, 10)), (25, (2, 5, 10)), (25, (20,))])
        if case % 40 == 0:
            longest, ks = 160, (1, 3, 5, 10, 100)
        run, qrels = random_case(rng, longest)
        found, expected = compute_metrics(run, qrels, ks), trec_eval(run, qrels, ks)
        assert found == pytest.approx(expected, abs=1e-6), (run, qrels)


def test_metrics_by_hand():
    qrels = {"q": {"a": 3, "b": 1, "c": 2, "n": -1, "z": 0}, "missing": {"a": 1}}
    run = {"q": {"z": 0.9, "a": 0.8, "unjudged": 0.7, "c": 0.6, "n": 0.5}}  # gains 0 3 0 2 0; the best: 3 2 1
    result = compute_metrics(run, qrels, ks=(1, 2, 8))
    expected = {1: (0, 0, 0, 0, 0, 0),
                2: (3 / math.log2(3) / (3 + 2 / math.log2(3)) / 2, (1 / 2) / 3 / 2, 1 / 6, 1 / 4, 1 / 4, 1 / 2),
                8: (0.28918758, (1 / 2 + 2 / 4) / 3 / 2, 1 / 3, 1 / 8, 1 / 4, 1 / 2)}
    for k, values in expected.items():
        assert [result[f"{m}@{k}"] for m in ("ndcg", "map", "recall", "precision", "mrr", "success")] == pytest.approx(values)
    assert set(compute_metrics({}, qrels).values()) == {0.0}
    assert set(compute_metrics({"q": {"a": 1.0}}, {"q": {"a": -1}}).values()) == {0.0}


def test_rank_orders_float32_scores_then_ids_descending():
    scored = {"a": 1.0, "d10": 1.0 + 1e-9, "d9": 1.0, "é": 1.0 - 1e-9, "top": 1.0 + 1e-6, "low": -2.0, "D": 1.0}
    order = ["top", "é", "d9", "d10", "a", "D", "low"]
    assert [rank(scored, depth) for depth in range(9)] == [order[:depth] for depth in range(9)]
    assert rank({"\ufffd": 1.0, "😀": 1.0}, 2) == ["😀", "\ufffd"] and rank({}, 3) == []


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_search_against_the_full_matrix(dtype, chunk):
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 32, generator=generator).to(dtype) for n in (9, 50))
    expected = (queries.double() @ documents.double().T).sort(dim=1, descending=True)
    for k in (1, 10, 50, 60):
        scores, indices = search(queries, documents, k, chunk)
        assert scores.shape == indices.shape == (9, min(k, 50)) and scores.dtype == torch.float32
        assert torch.equal(indices, expected.indices[:, :k])
        assert torch.allclose(scores.double(), expected.values[:, :k], rtol=0, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 3, 64, 1000])
def test_equal_scores_keep_corpus_order(chunk):
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randint(-1, 2, (n, 2), generator=generator).half() for n in (9, 300))
    exact = (queries.double() @ documents.double().T).tolist()  # whole numbers from -2 to 2
    for k in (1, 10, 299, 400):
        scores, indices = search(queries, documents, k, chunk)
        for row, values in enumerate(exact):
            order = sorted(range(300), key=lambda j: (-values[j], j))[:k]
            assert indices[row].tolist() == order and scores[row].tolist() == [values[j] for j in order]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made under it."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *(t.untyped_storage().nbytes() // t.element_size() for t in tensors), 0)
        return out


def test_search_never_holds_the_full_score_matrix():
    queries, documents = torch.randn(400, 4), torch.randn(2000, 4)  # the full matrix: 800,000
    with Largest() as largest:
        scores, _ = search(queries, documents, k=20, chunk=100)
    assert scores.shape == (400, 20) and 400 * 20 <= largest.numel <= 400 * (2 * 100 + 20)


def test_a_written_run_keeps_its_metrics(tmp_path):
    # q2's scores differ as float32, but not if "a" is cut to nine digits before it is rounded to float32.
    run = {"ü": {"a": -7.0, "文": 0.1 + 0.2, "b": -7.0, "é": 1e-30}, "q2": {"a": 0.10000000525, "b": 0.1}}
    qrels = {"ü": {"文": 2, "a": 1, "é": 0}, "q2": {"a": 1}, "q3": {"a": 1}}
    write_run(tmp_path / "run.trec", run, "mine")
    lines = (tmp_path / "run.trec").read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "ü Q0 文 1", "ü Q0 é 2", "ü Q0 b 3", "ü Q0 a 4", "q2 Q0 a 1", "q2 Q0 b 2"]
    assert all(line.split()[5:] == ["mine"] for line in lines)
    expected = trec_eval(tmp_path / "run.trec", qrels, (1, 2, 4))
    assert compute_metrics(run, qrels, (1, 2, 4)) == pytest.approx(expected, abs=1e-6)


def test_evaluate_encodes_each_kind_and_names_documents_by_id():
    vectors = {"query": {"x?": [1.0, 0.0], "y?": [0.0, 1.0]},
               "document": {"x": [1.0, 0.0], "y": [0.6, 0.8], "z": [-1.0, 0.0]}}
    retriever = SimpleNamespace(encode=lambda texts, kind, **_: torch.tensor([vectors[kind][t] for t in texts]))
    qrels = {"q1": {"D2": 1}, "q2": {"D2": 1}}
    collection = Collection({"D1": "x", "D2": "y", "D3": "z"}, {"q1": "x?", "q2": "y?"}, qrels)
    run, _ = evaluate.retrieve(retriever, collection, k=2)
    assert run == {"q1": {"D1": 1.0, "D2": np.float32(0.6)}, "q2": {"D2": np.float32(0.8), "D1": 0.0}}
    assert evaluate.evaluate(retriever, collection, ks=(1, 2))["mrr@2"] == pytest.approx((1 / 2 + 1) / 2)


def test_table_lines_up():
    rows = {"classroom": {"ndcg@10": 0.5, "map@3": 1.0}, "x": {"ndcg@10": 0.1239, "map@3": 0.0}}
    lines = table(rows, metrics=("ndcg@10", "map@3")).splitlines()
    assert [line.split() for line in lines] == [
        ["nDCG@10", "MAP@3"], ["classroom", "0.500", "1.000"], ["x", "0.124", "0.000"]]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("levels", [2, 5, 50, 10**6])
def test_groups_that_are_passed_over_hold_nothing_better(levels):
    """Random scores with ties at every boundary, through documents that are the scores themselves, against a stable sort."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, levels, (12, 4096), generator=generator).float()
    scores[0], scores[1], scores[2] = 1.0, torch.arange(4096), -torch.arange(4096)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    for k, chunk in ((1, 256), (3, 512), (40, 1024), (40, 100), (200, 256), (300, 4096)):
        found, indices = search(torch.eye(12), scores.T.contiguous(), k, chunk)
        assert torch.equal(indices, order[:, :k]) and torch.equal(found, scores.gather(1, indices))


@pytest.mark.parametrize("rows", [4096, 100, 1])
def test_scores_above_the_floor_are_all_found(rows):
    block = torch.randint(0, 9, (rows, 7), generator=torch.Generator().manual_seed(0)).float()
    for floor in (torch.arange(7).float() + 2, torch.full((7,), -1.0), torch.full((7,), 9.0)):
        query, row, score = search_module.above(block, floor)
        expected = {(q, r) for q in range(7) for r in range(rows) if block[r, q] > floor[q]}
        assert set(zip(query.tolist(), row.tolist())) == expected and len(query) == len(expected)
        assert torch.equal(score, block[row, query])
        table_, columns = search_module.side_by_side(query, row, score, 7) if len(query) else (torch.empty(7, 0),) * 2
        for q in range(7):
            mine = sorted(r for p, r in expected if p == q)
            assert columns[q, : len(mine)].tolist() == mine and table_[q, : len(mine)].tolist() == block[mine, q].tolist()
            assert (table_[q, len(mine) :] == -torch.inf).all()


def test_search_goes_on_from_an_earlier_result():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (9, 500))
    whole, found = search(queries, documents, 30), None
    for start in range(0, 500, 170):
        found = search(queries, documents[start : start + 170], 30, chunk=64, found=found, offset=start)
    assert all(map(torch.equal, found, whole))


def test_geometry_by_hand():
    """Loops over pairs; vectors of any length are compared on the unit sphere."""
    generator = torch.Generator().manual_seed(0)
    q, d = torch.randn(4, 5, generator=generator), torch.randn(6, 5, generator=generator) * 3
    found = evaluate.geometry(q, d, torch.tensor([[0, 1], [3, 5]]), torch.tensor([0, 2, 5]))
    q, d = ([[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in m.tolist()] for m in (q, d))

    def squared(one, two):
        return sum((x - y) ** 2 for x, y in zip(one, two))

    assert found["alignment"] == pytest.approx((squared(q[0], d[1]) + squared(q[3], d[5])) / 2, abs=1e-5)
    apart = [squared(d[i], d[j]) for i, j in ((0, 2), (0, 5), (2, 5))]
    assert found["uniformity"] == pytest.approx(math.log(sum(math.exp(-2 * x) for x in apart) / 3), abs=1e-5)
    mean = [sum(d[i][c] for i in (0, 2, 5)) / 3 for c in range(5)]
    assert found["spread"] == pytest.approx(1 - sum(x * x for x in mean), abs=1e-5)
    two = evaluate.geometry(torch.ones(1, 5), torch.tensor(d), torch.empty(0, 2).long(), torch.tensor([1, 4]))
    assert two == pytest.approx({"spread": squared(d[1], d[4]) / 4, "uniformity": -2 * squared(d[1], d[4])}, abs=1e-5)
    assert evaluate.geometry(torch.ones(1, 2), torch.ones(3, 2), torch.empty(0, 2).long(), torch.tensor([0])) == {
        "spread": pytest.approx(0, abs=1e-6)}


def vectors_of(collection, width=6):
    """A retriever of fixed random vectors for a collection's texts."""
    texts = [*collection.corpus.values(), *collection.queries.values()]
    table = dict(zip(texts, torch.randn(len(texts), width, generator=torch.Generator().manual_seed(0))))
    return SimpleNamespace(encode=lambda texts, kind, **_: torch.stack([table[t] for t in texts]))


def test_chunks_of_a_collection_change_nothing(monkeypatch):
    corpus = {f"D{i}": f"text {i}" for i in range(30)}
    queries = {f"q{i}": f"query {i}" for i in range(5)}
    collection = Collection(corpus, queries, {q: {"D3": 1, "D29": 2, "gone": 1, "D4": 0} for q in queries})
    whole, shape = evaluate.retrieve(vectors_of(collection), collection, k=7)
    exact = vectors_of(collection)
    scores = exact.encode(list(queries.values()), "query") @ exact.encode(list(corpus.values()), "document").T
    assert [list(found) for found in whole.values()] == [[f"D{i}" for i in row] for row in scores.topk(7).indices.tolist()]
    for monkeypatch_chunk in (1, 4, 30):
        monkeypatch.setattr(evaluate, "ENCODE_CHUNK", monkeypatch_chunk)
        run, again = evaluate.retrieve(vectors_of(collection), collection, k=7)
        assert [list(found) for found in run.values()] == [list(found) for found in whole.values()]
        assert again == pytest.approx(shape, abs=1e-5) and set(shape) == {"alignment", "uniformity", "spread"}


@pytest.mark.parametrize("bm25", [True, False])
def test_drop_self_takes_the_next_document_in_its_place(bm25):
    texts = {f"{i}": f"{'same ' * 3}{i} word{i}" for i in range(10)}
    collection = Collection(texts, {q: texts[q] for q in ("2", "7")}, {"2": {"3": 1}, "7": {"7": 1}})
    made = evaluate.BM25() if bm25 else vectors_of(collection)
    with_self, _ = evaluate.retrieve(made, collection, k=10)
    without, _ = evaluate.retrieve(made, collection, k=4, drop_self=True)
    for query in ("2", "7"):
        assert next(iter(with_self[query])) == query
        assert list(without[query]) == list(with_self[query])[1:5]
    assert evaluate.evaluate(made, collection, ks=(1,))["recall@1"] == 0.5
    second = 1.0 if next(iter(without["2"])) == "3" else 0.0  # the only document judged for 7 is 7 itself
    assert evaluate.evaluate(made, collection, ks=(1,), drop_self=True)["recall@1"] == second / 2
    assert evaluate.evaluate(made, collection, ks=(10,), drop_self=True)["recall@10"] == 0.5


def test_embeddings_that_are_not_numbers_are_refused(tmp_path, collection_folder, monkeypatch):
    class Broken:
        device = "cpu"

        def set_prompt(self, *prompts):
            assert prompts == (None, None)

        def encode(self, texts, kind, **_):
            return torch.full((len(texts), 4), math.nan if kind == "document" else 1.0)

    monkeypatch.setattr(evaluate.Retriever, "load", lambda *_: Broken())
    with pytest.raises(BadInput, match="documents 1 to 8 are not all finite"):
        evaluate.main(["--model", "x", "--data", str(collection_folder), "--out", str(tmp_path / "out.json"),
                       "--run", str(tmp_path / "run")])
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob("run*"))


def test_a_run_that_trec_cannot_hold_is_refused_before_it_is_written(tmp_path):
    for run in ({"q": {"two words": 1.0}}, {"a\tb": {"d": 1.0}}, {"q": {"": 1.0}}):
        with pytest.raises(BadInput, match="TREC"):
            write_run(tmp_path / "run", run, "mine")
    with pytest.raises(BadInput, match="cannot be written"):
        write_run(tmp_path / "none" / "run", {"q": {"d": 1.0}}, "mine")
    assert not list(tmp_path.iterdir())


def test_ask_shows_the_best_passages(collection_folder, tiny_folder, capsys, monkeypatch):
    evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--ask", "which box is black?"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith("1 ") and "d3: Box 3 The box number 3 is black." in lines[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("green?\nwhite?\n\nnever asked\n"))
    evaluate.main(["--model", tiny_folder, "--data", str(collection_folder), "--ask", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and [line.split()[0] for line in lines] == list("12345") * 2
    scores = [float(line.split()[1]) for line in lines]
    assert scores[:5] == sorted(scores[:5], reverse=True) and max(scores) <= 1


def test_ask_tells_of_documents_that_are_cut(collection_folder, tiny_folder, tmp_path, capsys):
    asked = ["--model", tiny_folder, "--data", str(collection_folder), "--ask", "which box is black?", "--device", "cpu"]
    evaluate.main(asked)
    assert "not read" not in capsys.readouterr().err
    corpus, retriever = load_corpus(collection_folder), Retriever.load(tiny_folder, device="cpu")
    lengths = sorted(len(row) for row in retriever.tokenize(list(corpus.values()), "document"))
    assert lengths[0] < lengths[-1]
    for _ in range(2):  # made, and found
        evaluate.main([*asked, "--max-tokens", str(lengths[-1]), "--cache", str(tmp_path / "cache")])
        assert f"{lengths.count(lengths[-1])} documents reach {lengths[-1]} tokens" in capsys.readouterr().err


def test_ask_keeps_embeddings_in_a_run_and_where_it_may_not_write_there_it_reads_them(collection_folder, tiny_folder, tmp_path, capsys, monkeypatch):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(4, 8)
    made.save(tmp_path / "run")
    own = tmp_path / "run" / "embeddings"
    own.mkdir()
    asked = ["--model", str(tmp_path / "run"), "--data", str(collection_folder), "--ask", "which box is black?", "--device", "cpu"]
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(evaluate.os, "access", lambda path, mode: path != own)
        evaluate.main(asked)
        shown = capsys.readouterr().out
        assert not list(own.iterdir())
    evaluate.main(asked)
    assert capsys.readouterr().out == shown and len(list(own.rglob("*.npy"))) == 2  # with the adapters and without
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.os, "access", lambda path, mode: path != own)
        patch.setattr(Retriever, "encode", lambda self, texts, kind="query", real=Retriever.encode, **options: real(self, texts, kind, **options) if kind == "query" else pytest.fail())
        evaluate.main(asked)
    assert capsys.readouterr().out == shown


def test_ask_keeps_nothing_of_a_large_corpus_unasked(collection_folder, tiny_folder, tmp_path, monkeypatch, capsys):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(4, 8)
    made.save(tmp_path / "run")
    (tmp_path / "run" / "embeddings").mkdir()
    asked = ["--model", str(tmp_path / "run"), "--data", str(collection_folder), "--ask", "which box is black?", "--device", "cpu"]
    for small, files in ((7, 0), (8, 2)):
        monkeypatch.setattr(evaluate, "SMALL", small)
        evaluate.main(asked)
        assert len(list((tmp_path / "run" / "embeddings").rglob("*.npy"))) == files


def test_ask_holds_no_file_open(collection_folder, tiny_folder, tmp_path, monkeypatch):
    import ask

    monkeypatch.setattr(evaluate, "ENCODE_CHUNK", 1)
    retriever, texts = Retriever.load(tiny_folder, device="cpu"), list(load_corpus(collection_folder).values())
    made, found = (ask.encoded(retriever, texts, tmp_path, True) for _ in range(2))
    assert torch.equal(made, found) and torch.allclose(made, retriever.encode(texts, "document"), atol=1e-5)
    if sys.platform == "linux":
        assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second where the locale is C
def test_a_question_that_is_no_utf_8_is_refused(collection_folder, monkeypatch, errors):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8", errors=errors))
    with pytest.raises(BadInput, match="a question is not UTF-8 text"):
        evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--ask"])


def test_ask_shows_a_trained_retriever_beside_its_untrained_self(collection_folder, tiny_folder, tmp_path, capsys):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(4, 8)
    torch.manual_seed(0)
    for layer in made.adapters().values():
        layer.lora_B.data.normal_(0, 0.3)
    made.save(tmp_path / "run")
    question, corpus = "which box is black?", load_corpus(collection_folder)
    evaluate.main(["--model", str(tmp_path / "run"), "--data", str(collection_folder), "--ask", question, "--device", "cpu"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split("  ")[0] == "before training" and shown[0].rstrip().endswith("after training")
    wanted = []
    for retriever in (Retriever.load(tiny_folder, device="cpu"), made):
        scores = retriever.encode([question]) @ retriever.encode(list(corpus.values()), "document").T
        wanted.append([list(corpus)[i] for i in scores[0].argsort(descending=True)[:5]])
    assert wanted[0] != wanted[1], "the two must differ, or the test says nothing"
    rows = [re.findall(r"(?:^| )[1-5] +-?\d\.\d{3} (d\d+):", line) for line in shown]
    assert [list(column) for column in zip(*filter(None, rows))] == wanted
    with pytest.raises(BadInput, match="one process and one folder"):
        evaluate.main(["--model", str(tmp_path / "run"), "--data", f"{collection_folder},{collection_folder}", "--ask", question])


def test_several_collections_have_a_mean_and_own_ids_are_told(collection_folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(collection_folder, other)
    (other / "queries.jsonl").write_text('{"_id": "d1", "text": "The box number 1 is green."}\n{"_id": "q9", "text": ""}\n')
    (other / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nd1\td1\t1\nd1\tgone\t1\nq9\td1\t1\n")
    evaluate.main(["--model", "bm25", "--data", f"{collection_folder},{other}", "--out", str(tmp_path / "out.json")])
    told, result = capsys.readouterr(), json.loads((tmp_path / "out.json").read_text())["metrics"]
    mean = sum(result[name]["ndcg@10"] for name in ("collection", "other")) / 2
    assert f"{mean:.3f}" in told.out.splitlines()[-1] and told.out.splitlines()[-1].startswith("mean")
    assert "other: 1 queries are documents of the corpus" in told.err and "--drop-self" in told.err
    assert result["other"]["absent judgments"] == 1 and result["other"]["recall@10"] == 0.25  # of d1's two one, of q9's none
    assert [result[name]["queries that are documents"] for name in ("collection", "other")] == [0, 1]
    evaluate.main(["--model", "bm25", "--data", str(other), "--drop-self", "--out", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["metrics"]["other"]["recall@10"] == 0 and result["drop_self"] is True and "find themselves" not in capsys.readouterr().err


def test_what_cannot_be_measured_is_a_dash(collection_folder, tiny_folder, tmp_path, capsys):
    """One document has no uniformity; judgments that are all 0 have no alignment."""
    shutil.copytree(collection_folder, tmp_path / "one")
    corpus = tmp_path / "one" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().splitlines()[0])
    shutil.copytree(collection_folder, tmp_path / "zero")
    (tmp_path / "zero" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    evaluate.main(["--model", tiny_folder, "--data", f"{tmp_path / 'one'},{tmp_path / 'zero'}", "--device", "cpu",
                   "--out", str(tmp_path / "out.json")])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[-3:]}
    assert lines["one"][1] == "-" and lines["zero"][0] == "-" and lines["mean"][:2] == ["-", "-"]
    assert set(json.loads((tmp_path / "out.json").read_text())["metrics"]) == {"one", "zero"}


def test_bm25_finds_no_document_without_the_words():
    run, shape = evaluate.retrieve(evaluate.BM25(), Collection({"a": "plum", "b": "corn"}, {"q": "plum"}, {"q": {"b": 1}}))
    assert list(run["q"]) == ["a"] and shape == {}


def test_a_prompt_and_a_length_on_the_command_line_decide_how_texts_are_read(collection_folder, tiny_folder, tmp_path, capsys, monkeypatch):
    out, prompt = tmp_path / "out.json", "say: {text} now"
    evaluate.main(["--model", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--prompt", prompt,
                   "--max-tokens", "30", "--out", str(out)])
    retriever = evaluate.Retriever.load(tiny_folder, device="cpu")
    retriever.set_prompt(prompt)
    collection = load_collection(collection_folder)
    whole = evaluate.evaluate(retriever, collection)
    retriever.max_tokens = 30
    expected, found = evaluate.evaluate(retriever, collection), json.loads(out.read_text())
    said = capsys.readouterr().err
    assert found["max_tokens"] == 30 and "8 texts reach 30 tokens" in said and " reads " not in said  # documents, but no query
    assert {name: found["metrics"]["collection"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert whole["spread"] != pytest.approx(expected["spread"], abs=1e-3)
    read = []
    monkeypatch.setattr(evaluate.Retriever, "tokenize", lambda self, texts, kind: read.append((self.prompts[kind], self.suffix, kind)) or [[1, 2]] * len(texts))
    evaluate.main(["--model", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--prompt", prompt, "--query-prompt", "ask: {text} now"])
    assert set(read) == {("ask: ", " now", "query"), ("say: ", " now", "document")}


@pytest.mark.parametrize("flags, says", [(["--max-tokens", "0"], "--max-tokens must be at least 1"), (["--data", ","], "names no folder"),
                                         (["--run", "run.trec"], "the id 'd 3' is empty or has a space"), (["--plot", "x.txt"], "x.txt")])
def test_what_cannot_work_is_refused_before_anything_is_loaded(flags, says, collection_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = collection_folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"_id": "d 3", "text": "an id with a space"}\n')
    monkeypatch.setattr(evaluate.Retriever, "load", lambda *_: pytest.fail("must not come so far"))
    before = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match=says):
        evaluate.main(["--model", "some model", "--data", str(collection_folder), *flags])
    assert set(tmp_path.iterdir()) == before


def test_more_tokens_than_a_model_reads_are_told(collection_folder, tiny_folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    evaluate.main(["--model", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--max-tokens", "600", "--out", str(out)])
    assert f"{tiny_folder} reads 512 tokens of a text, not 600" in capsys.readouterr().err and json.loads(out.read_text())["max_tokens"] == 512


@pytest.mark.parametrize("flag", [["--out", "x.json"], ["--run", "x.trec"], ["--plot", "x.png"], ["--drop-self"], ["--split", "dev"]])
def test_a_question_measures_nothing(collection_folder, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match=f"--ask measures nothing: leave out .*{flag[0]}"):
        evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--ask", "what?", *flag])
    assert set(tmp_path.iterdir()) == before


def test_one_process_asks(monkeypatch, collection_folder):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="--ask is for one process and one folder"):
        evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--ask", "what?"])


def test_the_command_writes_metrics_and_a_run(collection_folder, tmp_path, capsys, monkeypatch):
    out, path = tmp_path / "result.json", tmp_path / "run.trec"
    monkeypatch.setattr("record.time", SimpleNamespace(perf_counter=iter([0.0, 3.0, 10.504]).__next__))  # begun, loaded, evaluated
    evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--out", str(out), "--run", str(path)])
    result = json.loads(out.read_text())
    expected = trec_eval(path, {f"q{i}": {f"d{i}": 1} for i in range(8)}, (1, 3, 5, 10, 100))
    assert result.pop("metrics") == {"collection": pytest.approx({**expected, "absent judgments": 0, "queries that are documents": 0}, abs=1e-6)}
    assert {"command", "commit", "hardware", "versions"} <= set(result)
    assert result["seconds"] == {"load": 3.0, "evaluate": 7.5}
    assert {name: result[name] for name in ("model", "split", "drop_self", "max_tokens")} == {
        "model": "bm25", "split": "test", "drop_self": False, "max_tokens": None}
    assert expected["ndcg@10"] > 0.9 and f"{expected['ndcg@10']:.3f}" in capsys.readouterr().out
    with pytest.raises(BadInput, match="one collection"):
        evaluate.main(["--model", "bm25", "--data", f"{collection_folder},{tmp_path}", "--run", str(path)])
