"""convert.py: other people's data as training folders, what is left out and why, and a cut with nothing on both sides."""
import copy
import gzip
import io
import json
import re
import tempfile
import tracemalloc
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT, write_collection
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from convert import first_text, jsonl, making, qrels, split, squad, stands
from data import BadInput, Example, load_collection, load_corpus, load_examples, load_qrels, load_texts

SQUAD = {"version": "v2.0", "data": [
    {"title": "Caf%C3%A9_de_Paris", "paragraphs": [
        {"context": " The café opened in 1862. ", "qas": [
            {"id": "1", "question": " When did it open?", "is_impossible": False,
             "answers": [{"text": "in 1862", "answer_start": 1}, {"text": "1862", "answer_start": 1},
                         {"text": "1862 ", "answer_start": 1}]},
            {"question": "when did it  open?", "answers": [{"text": "1862"}]},
            {"question": "Who closed it?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "x"}]},
            {"question": "Who owns it?", "answers": [{"text": " "}]},
            {"question": "", "answers": [{"text": "1862"}]}]},
        {"context": " ", "qas": [{"question": "What?", "answers": [{"text": "Nothing"}]}] * 2}]},
    {"paragraphs": [
        {"context": "Oslo is the capital of Norway.", "qas": [
            {"question": "What is Oslo?", "answers": [{"text": "the capital"}, {"text": "capital of Norway"}]},
            {"question": "When did it open?", "answers": [{"text": "Oslo"}]}]},
        {"context": "The café opened in 1862.", "qas": [
            {"question": "When did it open?", "answers": [{"text": "1862"}]},
            {"question": "What opened?", "answers": [{"text": "café"}]}]},
        {"context": "No one asks.", "qas": []}]}]}
CORPUS = [{"_id": "ö1", "title": "Po", "text": "The Po rises on Monte Viso."},
          {"_id": "2", "text": "Polenta is eaten in Italy."},
          {"_id": "3", "title": None, "text": "The Arno flows\n through Florence, in Italy."}]


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def training_rows(folder):
    return [tuple(vars(e).values()) for e in load_examples(folder)]


def refused(command, *arguments, **options):
    """A command refuses its input in one line -> that line; it writes nothing."""
    out = Path(arguments[-1])
    before = sorted(out.parent.rglob("*")) if out.parent.exists() else None
    with pytest.raises(BadInput) as error:
        command(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    assert (sorted(out.parent.rglob("*")) if out.parent.exists() else None) == before
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- SQuAD


@pytest.mark.parametrize("name, pack", [
    ("squad.json", lambda text: text), ("squad.json.gz", gzip.compress), ("squad.json", lambda text: b"\xef\xbb\xbf" + text),
    ("squad.json", lambda text: json.dumps(json.loads(text), indent=2).replace("\n", "\r\n\n").encode())])
def test_squad_by_hand(tmp_path, capsys, name, pack):
    squad(write(tmp_path / name, pack(json.dumps(SQUAD).encode())), tmp_path / "out")
    assert load_corpus(tmp_path / "out") == {
        "0-0": "Café de Paris The café opened in 1862.", "1-0": "Oslo is the capital of Norway.", "1-2": "No one asks."}
    assert training_rows(tmp_path / "out") == [
        ("When did it open?", "1862", "0-0"), ("What is Oslo?", "the capital", "1-0"), ("When did it open?", "Oslo", "1-0"),
        ("What opened?", "café", "0-0")]
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 3 documents, 4 rows of 2 of them; left out: same question to the same document: 2; "
        "unanswerable: 1; no answer: 1; no question: 1; empty paragraph: 1; question to an empty paragraph: 2; "
        "paragraph that is there already: 1\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", name])


