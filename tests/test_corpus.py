"""Training rows from raw documents: every promise about a row is checked on made corpora, by means of its own."""
import gzip
import json
import random
import re

import pytest
import torch

import corpus
import cut
from cloze import Document, Row, Words, cut_sentences, lines_wrap, make_rows, stands_in
from commands import main
from conftest import tiny_llm, tiny_tokenizer
from data import BadInput, load_corpus, load_examples

SOUNDS = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "ze"]


def word(generator, n=3):
    return "".join(generator.choice(SOUNDS) for _ in range(n))


def write_made(path, documents=40, capitals=True, seed=0, title=True):
    """Documents of 12 sentences, each about something else; a name, a term, a year and a phrase stand in three of them."""
    generator, rows = random.Random(seed), []
    for d in range(documents):
        name, term, pair, year = word(generator), word(generator, 4), f"{word(generator)} {word(generator)}", str(1500 + d)
        said = [name.title() if capitals else name, term, pair, year]
        sentences = []
        for s in range(12):
            one = [word(generator) for _ in range(9)]
            one.insert(generator.randrange(2, 8), said[s % 4])
            for k in (1, 5):
                one.insert(k, generator.choice(("the", "of", "in")))
            one[0] = one[0].title() if capitals else one[0]
            sentences.append(" ".join(one) + (". " if capitals else " . "))
        rows.append({"_id": f"d{d}", "title": f"about {word(generator)}" if title else "", "text": "".join(sentences).strip()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["_id"]: row for row in rows}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def check_rows(before, out, per_document=3):
    """What every made folder must keep; returns its rows."""
    rows, after = read(out / "train.jsonl"), {d["_id"]: d for d in read(out / "corpus.jsonl")}
    assert list(after) == list(before) and {d["title"] for d in after.values()} == {d["title"] for d in before.values()}
    asked = {}
    for row in rows:
        asked.setdefault(row["document"], []).append(row)
        source = after[row["document"]]
        assert re.search(rf"(?<!\w){re.escape(row['target'])}(?!\w)", f"{source['title']} {source['text']}")
        assert plain(row["target"]) not in plain(row["query"])
        assert 1 <= len(row["target"].split()) <= 6
    everything = "\n".join(plain(f"{d['title']} {d['text']}") for d in after.values())
    for id, document in before.items():
        own, left = asked.get(id, []), after[id]["text"]
        assert len(own) <= per_document and len({r["target"] for r in own}) == len(own)
        if not own:
            assert left == document["text"]
            continue
        kept = {left[a:b].strip() for a, b in cut_sentences(left)}
        gone = [s for a, b in cut_sentences(document["text"]) if (s := document["text"][a:b].strip()) not in kept]
        assert len(gone) == len(own)  # as many sentences as rows
        assert 2 * len(left.split()) >= len(document["text"].split())
        for sentence in gone:
            assert plain(sentence) not in everything  # neither here nor in another document
        for row in own:  # made of one of them
            assert any(set(plain(row["query"]).split()) <= set(plain(sentence + " " + document["title"] + " ___").split())
                       and row["target"] in sentence for sentence in gone)
    return rows


@pytest.mark.parametrize("capitals", [True, False])
def test_rows_of_a_made_corpus_keep_every_promise(tmp_path, capitals):
    before = write_made(tmp_path / "in.jsonl", capitals=capitals)
    main(["corpus", str(tmp_path / "in.jsonl"), str(tmp_path / "out"), "--llm", "none"])
    rows = check_rows(before, tmp_path / "out")
    assert len(rows) > 100 and len({r["document"] for r in rows}) == 40  # several of a document
    assert {r["kind"] for r in rows} == ({"name", "number", "phrase", "term"} if capitals else {"number", "phrase", "term"})
    assert len(load_examples(tmp_path / "out")) == len(rows) and len(load_corpus(tmp_path / "out")) == 40
    queries = [r["query"] for r in rows]
    assert any("___" in q and q.endswith("?") for q in queries) and any("___" not in q for q in queries)
    assert any("___" in q and not q.endswith("?") for q in queries)


def test_queries_read_less_like_their_source_than_the_sentences(tmp_path):
    before = write_made(tmp_path / "in.jsonl", seed=3)
    corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="none")
    lengths = {len(r["query"].split()) for r in read(tmp_path / "out" / "train.jsonl")}
    longest = max(len(before["d0"]["text"][a:b].split()) for a, b in cut_sentences(before["d0"]["text"]))
    assert min(lengths) < longest - 4 and len(lengths) > 4


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(tmp_path):
    write_made(tmp_path / "in.jsonl")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpus.make_folder(tmp_path / "in.jsonl", tmp_path / name, llm="none", seed=seed)
    one, same, other = ([(tmp_path / name / file).read_bytes() for file in ("corpus.jsonl", "train.jsonl")] for name in "abc")
    assert one == same and one[0] != other[0] and one[1] != other[1]


