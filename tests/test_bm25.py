"""BM25 against its formula in plain loops, against the package bm25s, and by hand."""
import math
import random
import tracemalloc

import pytest
import torch

from bm25 import BM25, STOPWORDS, chain, ordered, stem, tokenize
from data import Example

WORDS = ["apple", "pie", "plum", "corn", "bread", "milk", "año", "42", "7up", "salt"]  # no stop word, ten stems


def naive_scores(query, documents, k1, b):
    """The equation at the top of bm25.py, one document and one query word at a time."""
    bags = [d.split() for d in documents]
    n, average = len(bags), sum(map(len, bags)) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for t in query.split():
            df, tf = sum(t in other for other in bags), bag.count(t)
            if tf:
                idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
                score += idf * tf / (tf + k1 * (1 - b + b * len(bag) / average))
        scores.append(score)
    return scores


def test_agrees_with_the_formula():
    rng = random.Random(0)
    for _ in range(200):
        documents = [" ".join(rng.choices(WORDS[:9], k=rng.randint(0, 12))) for _ in range(rng.randint(1, 15))]
        documents.append("pie")
        queries = [" ".join(rng.choices(WORDS, k=rng.randint(0, 8))) for _ in range(3)]  # repeated and unknown words
        k, settings = rng.randint(1, 20), rng.choice([{}, {"k1": 1.5, "b": 0.75}, {"k1": 2.0, "b": 0.0}])
        scores, indices = BM25(**settings).search(queries, documents, k)
        assert scores.shape == indices.shape == (3, min(k, len(documents)))
        for row, query in enumerate(queries):
            naive = naive_scores(query, documents, **{"k1": 0.9, "b": 0.4, **settings})
            assert scores[row].tolist() == pytest.approx(sorted(naive, reverse=True)[:k], abs=2e-6)
            assert scores[row].tolist() == pytest.approx([naive[i] for i in indices[row]], abs=2e-6)
            assert len(set(indices[row].tolist())) == len(indices[row])


def test_by_hand():
    documents = ["apple apple pie", "Pie!", "plum plum plum plum"]  # mean length 8 / 3
    scores, indices = BM25().search(["apple", "pie", "Pie pie apple"], documents, 2)
    # log(1 + 2.5 / 1.5) * 2 / (2 + .9 (.6 + .4 * 9 / 8)) = .980829 * 2 / 2.945
    # log(1 + 1.5 / 2.5) * 1 / (1 + .9 (.6 + .4 * 3 / 8)) = .470004 / 1.675, and / 1.945 in the longer document
    expected = [[0.666098, 0.0], [0.280599, 0.241647], [0.666098 + 2 * 0.241647, 2 * 0.280599]]
    assert torch.allclose(scores, torch.tensor(expected), rtol=0, atol=2e-6)
    assert indices[0, 0] == 0 and indices[1:].tolist() == [[1, 0], [0, 1]]


def test_what_scores_nothing():
    documents = ["apple pie", "...", "plum"]
    scores, indices = BM25().search(["", "the of", "zebra", "?!"], documents, 10)
    assert torch.equal(scores, torch.zeros(4, 3)) and all(sorted(row) == [0, 1, 2] for row in indices.tolist())
    assert torch.equal(BM25().search(["apple"], ["", "..."], 1)[0], torch.zeros(1, 1))


def test_equal_scores_keep_corpus_order():
    documents = ["apple pie"] * 40 + ["plum"] * 40 + ["apple pie"] * 40
    for k in (1, 8, 90, 120):
        _, indices = BM25().search(["zebra", "apple", "plum"], documents, k)
        apples, plums = [*range(40), *range(80, 120)], [*range(40, 80)]
        assert indices.tolist() == [list(range(120))[:k], (apples + plums)[:k], (plums + apples)[:k]]