@pytest.mark.parametrize("number", [1, 2])
def test_squad_s_rows_are_those_of_its_json(tmp_path, number, measured):
    """classroom/ in SQuAD's form, counted in the JSON itself; version 2 has questions without an answer."""
    corpus, rows = load_corpus(ROOT / "classroom"), load_examples(ROOT / "classroom")
    asked = [{"context": text, "qas": [{"id": str(i), "question": e.query, "answers": [{"text": e.target, "answer_start": text.find(e.target)}]}
                                       for i, e in enumerate(rows) if e.document == d]} for d, text in corpus.items()]
    if number == 2:
        for i, qa in enumerate(qa for paragraph in asked for qa in paragraph["qas"]):
            qa["is_impossible"] = i % 3 == 0
            if qa["is_impossible"]:
                qa.update(answers=[], plausible_answers=qa["answers"])
    tree = {"version": f"v{number}.0", "data": [{"title": "", "paragraphs": asked[i : i + 10]} for i in range(0, len(asked), 10)]}
    squad(write(tmp_path / "squad.json", json.dumps(tree)), tmp_path / "out")
    made = load_corpus(tmp_path / "out")
    found = {(query, target, made[document]) for query, target, document in training_rows(tmp_path / "out")}
    expected = {(qa["question"], qa["answers"][0]["text"], paragraph["context"]) for article in tree["data"]
                for paragraph in article["paragraphs"] for qa in paragraph["qas"] if qa["answers"]}
    assert len(expected) == (840 if number == 1 else 560)
    measured(f"SQuAD's JSON, version {number}, as a training folder: rows missing or made up", "the JSON itself", 0, len(found ^ expected))


@pytest.mark.parametrize("place, value, says", [
    ((), [], "squad.json: expected an object with 'data'"), (("data",), {}, "squad.json: 'data' is missing or not a list"),
    (("data", 0), "x", "data[0]: expected an object"), (("data", 0, "title"), 7, "data[0]: 'title' is missing or not a string"),
    (("data", 1, "paragraphs"), None, "data[1]: 'paragraphs' is missing"),
    (("data", 1, "paragraphs", 0, "context"), ["x"], "data[1].paragraphs[0]: 'context' is missing or not a string"),
    (("data", 1, "paragraphs", 1, "qas"), None, "data[1].paragraphs[1]: 'qas' is missing or not a list"),
    (("data", 1, "paragraphs", 1, "qas", 1), 3, "data[1].paragraphs[1].qas[1]: expected an object with 'question'"),
    (("data", 0, "paragraphs", 0, "qas", 0, "is_impossible"), "no", "qas[0]: 'is_impossible' is missing or not true or false"),
    (("data", 0, "paragraphs", 0, "qas", 0, "answers"), "1862", "qas[0]: 'answers' is missing or not a list"),
    (("data", 0, "paragraphs", 0, "qas", 0, "answers", 1), "1862", "qas[0].answers[1]: expected an object with 'text'"),
    (("data", 0, "paragraphs", 0, "qas", 0, "answers", 1, "text"), "\ud800", "qas[0].answers[1]: 'text' has half a surrogate"),
    (("data", 0, "paragraphs", 0, "context"), "x\udfff", "paragraphs[0]: 'context' has half a surrogate"),
    (("data",), [], "squad.json: training needs rows of two documents"),
    (("data", 1), {"paragraphs": []}, "these are of 1; left out: same question to the same document: 1; unanswerable: 1;")])
def test_squad_of_another_shape_is_refused_with_its_place(tmp_path, place, value, says):
    tree = copy.deepcopy(SQUAD)
    node = tree
    for step in place[:-1]:
        node = node[step]
    if place:
        node[place[-1]] = value
    path = write(tmp_path / "squad.json", json.dumps(tree if place else value))
    message = refused(squad, path, tmp_path / "out")
    assert message.startswith(str(path)) and says in message


@pytest.mark.parametrize("content, says", [
    (b"", ":1: not JSON"), (b"\n\n{]", ":3: not JSON"), (lines(*CORPUS).encode(), ":2: not JSON (Extra data"),
    (b"\xff\xfe", "not JSON ('utf-8'"), (b"[" * 100_000, "not JSON"), (json.dumps(SQUAD).encode("utf-16"), "not JSON"),
    (b'{"data": "\x00"}', "not JSON"), (b"\x00" * 9, "not JSON")])
def test_what_is_not_json_is_refused_with_its_line(tmp_path, content, says):
    assert says in refused(squad, write(tmp_path / "squad.json", content), tmp_path / "out")


