"""data.py: readers name file and line, pools keep their promises, prompts know whose every token is."""
import csv
import gzip
import json
import random
import runpy
from collections import Counter
from itertools import islice

import pytest
import torch
from conftest import ROOT, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

import convert
from data import (INTRODUCTION, BadInput, Example, Prompts, load_collection, load_corpus, load_examples, load_qrels, make_pools)
from files import check_file, command, replacing

A, B = '{"_id": "a", "text": "x"}\n', '{"_id": "b", "text": "y"}\n'
HEADER = "query-id\tcorpus-id\tscore\n"
ROW = '{"query": "Which?", "target": "red", "document": "d0"}\n'


def message_of(load, *arguments):
    with pytest.raises(BadInput) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_document_is_its_title_and_text(tmp_path):
    rows = [{"_id": "b", "title": "Po", "text": "A river."}, {"_id": "a", "text": "No title."},
            {"_id": "d", "title": None, "text": "Null."}, {"_id": "c", "title": "", "text": "Käse."},
            {"_id": "e", "title": "Alone", "text": ""}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\r\n\n")
    documents = {"b": "Po A river.", "a": "No title.", "d": "Null.", "c": "Käse.", "e": "Alone"}
    assert list(load_corpus(tmp_path).items()) == list(documents.items())


@pytest.mark.parametrize("file, text, says", [
    ("corpus.jsonl", A + "\n" + B + A, ["corpus.jsonl:4:", "'a'", "twice"]),
    ("corpus.jsonl", A + '{"_id": "b",\n', ["corpus.jsonl:2:", "JSON"]),
    ("corpus.jsonl", '{"_id": "a", "text": "\udcff"}\n', ["corpus.jsonl:1:", "JSON"]),  # the byte 0xff
    ("corpus.jsonl", A + '["b", "y"]\n', ["corpus.jsonl:2:", "object"]),
    ("corpus.jsonl", A + '{"_id": "b", "text": null}\n', ["corpus.jsonl:2:", "'text'"]),
    ("corpus.jsonl", '{"_id": "a", "title": 7, "text": "x"}\n', ["corpus.jsonl:1:", "'title'"]),
    ("corpus.jsonl", "\n \n", ["corpus.jsonl", "empty"]),
    ("corpus.jsonl", '{"_id": "a", "title": 0, "text": "x"}\n', ["corpus.jsonl:1:", "'title'"]),
    ("corpus.jsonl", '{"_id": "a", "text": "\\ud800"}\n', ["corpus.jsonl:1:", "JSON"]),  # half a surrogate pair
    ("corpus.jsonl", A + "[" * 200_000, ["corpus.jsonl:2:", "JSON"]),
    ("corpus.jsonl", '{"_id": "a", "text": "\udced\udca0\udc80"}\n', ["corpus.jsonl:1:", "JSON"]),  # half a pair in bytes
    ("corpus.jsonl", A + '{"_id": "b", "text": "\0"}\n', ["corpus.jsonl:2:", "JSON"]),  # a zero byte
    ("corpus.jsonl", "\0" * 9 + "\n", ["corpus.jsonl:1:", "JSON"]),
    ("corpus.jsonl", A + "\ufeff" + B, ["corpus.jsonl:2:", "JSON"]),  # a BOM stands at the start alone
    ("corpus.jsonl", "\ufeff", ["corpus.jsonl", "empty"]),
    ("qrels/test.tsv", "q0\td0\t1\nq1\td1\t1\n", ["test.tsv:1:", "header"]),
    ("qrels/test.tsv", HEADER + "q\udcff\td0\t1\n", ["test.tsv:2:"]),
    ("queries.jsonl", B + B, ["queries.jsonl:2:", "'b'", "twice"]),
    ("qrels/test.tsv", HEADER + "q0\td0\t1\nq1\td1\thigh\n", ["test.tsv:3:", "number"]),
    ("qrels/test.tsv", HEADER + "q0\td0\n", ["test.tsv:2:", "tabs"]),
    ("qrels/test.tsv", HEADER + "q0\td0\t1\nq1\td0\t1\nq0\td0\t2\n", ["test.tsv:4:", "'q0'", "'d0'", "twice"]),
    ("qrels/test.tsv", HEADER + "q0\td0\t1\nnone\td0\t1\n", ["test.tsv", "'none'", "queries.jsonl"]),
    ("qrels/test.tsv", HEADER, ["test.tsv", "no judgments"]),
    ("train.jsonl", ROW + ROW.replace("d0", "d99"), ["train.jsonl:2:", "'d99'", "corpus.jsonl"]),
    ("train.jsonl", ROW + ROW.replace("red", " "), ["train.jsonl:2:", "target", "empty"]),
    ("train.jsonl", ROW.replace("Which?", ""), ["train.jsonl:1:", "query", "empty"]),
    ("train.jsonl", ROW + ROW.replace('"red"', "7"), ["train.jsonl:2:", "'target'"]),
    ("train.jsonl", ROW.replace("document", "source"), ["train.jsonl:1:", "'document'"]),
    ("train.jsonl", ROW + ROW, ["train.jsonl", "two different documents"])])
def test_a_wrong_file_is_refused_with_its_line(collection_folder, file, text, says):
    (collection_folder / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    message = message_of(load_examples if file == "train.jsonl" else load_collection, collection_folder)
    assert message.startswith(str(collection_folder)) and all(part in message for part in says)


@pytest.mark.parametrize("file, load", [("corpus.jsonl", load_collection), ("queries.jsonl", load_collection),
                                        ("corpus.jsonl", load_examples), ("train.jsonl", load_examples)])
def test_a_missing_file_or_folder_is_named(collection_folder, file, load):
    (collection_folder / file).unlink()
    assert message_of(load, collection_folder) == f"{collection_folder / file}: no such file"
    assert message_of(load, collection_folder / "none") == f"{collection_folder / 'none'}: no such folder"


def test_judgments_are_read_and_written_as_csv_as_beir_does(tmp_path):
    ids = ['"Heroes"_(album)', 'the "Heroes" album', "plain", '"', "it's"]
    (tmp_path / "test.tsv").write_text('query-id\tcorpus-id\tscore\nq\t"""Heroes""_(album)"\t1\n"q"\tthe "Heroes" album\t2\nq\tplain\t0\n')
    assert load_qrels(tmp_path / "test.tsv") == {"q": {ids[0]: 1, ids[1]: 2, "plain": 0}}
    convert.write_judgments(tmp_path, {"q": "what?"}, {'"q"': dict.fromkeys(ids, 1)})
    with open(tmp_path / "qrels" / "test.tsv", newline="") as file:
        assert [row[:2] for row in csv.reader(file, delimiter="\t")][1:] == [['"q"', id] for id in ids]
    assert load_qrels(tmp_path / "qrels" / "test.tsv") == {'"q"': dict.fromkeys(ids, 1)}


def test_a_missing_split_lists_those_there(collection_folder):
    assert message_of(load_collection, collection_folder, "dev").endswith("dev.tsv: no such split; there: test")
    (collection_folder / "qrels" / "test.tsv").rename(collection_folder / "qrels" / "train.tsv")
    (collection_folder / "qrels" / "dev.tsv").write_text(HEADER + "q1\td1\t1\n")
    assert message_of(load_collection, collection_folder).endswith("test.tsv: no such split; there: dev, train")
    assert list(load_collection(collection_folder, "dev").queries) == ["q1"]


def test_a_collection_has_the_judged_queries_alone(collection_folder):
    (collection_folder / "qrels" / "test.tsv").write_text(HEADER + "q5\td1\t2\r\nq2\td2\t0\r\n\nq5\td9\t1")
    collection = load_collection(collection_folder)
    assert collection.qrels == {"q5": {"d1": 2, "d9": 1}, "q2": {"d2": 0}}
    assert collection.queries == {"q5": "What colour is 5?", "q2": "What colour is 2?"}
    assert len(collection.corpus) == 8 and collection.corpus["d3"] == "Box 3 The box number 3 is black."


def test_compressed_files_and_trec_judgments_read_the_same(collection_folder):
    plain = load_collection(collection_folder)
    examples = load_examples(collection_folder)
    for name in ("corpus.jsonl", "queries.jsonl", "train.jsonl", "qrels/test.tsv"):
        path = collection_folder / name
        (collection_folder / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_collection(collection_folder) == plain and load_examples(collection_folder) == examples
    (collection_folder / "qrels" / "test.tsv.gz").unlink()
    for name, gap in (("test.trec", " "), ("test.txt", "\t"), ("test.tsv", "  ")):
        (collection_folder / "qrels" / name).write_text("".join(f"q{i}{gap}0{gap}d{i}{gap}1\n" for i in range(8)))
        assert load_collection(collection_folder) == plain
        (collection_folder / "qrels" / name).unlink()
    (collection_folder / "qrels" / "dev.qrels").write_text("q1 Q0 d1 -1\nq1 0 d2 2\n\n q2 0 d9 0\n")
    assert load_collection(collection_folder, "dev").qrels == {"q1": {"d1": -1, "d2": 2}, "q2": {"d9": 0}}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_text(collection_folder, pack):
    plain, examples = load_collection(collection_folder), load_examples(collection_folder)
    (collection_folder / "qrels" / "test.tsv").write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(8)))  # TREC's, no header
    for name in ("corpus.jsonl", "queries.jsonl", "train.jsonl", "qrels/test.tsv"):
        path = collection_folder / name
        content = pack(b"\xef\xbb\xbf" + path.read_bytes())
        path.unlink()
        (path if pack is bytes else path.with_name(f"{path.name}.gz")).write_bytes(content)
    assert load_collection(collection_folder) == plain and load_examples(collection_folder) == examples


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_utf_8_alone_is_read(collection_folder, encoding):
    (collection_folder / "corpus.jsonl").write_bytes('{"_id": "a", "text": "café"}'.encode(encoding))
    assert "corpus.jsonl:1: not a line of JSON" in message_of(load_corpus, collection_folder)


@pytest.mark.parametrize("text", ["q1 0 d1 1\nq1 0 d2\n", "q1 0 d1 1\nq1 0 d2 yes\n", "q1 0 d1 1\nq1 0 d1 1\n"])
def test_wrong_trec_judgments_are_refused_with_their_line(collection_folder, text):
    (collection_folder / "qrels" / "test.tsv").write_text(text)
    assert "test.tsv:2: " in message_of(load_collection, collection_folder)


@pytest.mark.parametrize("text, line", [
    ("query-id\titer\tcorpus-id\tscore\nq1\t0\t17\t1\n", 2), ("q1 0 d1 1\nq2\t0\t5\n", 2), ("q1\td1\t-1\nq2\td2\t1\n", 1)])
def test_columns_are_counted(collection_folder, text, line):
    (collection_folder / "qrels" / "test.tsv").write_text(text)
    assert f"test.tsv:{line}: " in message_of(load_collection, collection_folder)


def test_a_link_to_a_file_stays_a_link(tmp_path):
    link, there = tmp_path / "link", tmp_path / "there"
    there.write_text("old and longer")
    link.symlink_to(there)
    with replacing(link) as file:
        file.write("new")
    with pytest.raises(KeyboardInterrupt), replacing(link) as file:
        file.write("half of the ne")
        raise KeyboardInterrupt
    assert link.is_symlink() and there.read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    there.unlink()
    with replacing(link) as file:  # which leads nowhere yet
        file.write("newer")
    assert link.is_symlink() and there.read_text() == "newer"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with replacing(link) as file:
        file.write("gone")
    assert link.is_symlink() and link.is_char_device()


def test_where_a_file_may_be_written_is_known_before(tmp_path, monkeypatch):
    """A device is asked itself: nobody but root may write to the folder that it is in."""
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/dev")
    check_file("/dev/null")
    check_file(tmp_path / "new")
    for wrong in (tmp_path, tmp_path / "none" / "file", "/dev/new"):
        with pytest.raises(BadInput, match="cannot be written"):
            check_file(wrong)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for wrong in ("/dev/null", tmp_path / "new"):
        with pytest.raises(BadInput, match="cannot be written"):
            check_file(wrong)


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_damaged_compressed_file_is_refused(collection_folder, damage):
    path = collection_folder / "corpus.jsonl"
    whole = gzip.compress(path.read_bytes(), mtime=0)
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]  # the checksum
    path.with_suffix(".jsonl.gz").write_bytes({"cut": whole[:-12], "flipped": flipped, "plain": path.read_bytes()}[damage])
    path.unlink()
    assert message_of(load_collection, collection_folder).startswith(f"{path}.gz: cannot be read")