def test_rows_stops_early_and_per_document_limits(tmp_path):
    before = write_made(tmp_path / "in.jsonl")
    corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "few", llm="none", rows=10, per_document=1)
    rows = check_rows(before, tmp_path / "few", per_document=1)
    assert 10 <= len(rows) < 10 + corpus.BATCH  # "about": the batch in which the tenth comes is done
    assert len({r["document"] for r in rows}) == len(rows)


def test_targets_stand_in_the_part_that_the_judge_reads(tmp_path):
    write_made(tmp_path / "in.jsonl", title=False)
    corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="none", document_tokens=40)
    texts = load_corpus(tmp_path / "out")
    rows = read(tmp_path / "out" / "train.jsonl")
    assert rows and all(stands_in(" ".join(texts[r["document"]].split()[:40]), r["target"]) for r in rows)


GERMAN = ["Die Burg Falkenstein steht über dem Tal der Selke. Im Jahr 1490 wurde die Anlage an einen Grafen verkauft. "
          "Besucher erreichen Falkenstein zu Fuß durch einen dichten Buchenwald. Seit 1490 blieb das Tor unverändert erhalten.",
          "Der Maler Lindqvist lebte lange an der Küste. Seine Bilder zeigen oft Leuchttürme bei stürmischem Wetter. "
          "Kritiker lobten Lindqvist wegen seiner kräftigen Farben. Drei Leuchttürme hängen heute in einem Museum."]
SPANISH = ["El puente de Zubizarra cruza el río desde hace siglos. Los vecinos pintaron las barandillas de un verde oscuro. "
           "Cada verano miles de turistas fotografían Zubizarra desde las barcas. Las barandillas fueron cambiadas tras una riada.",
           "La poeta Etxeberria nació en un pueblo minero. Sus versos hablan de carbón y de hermanos perdidos. "
           "La crítica comparó a Etxeberria con otros autores del norte. El carbón aparece también como metáfora del tiempo."]
RUSSIAN = ["Крепость Корела стоит на берегу быстрой реки. Каменные башни построили шведские мастера. "
           "Сегодня музей в крепости Корела принимает много туристов. Высокие башни видны издалека в ясную погоду.",
           "Художник Верещагин много путешествовал по востоку. Картины показывают жестокость любой войны. "
           "Музеи столицы хранят лучшие работы, которые Верещагин написал. Зрители смотрят на картины молча и долго."]
CODE = ["def widest_gap(values):\n    ordered = sorted(values)\n    distances = [b - a for a, b in zip(ordered, ordered[1:])]\n"
        "    return max(distances, default=0)",
        "import heapq\ndef merge_streams(streams):\n    pending = [next(stream) for stream in streams]\n    heapq.heapify(pending)\n"
        "    return heapq.nsmallest(9, pending)"]