def test_squad_is_read_whole_and_nothing_is_copied_needlessly(tmp_path):
    paragraphs = [{"context": f"{i} " + "word " * 400, "qas": [{"question": "Q?", "answers": [{"text": str(i)}]}]}
                  for i in range(2000)]
    path = write(tmp_path / "squad.json", json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    del paragraphs
    tracemalloc.start()
    squad(path, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * path.stat().st_size  # its bytes, their text, what json makes of it; stripped paragraphs


# --------------------------------------------------------------------------------------------- judgments, plain rows


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    write(folder / "corpus.jsonl", lines(*CORPUS))
    write(folder / "queries.jsonl", lines(*({"_id": f"q{i}", "text": f"Question {i}?"} for i in range(5))))
    write(folder / "qrels" / "train.tsv",
          "query-id\tcorpus-id\tscore\nq1\tö1\t2\nq1\t2\t1\nq1\t3\t0\nq0\t3\t1\nq2\tgone\t1\nq3\t3\t1\nq0\tö1\t-1\n")
    write(tmp_path / "answers.jsonl", lines(
        {"_id": "q0", "answer": "Florence"}, {"_id": "q1", "answer": None, "target": {"text": ["", "Italy"]}}, {"_id": "q2", "answer": "x"},
        {"_id": "q3", "answer": []}, {"_id": "q4", "answer": "x"}))
    return folder


def test_judgments_by_hand(tmp_path, capsys, beir):
    qrels(beir, tmp_path / "answers.jsonl", tmp_path / "out")
    assert load_corpus(tmp_path / "out") == load_corpus(beir)
    assert training_rows(tmp_path / "out") == [
        ("Question 1?", "Italy", "ö1"), ("Question 1?", "Italy", "2"), ("Question 0?", "Florence", "3")]
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 3 documents, 3 rows of 3 of them; left out: judged not relevant: 2; "
        "document not in the corpus: 1; no answer: 1; answer to a question that is not judged: 1\n")
    (beir / "qrels" / "train.tsv").rename(beir / "qrels" / "dev.tsv")
    data.main(["qrels", str(beir), str(tmp_path / "answers.jsonl"), str(tmp_path / "again"), "--split", "dev"])
    assert training_rows(tmp_path / "again") == training_rows(tmp_path / "out")
    assert "train.tsv: no such file; --split" in refused(qrels, beir, tmp_path / "answers.jsonl", tmp_path / "third")


@pytest.mark.parametrize("file, content, says", [
    ("answers.jsonl", lines({"_id": "q0", "answer": "x"}) * 2, "answers.jsonl:2: the id 'q0' stands twice"),
    ("answers.jsonl", '\n{"_id": "q0"}\n', "answers.jsonl:2: the field 'answer' is missing"),
    ("answers.jsonl", '{"_id": 7, "answer": "x"}\n', "answers.jsonl:1: the field '_id'"),
    ("answers.jsonl", '{"_id": "q0", "answer": 1.5}\n', "answers.jsonl:1: the answer is no text"),
    ("answers.jsonl", "", "training needs rows of two documents or more, and these are of 0; left out: no answer: 5;"),
    ("beir/qrels/train.tsv", "query-id\tcorpus-id\tscore\nzz\t2\t1\n", "'zz' is judged, but queries.jsonl"),
    ("beir/corpus.jsonl", lines(*CORPUS, CORPUS[1]), "corpus.jsonl:4: the id '2' stands twice"),
    ("beir/queries.jsonl", "", "queries.jsonl: empty")])
def test_wrong_judgments_and_answers_are_refused(tmp_path, beir, file, content, says):
    write(tmp_path / file, content)
    assert says in refused(qrels, beir, tmp_path / "answers.jsonl", tmp_path / "out")


def test_rows_with_and_without_documents(tmp_path, capsys):
    corpus = write(tmp_path / "corpus" / "corpus.jsonl", lines(*CORPUS))
    rows = write(tmp_path / "rows.jsonl", lines(
        {"query": "Where does it rise?", "target": "Monte Viso", "document": "2"},  # what a row says is taken
        {"query": "Where does it rise?", "target": "monte  viso", "document": ""},
        {"query": "What is eaten?", "target": "Po"}, {"query": "What is through Florence?", "target": "flows through"},
        {"query": "What is eaten?", "target": "Pizza in Italy"}, {"query": "Why?", "target": None},
        {"query": " ", "target": "Po"}, {"query": "Where?", "target": "Po", "document": "gone"},
        {"query": "where DOES it rise?", "target": "Viso", "document": None}, {"query": "The what?", "target": "Zzz"}))
    jsonl(rows, corpus, tmp_path / "out")
    assert training_rows(tmp_path / "out") == [
        ("Where does it rise?", "Monte Viso", "2"), ("Where does it rise?", "monte  viso", "ö1"),
        ("What is eaten?", "Po", "ö1"), ("What is through Florence?", "flows through", "3")]
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 3 documents, 4 rows of 3 of them, 3 rows placed by BM25; left out: "
        "answer in none of BM25's 10 best documents: 2; no answer: 1; no question: 1; document not in the corpus: 1; "
        "same question to the same document: 1\n")
    jsonl(rows, corpus.parent, tmp_path / "loose", loose=True)  # a folder; with BM25's first, if a word is in it at all
    more = set(training_rows(tmp_path / "loose")) - set(training_rows(tmp_path / "out"))
    assert more == {("What is eaten?", "Pizza in Italy", "2")}
    assert load_corpus(tmp_path / "loose") == load_corpus(tmp_path / "corpus")