def test_never_holds_the_full_score_matrix():
    queries, documents = WORDS * 200, WORDS * 200  # the full matrix: 16 MB in float32
    tracemalloc.start()
    scores, _ = BM25().search(queries, documents, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.shape == (2000, 1) and peak < 4e6


def test_ranks_like_a_full_sort():
    rng = random.Random(1)
    for _ in range(100):
        documents = [" ".join(rng.choices(WORDS[:3], k=rng.randint(0, 3))) for _ in range(rng.randint(1, 40))]
        full, at = BM25().search(["apple pie"], documents, len(documents))
        score = dict(zip(at[0].tolist(), full[0].tolist()))
        order = sorted(range(len(documents)), key=lambda d: (-score[d], d))
        for k in range(len(documents) + 2):
            scores, indices = BM25().search(["apple pie"], documents, k)
            assert indices[0].tolist() == order[:k] and scores[0].tolist() == [score[d] for d in order[:k]]


def test_agrees_with_bm25s():
    bm25s = pytest.importorskip("bm25s", reason="the independent BM25 that scores are compared with")
    rng, worst = random.Random(2), 0.0
    vocabulary = [f"word{i}" for i in range(60)]
    for settings in ({"k1": 0.9, "b": 0.4}, {"k1": 1.5, "b": 0.75}, {"k1": 2.0, "b": 0.0}):
        weights = [1 / (i + 1) for i in range(50)]
        documents = [" ".join(rng.choices(vocabulary[:50], weights, k=rng.randint(0, 40))) for _ in range(200)]
        queries = [" ".join(["word0", *rng.choices(vocabulary, k=rng.randint(0, 8))]) for _ in range(30)]
        reference = bm25s.BM25(method="lucene", **settings)
        reference.index([tokenize(d) for d in documents], show_progress=False)
        scores, indices = BM25(**settings).search(queries, documents, len(documents))
        for row, query in enumerate(queries):
            expected = torch.from_numpy(reference.get_scores(tokenize(query)))
            worst = max(worst, (scores[row] - expected[indices[row]]).abs().max().item())
    assert worst < 1e-5 and scores.max() > 1


def test_one_index_serves_many_searches():
    documents, other = ["apple pie", "plum pie", "corn"], ["milk", "pie"]
    model = BM25().index(documents)
    for queries, k in ((["pie", "corn"], 2), (["plum", "zebra", "pie pie"], 5), ([], 1)):
        for found, expected in zip(model.top(queries, k), BM25().search(queries, documents, k)):
            assert torch.equal(found, expected)
    assert model.search(["pie"], other, 1)[1].tolist() == model.top(["pie"], 1)[1].tolist() == [[1]]  # a new index


def test_nothing_to_search_or_to_find():
    for documents, k in (([], 3), (["pie"], 0), ([], 0)):
        scores, indices = BM25().search(["pie", "plum"], documents, k)
        assert scores.shape == indices.shape == (2, 0)


def test_tokens():
    assert tokenize("The BRIDGES are covered, in 1883; an Élan 7up!") == ["bridg", "cover", "1883", "élan", "7up"]
    assert tokenize("def has_close_elements(x, n2): ...") == ["def", "has_close_element", "x", "n2"]
    assert tokenize("Which of the 7 did I see?") == ["7", "did", "see"] and tokenize(" the, of ... ") == []
    assert len(STOPWORDS) == 33 + 11
    assert tokenize("Größen, МОСКВА; año α-β 日本 水 cafe\u0301") == [
        "größen", "москва", "año", "α", "β", "日本", "水", "café"]


def test_stems_keep_families_together_and_apart():
    families = ["bridge bridges bridged bridging", "run runs running", "fly flies", "city cities", "glass glasses",
                "virus viruses", "cover covers covered covering", "quick quickly", "speed speeds", "call called calls",
                "study studies studied studying", "breed breeds breeding", "agree agrees agreeing", "basis"]
    stems = [{stem(word) for word in family.split()} for family in families]
    assert [len(s) for s in stems] == [1] * len(families) and len(set.union(*stems)) == len(families)
    assert [stem(t) for t in ("glasses", "flies", "running", "this", "use", "2", "")] == [
        "glass", "fli", "run", "this", "use", "2", ""]


def naive_chain(corpus, depth):
    """Go to the best of the `depth` best that is left; where there is none, to the first that is left."""
    ids, texts, order = list(corpus), list(corpus.values()), []
    while len(order) < len(ids):
        near = []
        if order:
            scores = naive_scores(corpus[order[-1]], texts, 0.9, 0.4)
            near = sorted(range(len(ids)), key=lambda i: (-round(scores[i], 5), i))[:depth]
        order.append(next(ids[i] for i in [*near, *range(len(ids))] if ids[i] not in order))
    return order


@pytest.mark.parametrize("depth", [1, 2, 5, 32])
def test_a_chain_is_the_greedy_loop(depth):
    rng = random.Random(depth)
    for _ in range(40):
        corpus = {f"d{i}": " ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for i in rng.sample(range(99), rng.randint(1, 25))}
        assert chain(corpus, depth) == naive_chain(corpus, depth)


def test_a_chain_has_every_id_once():
    for corpus in ({}, {"ö": ""}, {"a": "...", "b": "the of"}, {str(i): "apple pie" for i in range(99)}):
        assert sorted(chain(corpus)) == sorted(corpus)
    assert chain({str(i): "apple pie" for i in range(99)}, depth=4) == [str(i) for i in range(99)]


def test_documents_without_examples_are_no_links_of_a_chain():
    """c shares words with b alone, which no example names: without b, what follows a is d."""
    corpus = {"a": "apple plum", "b": "apple plum corn rice", "c": "corn rice", "d": "apple nut"}
    examples = [Example("?", "!", d) for d in ("d", "c", "a", "a")]
    assert ordered(corpus, examples, "file") == ["a", "c", "d"] and ordered(corpus, examples, "bm25") == ["a", "d", "c"]
    assert [d for d in chain(corpus) if d != "b"] == ["a", "c", "d"], "or the test says nothing"


def test_similar_texts_are_adjacent_in_a_chain():
    corpus = {f"{word}{i}": f"{word} {word}own{i}" for i in range(5) for word in ("apple", "plum", "corn")}  # dealt in turns
    assert [text[:-1] for text in chain(corpus)] == ["apple"] * 5 + ["plum"] * 5 + ["corn"] * 5