def test_judgments_of_absent_documents_are_counted_and_told(collection_folder, capsys):
    (collection_folder / "qrels" / "test.tsv").write_text(HEADER + "q1\td1\t1\nq1\tgone\t1\nq2\tlost\t0\n")
    assert load_collection(collection_folder).absent == 2
    assert "2 judgments are of documents that the corpus does not have" in capsys.readouterr().err


@pytest.mark.parametrize("title", ["", '"title": null, ', '"title": "", '])
def test_a_missing_or_empty_title_leaves_no_trace(collection_folder, title):
    (collection_folder / "corpus.jsonl").write_text('{"_id": "d1", %s"text": "Only text."}\n' % title)
    assert load_corpus(collection_folder) == {"d1": "Only text."}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(BadInput, match="cannot be written"), replacing(tmp_path / "none" / "file"):
        pytest.fail("must not come so far")
    with pytest.raises(BadInput, match="No space left"), replacing(path) as file:
        raise OSError(28, "No space left on device")
    with pytest.raises(BadInput, match="7 requested and 0 written"), replacing(path) as file:
        raise OSError("7 requested and 0 written")  # as numpy says it
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error, code, line", [(BadInput("f.jsonl:3: wrong"), 2, "tool.py: f.jsonl:3: wrong\n"),
                                               (OSError("404 for url:\n http://me:w@rd@host/x"), 2, "tool.py: 404 for url: http://host/x\n"),
                                               (KeyboardInterrupt(), 130, "")])