def test_fields_of_other_names_and_nested_answers(tmp_path):
    corpus = write(tmp_path / "corpus.jsonl.gz", gzip.compress(lines(*CORPUS, {"_id": "7", "text": "In 1999."}).encode()))
    rows = write(tmp_path / "rows.jsonl", lines(
        {"question": "Where?", "answers": {"text": ["", "Viso"], "answer_start": [3, 4]}, "context_id": 7},
        {"question": ["What?"], "answers": [[], {"text": "Italy"}, "Po"], "context_id": None},
        {"question": "When?", "answers": 1999}))
    fields = ["--query-field", "question", "--target-field", "answers", "--document-field", "context_id"]
    data.main(["jsonl", str(rows), str(corpus), str(tmp_path / "out"), *fields])
    assert training_rows(tmp_path / "out") == [("Where?", "Viso", "7"), ("What?", "Italy", "2"), ("When?", "1999", "7")]


@pytest.mark.parametrize("rows, says", [
    ('{"question": "x", "target": "y"}', "rows.jsonl:1: the field 'query' is missing; there: 'question', 'target'; "
                                         "name another with --query-field"),
    ('\n{"query": "x"}', "rows.jsonl:2: the field 'target' is missing"), ('["x"]', "rows.jsonl:1: expected an object"),
    ('{"query": "x", "target": {"a": "y"}}', "rows.jsonl:1: the field 'target' is no text"),
    ('{"query": true, "target": "y"}', "rows.jsonl:1: the field 'query' is no text"),
    ('{"query": "x", "target": "y", "document": 1.0}', "rows.jsonl:1: the field 'document' is no text"),
    ('{"query": "x", "target": ' + "[" * 300 + "]" * 300 + "}", "rows.jsonl:1: the field 'target' is no text"),
    ('{"query": "x", "target": "\\ud800"}', "rows.jsonl:1: not a line of JSON"), ("", "rows of two documents"),
    ('{"query": "Where?", "target": "Viso"}', "these are of 1; left out: nothing")])
def test_wrong_rows_are_refused(tmp_path, rows, says):
    corpus = write(tmp_path / "corpus.jsonl", lines(*CORPUS))
    assert says in refused(jsonl, write(tmp_path / "rows.jsonl", rows), corpus, tmp_path / "out")


def test_a_field_of_documents_that_no_row_has_is_refused(tmp_path):
    """The default's may be absent: BM25 finds the documents then. A misspelt name must not end like that."""
    rows, corpus = write(tmp_path / "rows.jsonl", '{"query": "x", "target": "y", "context_id": "a"}'), write(tmp_path / "corpus.jsonl", lines(*CORPUS))
    with pytest.raises(BadInput, match="no row has the field 'contxt_id'"):
        jsonl(rows, corpus, tmp_path / "out", document_field="contxt_id")
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(tmp_path, beir):
    none, corpus = tmp_path / "none", beir / "corpus.jsonl"
    for command, *arguments in ((squad, none), (jsonl, none, corpus), (jsonl, corpus, none), (qrels, beir, none),
                                (qrels, none, corpus), (split, none), (split, beir)):
        message = refused(command, *arguments, tmp_path / "out")
        assert message.startswith((f"{none}: no such f", f"{beir / 'train.jsonl'}: no such file"))


