"""Every rule of the classroom collection that a program can check."""
import re
from collections import Counter

from bm25 import BM25
from conftest import ROOT
from data import load_collection, load_examples, read_jsonl
from evaluate import evaluate

FOLDER = ROOT / "classroom"
DOCUMENTS = [row for _, row in read_jsonl(FOLDER / "corpus.jsonl", "_id", "title", "text")]
QUERIES = [row for _, row in read_jsonl(FOLDER / "queries.jsonl", "_id", "text", "target")]
TEXT = {d["_id"]: d for d in DOCUMENTS}
COLLECTION, EXAMPLES = load_collection(FOLDER), load_examples(FOLDER)
TEST = [(row["text"], row["target"], next(iter(COLLECTION.qrels[row["_id"]]))) for row in QUERIES]
QUESTIONS = [(e.query, e.target, e.document) for e in EXAMPLES] + TEST


def family(document):
    return document.partition("/")[0]


def word(text, inside):
    return re.search(rf"(?<![a-z0-9]){re.escape(text.lower())}(?![a-z0-9])", inside.lower())


def test_sizes():
    families = Counter(family(d["_id"]) for d in DOCUMENTS)
    assert len(DOCUMENTS) == 400 and set(families.values()) == {10} and len(families) == 40
    trained, tested = {family(e.document) for e in EXAMPLES}, {family(d) for _, _, d in TEST}
    assert len(trained) == 28 and len(tested) == 12 and not trained & tested
    assert set(Counter(e.document for e in EXAMPLES).values()) == {3} and len(EXAMPLES) == 840
    assert set(Counter(d for _, _, d in TEST).values()) == {2} and len(TEST) == 240
    assert all(len(judged) == 1 for judged in COLLECTION.qrels.values())


def test_documents():
    for d in DOCUMENTS:
        assert 45 <= len(d["text"].split()) <= 70, d["_id"]
        assert re.fullmatch(r"[a-z-]+/[a-z0-9-]+", d["_id"])
        assert all(re.fullmatch(r"[ -~]+", d[name]) and "  " not in d[name] for name in ("title", "text")), d["_id"]
    assert len({d["title"] for d in DOCUMENTS}) == 400


def test_no_two_documents_share_a_sentence():
    sentences = [s for d in DOCUMENTS for s in re.split(r"(?<=[.!?])\s+", d["text"])]
    assert len(sentences) >= 3 * 400
    assert [s for s, n in Counter(sentences).items() if n > 1] == []


def test_targets_are_short_and_stand_in_their_document():
    for query, target, document in QUESTIONS:
        assert 1 <= len(target.split()) <= 6, query
        assert target in TEXT[document]["text"] and word(target, TEXT[document]["text"]), (query, target)
    assert len({(document, target.lower()) for _, target, document in QUESTIONS}) == len(QUESTIONS)


def test_questions_do_not_give_the_answer_away():
    for query, target, document in QUESTIONS:
        assert query.endswith("?") and re.fullmatch(r"[ -~]+", query) and len(query.split()) <= 25, query
        assert not word(TEXT[document]["title"], query), query
        assert not word(target, query), query
    assert len({query.lower() for query, _, _ in QUESTIONS}) == len(QUESTIONS)


def test_a_target_in_another_document_of_the_family_is_rare():
    """Uniqueness is checked by reading; this finds the careless cases, where a target fits its neighbours too."""
    shared = [q for q, target, document in QUESTIONS
              if sum(bool(word(target, d["text"])) for d in DOCUMENTS if family(d["_id"]) == family(document)) > 2]
    assert len(shared) < 0.05 * len(QUESTIONS), shared


def test_lexical_search_does_not_solve_it():
    assert 0.45 <= evaluate(BM25(), COLLECTION)["ndcg@10"] <= 0.75


def test_judgments_name_the_document_the_question_was_written_for():
    assert [row["_id"].rpartition("-")[0] for row in QUERIES] == [document for _, _, document in TEST]