def test_a_command_ends_with_a_code_and_at_most_one_line(error, code, line, monkeypatch, capsys):
    def fails():
        raise error

    monkeypatch.setattr("sys.argv", ["some/folder/tool.py"])
    with pytest.raises(SystemExit) as stop:
        command(fails)
    assert stop.value.code == code and capsys.readouterr() == ("", line)
    ran = []
    command(lambda: ran.append(True))  # no exit where all is well
    assert ran and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("script, arguments, says", [
    ("data.py", ["squad", "none.json", "out"], "none.json"), ("train.py", ["--data", "none"], "none: no such folder"),
    ("evaluate.py", ["--model", "bm25", "--data", "none"], "none: no such folder")])
def test_a_module_that_runs_as_a_script_tells_bad_input_in_one_line(script, arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / script), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith(f"{script}: ") and says in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_examples_keep_their_order_without_outer_blanks(collection_folder):
    (collection_folder / "train.jsonl").write_text(
        '{"query": " Why?\\n", "target": "a b ", "document": "d7"}\n\n' + ROW, encoding="utf-8-sig")
    assert load_examples(collection_folder) == [Example("Why?", "a b", "d7"), Example("Which?", "red", "d0")]


def world(rows):
    """rows[i] examples of the i-th source, in an order of their own; every second document of the corpus has none."""
    corpus = {f"{kind}{i}": "text" for i in random.Random(1).sample(range(len(rows)), len(rows)) for kind in "ds"}
    examples = [Example(f"s{i}?{j}", "target", f"s{i}") for i, n in enumerate(rows) for j in range(n)]
    return random.Random(2).sample(examples, len(examples)), corpus