def test_a_target_stands_in_whole_words():
    assert stands("Po", "the PO.") and not stands("Po", "Pole, Tempo") and stands("cafe\u0301  x", "Ein Café\nX!")
    assert stands("$5", "US$5 each") and not stands("$5", "$50") and stands("(b)", "a(b)c") and not stands("a.b", "axb")
    assert stands("STRASSE", "straße") and not stands("1999", "21999")
    assert not stands("400", "1,400 men, 1.400 miles") and not stands("1", "1,400") and stands("2020", "3.4.2020") and stands("2", "1,2,3")
    assert stands("400", "1,400, then 400. 5 more") and stands("Po", "3.Po,3")


def test_the_first_text():
    for value in ("x", " x ", ["", "x"], [None, " ", ["x"]], {"text": "x"}, {"text": [" ", "x", "y"], "start": [1]}):
        assert first_text(value, "") == "x"
    for value in (None, "", [], [[], ""], {"text": []}):
        assert first_text(value, "") == ""
    assert first_text(42, "") == "42"


# -------------------------------------------------------------------------------------------------- whole or nothing


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    for place in (tmp_path / "out", tmp_path / "a" / "b" / "out"):
        with pytest.raises(KeyboardInterrupt), making(place) as part:
            (part / "half").write_text("x")
            raise KeyboardInterrupt
        with pytest.raises(BadInput, match="out: cannot be written .No space left"), making(place):
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.part").mkdir()  # somebody else's
    with making(tmp_path / "out") as part:
        (part / "whole").write_text("x")
    with making(tmp_path / "a" / "b"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "out", "out.part", "whole"]


def test_what_is_there_is_never_touched(tmp_path):
    path = write(tmp_path / "squad.json", json.dumps(SQUAD))
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for place in (tmp_path / "out", path, tmp_path / "link"):
        assert refused(squad, path, place) == f"{place} is there already; name a new folder"
    for place in (path / "below", tmp_path / ("x" * 300)):
        assert "cannot be written" in refused(squad, path, place)


# ------------------------------------------------------------------------------------------------------------- split


def articles(tmp_path, number=20):
    """Articles of 3 paragraphs with 3 questions each, 10 untitled documents, and what a careless cut would leak."""
    corpus = [{"_id": f"{a}/{p}", "title": f"Title {a}", "text": f"Text {a} {p}."} for a in range(number) for p in range(3)]
    corpus += [{"_id": f"u{i}", "title": "", "text": f"Untitled {i // 2}."} for i in range(10)]  # in pairs
    corpus += [{"_id": "twin", "title": "Another", "text": " text 3  1."}]  # of 3/1
    rows = [{"query": f"{q}: {row['_id']}?", "target": "x", "document": row["_id"]} for row in corpus for q in "ab"]
    rows += [{"query": " What is  it?", "target": "x", "document": row["_id"]} for row in corpus]  # of all, before their own
    rows = rows[-len(corpus):] + rows[:-len(corpus)]
    write(tmp_path / "data" / "corpus.jsonl", lines(*corpus))
    write(tmp_path / "data" / "train.jsonl", lines(*rows))
    return tmp_path / "data"


@pytest.mark.parametrize("share, seed", [(0.06, 0), (0.3, 0), (0.3, 1), (0.6, 2), (0.95, 3)])
def test_a_cut_leaves_nothing_on_both_sides(tmp_path, capsys, share, seed):
    folder = articles(tmp_path)
    split(folder, tmp_path / "cut", share, seed)
    told = capsys.readouterr().out
    train, dev = load_examples(tmp_path / "cut" / "train"), load_collection(tmp_path / "cut" / "dev")
    titles, texts = [], []
    for side in ("train", "dev"):
        rows = [json.loads(line) for line in open(tmp_path / "cut" / side / "corpus.jsonl", encoding="utf-8")]
        titles.append({row["title"] for row in rows if row["title"]})
        texts.append({" ".join(row["text"].lower().split()) for row in rows})
    kept, whole = load_corpus(tmp_path / "cut" / "train"), load_corpus(folder)
    assert {**kept, **dev.corpus} == whole and len(kept) + len(dev.corpus) == len(whole)
    assert not titles[0] & titles[1] and not texts[0] & texts[1]
    assert len(whole) * share - 3 < len(dev.corpus) <= len(whole) * share or share > 0.9
    assert train == [e for e in load_examples(folder) if e.document in kept]
    assert not {e.query.lower() for e in train} & {q.lower() for q in dev.queries.values()}
    own = {(e.query, e.document) for e in load_examples(folder)}
    assert dev.qrels == {f"q-{d}": {d: 1} for d in dev.corpus}  # one question each
    assert all((text, q.removeprefix("q-")) in own for q, text in dev.queries.items())
    left, n = len(whole) - len(dev.corpus), len(dev.corpus)
    assert told == (f"{tmp_path / 'cut'}/train: {left} documents, {3 * left} rows; {tmp_path / 'cut'}/dev: {n} documents, "
                    f"{n} questions; left out of dev: asked in training too: {n}; second question to a document: {n}\n")