@pytest.mark.parametrize("texts", [GERMAN, SPANISH, RUSSIAN, CODE])
def test_other_languages_and_code_give_rows(tmp_path, texts):
    before = {f"d{i}": {"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(d) + "\n" for d in before.values()))
    corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="none")
    assert len({r["document"] for r in check_rows(before, tmp_path / "out")}) == 2


def test_a_hand_worked_document():
    text = ("The ferry to Hestmona leaves at noon. Sailors painted the old lighthouse red. "
            "Tourists visit Hestmona because seals rest on its beaches.")
    documents = {"a": ("", text), "b": ("", "Nothing here is repeated at all.")}
    document = Document("a", *documents["a"], Words(documents))
    rows = make_rows(document, 3, lambda text: text, random.Random(0))
    assert [(r.target, r.kind) for r in rows] == [("Hestmona", "name")]
    assert rows[0].sentence in (0, 2)
    assert document.without({0}) == text.partition(". ")[2] and document.without({2}) == text[: text.index(" Tourists")]


def test_what_no_language_has_as_a_word_is_neither_asked_nor_asked_for():
    """A key or a dump of hundreds of characters: the LLM would read a question of so many tokens."""
    blob, name = "f0" * 300, "fc" * 300
    text = f"Vik is a village in Norway. The church of Vik is built of wood {blob} and stone. It has 3,000 people. People say {blob} there."
    others = {"b": ("", "The Eiffel Tower stands in Paris. It was built in 1889.")} | {str(i): ("", f"Number {i} is filler.") for i in range(60)}
    for seed in range(12):
        rows = make_rows(Document("a", name, text, Words({"a": (name, text), **others})), 3, lambda text: text, random.Random(seed))
        assert rows and all(len(r.query) < 120 and r.target == "Vik" for r in rows)


def test_letters_are_one_character_each(tmp_path):
    """However they were typed: PDFs and macOS have an accent as a character of its own, at which a word would end."""
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "u\u0308", "title": "Mu\u0308ller", "text": "Cafe\u0301"}))
    assert corpus.read_raw(tmp_path) == {"u\u0308": ("M\u00fcller", "Caf\u00e9")}


def test_a_sentence_that_stands_twice_asks_nothing():
    """In another document, as a part of a longer sentence, and as a title, with other marks and capitals."""
    copies = ["The ferry to Hestmona leaves at noon.", "Tourists visit Hestmona because seals rest there."]
    text = " ".join(copies) + " Sailors painted the lighthouse red. Dogs chased gulls along the harbour wall."
    alone = {"a": ("", text), "b": ("", "Nothing at all.")}
    assert make_rows(Document("a", "", text, Words(alone)), 3, lambda text: text, random.Random(0))
    for second in (("", "He said: the ferry to hestmona leaves at noon, and left. So tourists visit Hestmona - because seals rest there."),
                   (" ".join(copies).lower(), "Nothing.")):
        both = {"a": ("", text), "b": second}
        assert make_rows(Document("a", "", text, Words(both)), 3, lambda text: text, random.Random(0)) == []


def test_at_most_one_target_of_a_document_is_in_its_title(tmp_path):
    text = ("Marta Kovak wrote nine novels about miners. Readers liked Kovak for her dry humour. A street remembers Marta near "
            "the harbour. Students still read what Kovak wrote. Her sister painted portraits of Marta twice.")
    documents = {"a": ("Marta Kovak", text), "b": ("", "Nothing.")}
    for seed in range(10):
        rows = make_rows(Document("a", *documents["a"], Words(documents)), 3, lambda text: text, random.Random(seed))
        assert sum(bool({"Marta", "Kovak"} & set(r.target.split())) for r in rows) == 1


def test_sentences_end_where_they_should():
    def cut(text, abbreviations=()):
        sentences = [text[a:b] for a, b in cut_sentences(text, abbreviations)]
        assert "".join(sentences) == text
        return [s.strip() for s in sentences]

    assert cut("He met J. R. Smith in the U.S. Army. It rained!") == ["He met J. R. Smith in the U.S. Army.", "It rained!"]
    assert cut('"Who?" he asked. Nobody knew.') == ['"Who?" he asked.', "Nobody knew."]
    assert cut("mach 1.5 flow . the wing was cut . done") == ["mach 1.5 flow .", "the wing was cut .", "done"]
    assert cut("it costs 5 mg. of salt. it is good.", {"mg"}) == ["it costs 5 mg. of salt.", "it is good."]
    assert cut("def f(x):\n    return x\n") == ["def f(x):", "return x"]
    wrapped = "A long line of prose that goes on until there is no room\nfor another word, so that it is broken where it must be,\nand ends."
    assert lines_wrap(wrapped) and cut(wrapped) == [wrapped]
    paragraphs = f"{wrapped}\n\n{wrapped[:-10]}\n  \nThe last one, too, goes on and on, until it must be cut\nsomewhere"
    assert lines_wrap(paragraphs) and cut(paragraphs) == [wrapped, wrapped[:-10], paragraphs.rpartition("\n  \n")[2]]
    assert not lines_wrap(f"{wrapped}\n\nA list of\nthis and\nthat")
    assert cut("") == []