@pytest.mark.parametrize("rows, documents, questions, neighbours", [
    ([3] * 12, 4, 4, 2), ([3] * 12, 4, 10, 4), ([2] * 12, 4, 99, 1), ([1] * 10, 4, 3, 3),
    ([2] * 7, 16, 16, 4),  # fewer documents than a pool asks for
    ([1, 5, 2, 1, 4, 1, 3, 2, 6], 5, 20, 2)])
def test_a_pool_keeps_its_promises(rows, documents, questions, neighbours):
    examples, corpus = world(rows)
    rows_of = Counter(e.document for e in examples)
    seen = Counter()
    for pool in islice(make_pools(examples, list(corpus), documents, questions, neighbours), 300):
        assert len(pool.documents) == len(set(pool.documents)) == min(documents, len(rows))
        assert [pool.documents[k] for k in pool.source] == [e.document for e in pool.examples]
        asked = Counter(e.document for e in pool.examples)
        most = min(questions, sum(rows_of[d] for d in pool.documents))
        if len(set(rows)) == 1:  # then the documents share the questions evenly
            shares = [asked[d] for d in pool.documents]
            assert len(pool.examples) == most and max(shares) - min(shares) <= 1
        assert min(questions, len(pool.documents)) <= len(pool.examples) <= most
        assert len({e.query for e in pool.examples}) == len(pool.examples)
        seen.update(e.query for e in pool.examples)
    for document in rows_of:  # its examples take turns
        counts = [seen[e.query] for e in examples if e.document == document]
        assert min(counts) > 0 and max(counts) - min(counts) <= 1