def test_the_seed_decides_the_cut(tmp_path):
    folder, cuts = articles(tmp_path), []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        data.main(["split", str(folder), str(tmp_path / name), "--share", ".2", "--seed", str(seed)])
        cuts.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert cuts[0] == cuts[1] != cuts[2]


def test_a_cut_that_cannot_be_made_is_refused(tmp_path):
    folder = articles(tmp_path)
    for share in (0, 1, -1, float("nan"), 7):
        assert "--share must lie between 0 and 1" in refused(split, folder, tmp_path / "out", share=share)
    assert "use another --share" in refused(split, folder, tmp_path / "out", share=0.01)
    two = write_collection(tmp_path / "two", 2)
    assert "use another --share" in refused(split, two, tmp_path / "out", share=0.5)  # one document is nothing to train on
    write(folder / "corpus.jsonl", lines({"_id": "a", "text": "x"}, {"_id": "b\tc", "text": "y"}))
    write(folder / "train.jsonl", lines(*({"query": "Q?", "target": "x", "document": d} for d in ("a", "b\tc"))))
    assert "corpus.jsonl:2: the id 'b\\tc' has a tab" in refused(split, folder, tmp_path / "out", share=0.5)


# ------------------------------------------------------------------------------------------------------ broken files


INSIDE = [b"\xed\xa0\x80", b"\\ud800", b"\\udfff", b"\\u0000", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\t", b"\\n", b"\t", b"\\",
          b"%", "é\u2028".encode()]  # a text
SPECIAL = [b"", b"null", b"[", b"]", b"{", b"}", b'"', b"\n", b"\r", b"\t", b" ", b"NaN", b"1e999", b"9" * 5000, b"-1", b"[]",
           b"{}", b'""', b'" "', b"true", b",", b":", b'"a"', b'["x"]', b'{"text": "x"}', b"[" * 3000, *INSIDE]
TOKEN = re.compile(rb'"[^"]*"|[\[\]{},:\t\n]|[^"\[\]{},:\t\n]+')
FILES = {
    "corpus.jsonl": lines(*CORPUS).encode(),
    "train.jsonl": lines({"query": "Where?", "target": "Viso", "document": "ö1"},
                         {"query": "Through?", "target": "Florence", "document": "3"},
                         {"query": "What?", "target": "Italy", "document": "2"}).encode(),
    "test.tsv": "query-id\tcorpus-id\tscore\nq1\tö1\t2\nq1\t2\t-1\nq0\t3\t0\n".encode(),
    "rows.jsonl": lines({"query": "Where?", "target": {"text": ["Viso"]}}, {"query": "What?", "target": "Italy"}).encode(),
    "squad.json": json.dumps({"data": SQUAD["data"][1:] * 2}, ensure_ascii=False).encode()}