def test_abbreviations_are_learned_from_the_corpus():
    documents = {str(i): ("", f"The dose was {i} mg. The patient of Dr. Moe got it at noon. Since noon it is over.") for i in range(4)}
    assert Words(documents).abbreviations == {"mg", "dr"}


def test_a_text_file_is_cut_at_blank_lines(tmp_path):
    text = "\ufefffirst line\nsecond line\n\n \n\tthird\n\n\nfourth"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    expected = {"1": ("", "first line\nsecond line"), "2": ("", "\tthird"), "3": ("", "fourth")}
    assert corpus.read_raw(tmp_path / "a.txt") == corpus.read_raw(tmp_path / "b.txt.gz") == expected


def test_folders_compressed_files_empty_and_one_sentence_documents(tmp_path):
    before = write_made(tmp_path / "plain.jsonl", documents=6)
    before |= {"empty": {"_id": "empty", "title": "", "text": ""}, "one": {"_id": "one", "title": "One Vik", "text": "Here is Vik again."},
               "title": {"_id": "title", "title": "Only a title", "text": ""}}
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps(d) + "\n" for d in before.values())
    (tmp_path / "in" / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    corpus.make_folder(tmp_path / "in", tmp_path / "out", llm="none")
    assert {r["document"] for r in check_rows(before, tmp_path / "out")} == {f"d{i}" for i in range(6)}


@pytest.mark.parametrize("name, content, told", [
    ("a.jsonl", b"", "empty"), ("a.txt", b"\n\n", "empty"), ("a.txt", b"fine\n\xff\n", "a.txt:2: not UTF-8"), ("a.txt", b"fine\nb\0d\n", "a.txt:2: has a NUL"),
    ("a.jsonl", b'{"_id": "1"}\n', "a.jsonl:1: the field 'text'"), ("a.csv", b"x", "expected a .jsonl file"),
    ("a.jsonl", b'{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', "a.jsonl:2: the id '1' stands twice"),
    ("a.jsonl", b'{"_id": "1", "text": "a", "title": 3}\n', "a.jsonl:1: the field 'title'"),
    ("a.txt", b"One document alone, without any repetition.", "training needs two documents")])
def test_bad_input_is_told_and_leaves_nothing(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(told)):
        corpus.make_folder(tmp_path / name, tmp_path / "out", llm="none")
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_bad_options_and_places_are_told(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        corpus.make_folder(tmp_path / "none.jsonl", tmp_path / "out")
    write_made(tmp_path / "in.jsonl", documents=4)
    for option in ("rows", "per_document", "document_tokens"):
        with pytest.raises(BadInput, match=f"--{option.replace('_', '-')} must be at least"):
            corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="none", **{option: -1})
    with pytest.raises(BadInput, match="unknown backbone"):
        corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="nobody")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="is there already"):
        corpus.make_folder(tmp_path / "in.jsonl", tmp_path / "out", llm="none")


# ---------------------------------------------------------------------------------------------------------- the judge