def test_the_seed_decides_the_stream():
    examples, corpus = world([3] * 12)
    state = random.getstate()
    streams = (islice(make_pools(examples, list(corpus), 4, 4, 2, seed=seed), 20) for seed in (0, 0, 1))
    first, again, other = ([(p.documents, p.examples) for p in stream] for stream in streams)
    assert first == again != other and random.getstate() == state


def test_the_order_decides_who_are_neighbours():
    examples, corpus = world([1] * 12)
    order = random.Random(3).sample(list(corpus), len(corpus))
    sources = [d for d in order if d.startswith("s")]
    pairs = {frozenset(pair) for pair in zip(sources, [*sources[1:], sources[0]])}  # a ring
    for pool in islice(make_pools(examples, [*order, "not in the corpus"], 2, 2, neighbours=2), 50):
        assert frozenset(pool.documents) in pairs


def test_pools_are_made_of_neighbours():
    """Every pass deals all 24 documents out, in groups of 4 that are adjacent in the corpus (taken as a ring)."""
    examples, corpus = world([2] * 24)
    order = [d for d in corpus if d.startswith("s")]
    groups = [{order[(cut + i) % 24] for i in range(4)} for cut in range(24)]
    pools = [set(p.documents) for p in islice(make_pools(examples, list(corpus), 8, 8, neighbours=4), 150)]
    cuts = Counter()
    for dealt in zip(pools[0::3], pools[1::3], pools[2::3]):
        assert set().union(*dealt) == set(order)
        fits = [cut for cut in range(4) if all(group <= p or not group & p for group in groups[cut::4] for p in dealt)]
        assert fits
        cuts.update(fits[:1])
    assert len(cuts) == 4, "every pass cuts the groups elsewhere"
    assert len(set(map(frozenset, pools))) > 24, "groups meet different groups"


@pytest.mark.parametrize("first", ["", "<eos>"])  # a tokenizer's own first token stands once, before everything
def test_document_of_says_whose_token_it_is(first):
    tokenizer = tiny_tokenizer()
    template = TemplateProcessing(single=f"{first} $A".strip(), special_tokens=[("<eos>", 0)])
    tokenizer.backend_tokenizer.post_processor = template
    texts = ["The box is red.", "Ein Käfer , zwei\n\nAmeisen !", "", "x" * 60, "The box is red.", *"abcdef"]
    input_ids, document_of = Prompts(tokenizer, 64).context(texts)
    assert input_ids.shape == (1, len(document_of)) and input_ids.dtype == document_of.dtype == torch.long
    assert torch.equal(document_of, document_of.sort().values) and document_of.max() == 10
    assert tokenizer.decode(input_ids[0, document_of == -1]) == first + INTRODUCTION
    for k, text in enumerate(texts):
        assert tokenizer.decode(input_ids[0, document_of == k]) == f"Document {k + 1}: {text}\n\n"


def test_long_documents_are_cut_and_counted_once():
    tokenizer = tiny_tokenizer()
    prompts = Prompts(tokenizer, 5)  # one byte is the blank
    for texts in (["abc", "abcdef", "abcd"], ["abcd", "abcdef"]):
        input_ids, document_of = prompts.context(texts)
        assert tokenizer.decode(input_ids[0, document_of == 1]) == "Document 2: abcd\n\n"
    assert prompts.truncated == {"abcdef"}
    assert prompts.document("abcdefgh" * 999) == prompts.document("abcdef") and all(len(ids) <= 11 for ids in prompts.ids.values())  # no more is kept


def test_suffixes_mask_the_targets():
    tokenizer = tiny_tokenizer()
    prompts = Prompts(tokenizer, 64)
    examples = [Example("Which colour?", "red", "a"), Example("Who?", "Marie Skłodowska", "b"), Example("?", "1", "c")]
    input_ids, target_mask = prompts.suffixes(examples)
    lengths = [int(mask.nonzero().max()) + 1 for mask in target_mask]  # whatever follows is padding
    assert target_mask.shape == input_ids.shape == (3, max(lengths)) and target_mask.dtype == torch.bool
    for row, mask, length, example in zip(input_ids, target_mask, lengths, examples):
        assert tokenizer.decode(row[mask]) == f" {example.target}\n"
        assert tokenizer.decode(row[:length][~mask[:length]]) == f"Question: {example.query}\nAnswer:"
        assert mask[length - mask.sum() : length].all()
    assert all(map(torch.equal, prompts.suffixes(examples), (input_ids, target_mask))), "kept tokens never change"