@st.composite
def broken(draw, file):
    """A name and bytes: anything at all, or a whole file with some of its tokens or bytes changed; some compressed."""
    tokens = TOKEN.findall(FILES[file])
    for kind in draw(st.lists(st.sampled_from(["text", "text", "token", "cut"]), max_size=2)):
        at = draw(st.integers(0, max(len(tokens) - 1, 0)))
        if kind == "text":
            texts = [i for i, token in enumerate(tokens) if re.search(rb"\w", token)] or [0]
            at = texts[at % len(texts)]
            old = b"".join(tokens[at : at + 1])
            tokens[at : at + 1] = [old[:-1] + draw(st.sampled_from(INSIDE)) + old[-1:]]
        else:
            end = at + draw(st.integers(0, 2 if kind == "token" else len(tokens)))
            tokens[at:end] = [draw(st.sampled_from(SPECIAL) | st.sampled_from(tokens or [b""]))]
    content = b"".join(tokens)
    kind = draw(st.sampled_from(["plain"] * 6 + ["gzip", "cut", "flipped", "anything"]))
    if kind == "anything":
        content = draw(st.binary(max_size=60))
    if kind == "gzip" or kind in ("cut", "flipped") and draw(st.booleans()):
        content, file = gzip.compress(content, mtime=0), f"{file}.gz"
    if kind in ("cut", "flipped") and content:
        at = draw(st.integers(0, len(content) - 1))
        rest = bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        content = content[:at] + (rest if kind == "flipped" else b"")
    return file, content


def attempt(run):
    """Whether it works; else it must raise BadInput, in one line."""
    try:
        run()
    except BadInput as error:
        assert len(str(error).splitlines()) == 1
        return False
    return True


def fuzzed(file, examples):
    def decorate(test):
        @settings(derandomize=True, deadline=None, database=None, max_examples=examples)
        @given(broken(file))
        def run(drawn):
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                folder = Path(folder)
                for name in ("corpus.jsonl", "train.jsonl"):
                    if not drawn[0].startswith(name):
                        (folder / name).write_bytes(FILES[name])
                (folder / drawn[0]).write_bytes(drawn[1])
                before = sorted(folder.rglob("*"))
                made = test(folder, folder / drawn[0])
                assert made or sorted(folder.rglob("*")) == before
        run.__name__ = test.__name__
        return run
    return decorate


@fuzzed("corpus.jsonl", 150)
def test_any_corpus_loads_or_is_refused(folder, path):
    if attempt(lambda: load_texts(path)):
        assert all(isinstance(text, str) and text.encode() is not None for pair in load_texts(path).items() for text in pair)
    attempt(lambda: load_examples(folder))


@fuzzed("test.tsv", 150)
def test_any_judgments_load_or_are_refused(folder, path):
    if attempt(lambda: load_qrels(path)):
        assert all(type(n) is int and d.encode() + q.encode() is not None for q, judged in load_qrels(path).items()
                   for d, n in judged.items())


@fuzzed("train.jsonl", 150)
def test_any_training_rows_load_or_are_refused(folder, path):
    if attempt(lambda: load_examples(folder)):
        assert all(isinstance(e, Example) and e.query and e.target for e in load_examples(folder))


@fuzzed("squad.json", 300)
def test_any_squad_is_made_whole_or_refused(folder, path):
    return attempt(lambda: squad(path, folder / "out")) and made_whole(folder / "out")


@fuzzed("rows.jsonl", 200)
def test_any_rows_are_made_whole_or_refused(folder, path):
    return attempt(lambda: jsonl(path, folder, folder / "out")) and made_whole(folder / "out")


@fuzzed("corpus.jsonl", 150)
def test_any_training_folder_is_cut_whole_or_not_at_all(folder, path):
    if attempt(lambda: split(folder, folder / "out", 0.4)):
        return load_collection(folder / "out" / "dev").queries and load_examples(folder / "out" / "train")


def made_whole(out):
    """What was made loads, and no half file lies beside it."""
    assert load_examples(out) and sorted(p.name for p in out.iterdir()) == ["corpus.jsonl", "train.jsonl"]
    assert not list(out.parent.glob("*.part"))
    return True


def test_a_split_keeps_what_else_stands_in_a_row(tmp_path):
    folder = write_collection(tmp_path / "folder", documents=12)
    rows = [{**json.loads(line), "kind": "name", "gain": i / 8} for i, line in enumerate((folder / "train.jsonl").read_text().splitlines())]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split(folder, tmp_path / "out", share=0.2)
    kept = [json.loads(line) for line in (tmp_path / "out" / "train" / "train.jsonl").read_text().splitlines()]
    there = load_corpus(tmp_path / "out" / "train")
    assert kept == [row for row in rows if row["document"] in there] and 0 < len(kept) < len(rows)