def naive_nll(llm, tokenizer, context, row):
    """A target's mean loss in one stock forward pass over the whole prompt."""
    prompt = tokenizer(f"{context}Question: {row.query}\nAnswer:").input_ids
    target = tokenizer(f" {row.target}\n").input_ids
    logits = llm(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()


def test_gain_is_that_of_naive_full_sequences(tiny_folder):
    judge, tokenizer, llm = corpus.Judge(tiny_folder, 30), tiny_tokenizer(), tiny_llm(seed=1)
    rows = [Row("who made ___?", "Ann", "a", "name", 0), Row("what is", "1923", "a", "number", 1), Row("___ of wood", "a red box", "b", "phrase", 0)]
    texts = ["Ann made it in 1923.", "It is a red box, which is longer than thirty bytes."]
    found = judge.gains([(texts[0], rows[:2]), (texts[1], rows[2:])])
    assert [len(x) for x in found] == [2, 1]
    introduction = "Answer the questions using the documents.\n\n"
    for row, gain, text in zip(rows, sum(found, []), (texts[0], texts[0], texts[1])):
        read = (" " + text).encode()[:30].decode()  # one token is a byte
        expected = (naive_nll(llm, tokenizer, introduction, row)
                    - naive_nll(llm, tokenizer, f"{introduction}Document 1:{read}\n\n", row))
        assert gain == pytest.approx(expected, abs=1e-4)
    assert cut.visible(judge.prompts, texts[1]) == (" " + texts[1])[:30]


def test_the_llm_judges_in_the_precision_that_is_asked_for(tmp_path, tiny_folder, monkeypatch):
    write_made(tmp_path / "in.jsonl", documents=10, seed=5)
    seen, gains = [], corpus.Judge.gains
    monkeypatch.setattr(corpus.Judge, "gains", lambda judge, sources: seen.append(judge.llm.dtype) or gains(judge, sources))
    monkeypatch.setattr(corpus, "MIN_GAIN", -100)
    for dtype in ("float32", "bfloat16"):
        main(["corpus", str(tmp_path / "in.jsonl"), str(tmp_path / dtype), "--llm", tiny_folder, "--dtype", dtype, "--document-tokens", "600"])
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {torch.bfloat16}


def test_rows_below_the_least_gain_are_dropped_and_their_sentences_go_back(tmp_path, tiny_folder, capsys, monkeypatch):
    before = write_made(tmp_path / "in.jsonl", documents=30, seed=5)
    monkeypatch.setattr(corpus, "MIN_GAIN", 0.05)
    main(["corpus", str(tmp_path / "in.jsonl"), str(tmp_path / "out"), "--llm", tiny_folder, "--document-tokens", "600"])
    rows = check_rows(before, tmp_path / "out")
    assert rows and all(r["gain"] >= 0.05 for r in rows)
    told = capsys.readouterr().out
    asked, dropped = map(int, re.search(r"of (\d+) rows (\d+) were dropped", told).groups())
    assert dropped > 0 and asked - dropped == len(rows) and f"{len(rows)} rows of" in told
    assert len(load_examples(tmp_path / "out")) == len(rows)


@pytest.mark.real
def test_the_judge_keeps_what_only_the_document_tells(tmp_path, real):
    judge = corpus.Judge("SmolLM2-135M", 128)
    document = "The old mill of Quarrendale was bought by Tobias Wexcombe in spring. He turned it into a school for carpenters."
    only, known = (Row(q, t, "a", "name", 0) for q, t in (
        ("The new owner of the Quarrendale mill is called ___?", "Tobias Wexcombe"), ("Monday, Tuesday, Wednesday, ___?", "Thursday")))
    (gain, nothing), = judge.gains([(f"{document} The school opens every Thursday.", [only, known])])
    assert gain > 2 * corpus.MIN_GAIN and nothing < corpus.MIN_GAIN


def test_a_context_that_is_too_small_is_told_before_any_row_is_judged(tiny_folder, tmp_path, monkeypatch):
    rows = [{"_id": str(i), "text": f"Vik is a village {i}. The church of Vik is {i}. " * 100_000 ** (i == 3)} for i in range(9)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(corpus.Judge, "gains", lambda *_: pytest.fail("judged"))
    with pytest.raises(BadInput, match="^--document-tokens 1000000: the input has .* the LLM's context holds"):
        corpus.make_folder(tmp_path / "docs.jsonl", tmp_path / "out", tiny_folder, document_tokens=1_000_000)
    assert not (tmp_path / "out").exists()
