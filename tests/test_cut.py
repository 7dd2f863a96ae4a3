"""Which targets are cut off with their documents: hand-worked cases, one token of the tiny tokenizer being a byte."""
import json

import pytest

import cut
from conftest import tiny_tokenizer
from data import Example, Prompts
from files import BadInput
from train import Run, parse

CORPUS = {"a": "The mill was bought in 1883 by Ann Lee.", "b": "It is\nred and  round.", "c": "Short."}
ROWS = [("when", "1883", "a"), ("who", "Ann Lee", "a"), ("who else", "ann  lee", "a"), ("shape", "ROUND", "b"), ("colour", "it is red", "b"),
        ("really", "yes", "a"), ("size", "Short", "c")]


def examples():
    return [Example(*row) for row in ROWS]


@pytest.mark.parametrize("tokens, lost", [(100, []), (28, ["who", "who else"]), (27, ["when", "who", "who else"]), (12, ["when", "who", "who else", "shape"]),
                                          (9, ["when", "who", "who else", "shape", "colour"])])
def test_unread_targets_are_those_behind_the_cut(tokens, lost):
    """" The mill was bought in 1883" has 28 bytes: with 28 tokens the year is read, with 27 it is not."""
    assert len(" The mill was bought in 1883") == 28
    assert [e.query for e in cut.unread(examples(), CORPUS, Prompts(tiny_tokenizer(), tokens))] == lost


def test_examples_are_kept_or_dropped_and_counted(capsys):
    prompts = Prompts(tiny_tokenizer(), 28)
    prompts.context(list(CORPUS.values()))
    kept = cut.readable(examples(), CORPUS, prompts, "keep")
    assert kept == examples()
    assert capsys.readouterr().err == ("1 of 3 documents are longer than 28 tokens and are cut (--document-tokens); "
                                       "2 of 7 targets are cut off with them, and teach dream nothing (--cut-targets drop)\n")
    assert [e.query for e in cut.readable(examples(), CORPUS, prompts, "drop")] == ["when", "shape", "colour", "really", "size"]
    assert "2 of 7 targets are cut off with them, and their examples left out" in capsys.readouterr().err
    with pytest.raises(BadInput, match="leaves 1 examples; use a larger --document-tokens"):
        cut.readable([e for e in examples() if e.query in ("who", "size", "who else")], CORPUS, prompts, "drop")


def test_a_run_trains_on_what_its_llm_can_read(tmp_path, tiny_folder, capsys):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "title": "", "text": t}) + "\n" for d, t in CORPUS.items()))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(dict(zip(("query", "target", "document"), row))) + "\n" for row in ROWS))
    flags = ["--backbone", tiny_folder, "--data", str(tmp_path), "--document-tokens", "28", "--prompt", "{text}", "--device", "cpu", "--heads", "4", "--pool", "3"]
    assert Run(parse(flags)).examples == examples()
    run = Run(parse([*flags, "--cut-targets", "drop"]))
    assert {e.query for e in run.examples} == {"when", "shape", "colour", "really", "size"}
    stream = run.pools(0)
    assert not {e.query for pool in (next(stream) for _ in range(20)) for e in pool.examples} & {"who", "who else"}
    assert "2 of 7 targets" in capsys.readouterr().err


def test_an_accent_is_the_same_however_it_was_typed():
    corpus = {"a": "It was written far away from every other caf\u00e9."}
    assert cut.unread([Example("where", "cafe\u0301", "a")], corpus, Prompts(tiny_tokenizer(), 20))
