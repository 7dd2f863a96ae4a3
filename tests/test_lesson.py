"""LESSON.md shows what lesson.py computes, and what it says about these values is so."""
import ast
import itertools
import json
import re

import pytest
import torch

import lesson
from config import Config
from conftest import ROOT, write_collection
from files import BadInput
from inject import target_nll

PAGE = (ROOT / "LESSON.md").read_text(encoding="utf-8")
SHOWN = {m[2]: m[3] for m in lesson.MARK.finditer(PAGE)}
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d{2,}(?:e[+-]?\d+)?(?![\w.])")  # whole numbers and heads (18.6) are text


def same(shown, printed):
    """The texts are equal; numbers within two units of the last digit, or two parts in a hundred: other CPUs add in another order."""
    assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", printed).split()
    for a, b in zip(NUMBER.findall(shown), NUMBER.findall(printed)):
        digits = len(a.partition("e")[0].partition(".")[2])
        assert abs(float(a) - float(b)) <= max(2 * 10**-digits if "e" not in a else 0, 0.02 * abs(float(a))) * (1 + 1e-9), (a, b)


def column(block, heading):
    """{row: cell} of the table in a block that has this heading."""
    lines = [re.split(r"  +", line.removeprefix("* ").strip()) for line in SHOWN[block].splitlines()]
    first = next(i for i, line in enumerate(lines) if heading in line)
    table = itertools.takewhile(lambda line: len(line) == len(lines[first]), lines[first + 1 :])
    return {line[0]: line[lines[first].index(heading)] for line in table}


@pytest.mark.real
def test_the_page_shows_what_the_script_prints(real, capsys):
    lesson.main([])
    printed = dict(re.findall(r"^--- (\w+)\n\n(.*?)(?=\n^--- |\Z)", capsys.readouterr().out, re.S | re.M))
    assert list(printed) == list(SHOWN)
    for name, text in printed.items():
        same(SHOWN[name].rstrip("\n"), text.rstrip("\n"))


def test_numbers_are_compared_by_their_last_digit_and_texts_exactly():
    same("a  0.123  x", "a  0.125  x")
    same("a  -68.28", "a  -67.50")
    same("5e1 4.55e-04", "5e1 4.55e-04")
    for shown, printed in [("0.123", "0.126"), ("-0.90", "0.90"), ("' lac' 0.59", "' Cir' 0.59"), ("row 511", "row 512"),
                           ("18.6 0.431", "18.7 0.431"), ("4.55e-04", "4.75e-04")]:
        with pytest.raises(AssertionError):
            same(shown, printed)


def test_the_blocks_are_the_scripts_and_fit_a_page():
    assert tuple(SHOWN) == lesson.BLOCKS and PAGE.count("<!-- lesson: ") == PAGE.count("<!-- end -->") == len(SHOWN)
    assert all(block.strip() for block in SHOWN.values())
    assert max(len(line) for block in SHOWN.values() for line in block.splitlines()) < 110
    assert PAGE.isascii() and len(PAGE.splitlines()) < 250 and len((ROOT / "lesson.py").read_text().splitlines()) < 200


def test_every_name_in_the_lesson_exists():
    named = re.findall(r"`(\w+\.py):([\w.]+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        level = ast.parse((ROOT / file).read_text()).body
        for part in name.split("."):
            found = [n for n in level if getattr(n, "name", None) == part
                     or isinstance(n, ast.Assign) and part in [getattr(t, "id", "") for t in n.targets]]
            assert found, f"{file}:{name}"
            level = getattr(found[0], "body", [])
    for file in re.findall(r"`([\w/]+\.(?:py|jsonl))`", PAGE):
        assert (ROOT / file).is_file(), file


def test_what_the_prose_says_about_the_values_is_so():
    L = [float(x) for x in column("losses", "mean, L").values()]
    own, source, equal, wrong, untouched = L
    assert source < untouched < own < equal < wrong
    newline = [float(x) for x in column("losses", r"3 '\n'").values()]
    assert newline[-1] == min(newline) and newline[1] == max(newline)
    assert [name for name, word in column("gradient", "is to").items() if word == "RISE"] == ["cirrostratus"]
    assert float(column("gradient", "dL/dw")["altocumulus"]) < 0 < float(column("gradient", "dL/ds")["altocumulus"])
    assert column("reading", "most read")["cirrostratus"].startswith("' sund'")
    own_attention = {k: float(x) for k, x in column("heads", "its own attention").items()}
    assert max(own_attention, key=own_attention.get) == "cirrostratus"
    changes = {k: float(x) for k, x in column("step", "change").items()}
    assert [k for k, x in changes.items() if x > 0] == ["cirrostratus"]
    before, after = map(float, re.search(r"L ([\d.]+), after ([\d.]+)", SHOWN["step"]).groups())
    assert after < before
    share = {k: float(x) for k, x in column("agreement", "agreement").items()}
    assert 0.7 < share["first step"] and 0.5 < share["last step"] < 0.7
    weight = {k: float(x) for k, x in column("agreement", "source_weight").items()}
    assert weight["last step"] > 2 * weight["first step"]


def test_agreement_is_that_of_the_measured_runs():
    runs = [json.loads(path.read_text())["curve"] for path in (ROOT / "results").glob("dream-[0-9].json")]
    shown = column("agreement", "agreement")
    rows = {"first step": [run[0] for run in runs], "last step": [run[-1] for run in runs], "all steps": [s for run in runs for s in run]}
    for name, records in rows.items():
        assert float(shown[name]) == pytest.approx(sum(r["agreement"] for r in records) / len(records), abs=0.00501)


# ------------------------------------------------------------------------------------------------------ on a tiny model


@pytest.fixture
def tiny(tiny_folder, tmp_path):
    """A lesson about four coloured boxes; embeddings in float32, the LLM's part in float64."""
    data = write_collection(tmp_path / "data")
    config = Config(backbone=tiny_folder, data=str(data), device="cpu", dtype="float32", pool=4, questions=4, heads=3, temperature=0.2)
    return lambda *args, **more: make(config, *args, **more)


def make(config, head=None, question="Which colour has box 2?", documents=("d3", "d0", "d2", "d1")):
    heads = lesson.Run(config)
    heads.choose_heads()
    return lesson.Lesson(config, question, list(documents), head or heads.heads[1])


def double(small):
    """The same lesson with the LLM, scores and weights in float64."""
    small.run.retriever.llm.double()
    with small.run.judge() as llm:
        small.prefix, small.input_ids, small.target_mask = small.read = small.run.read(llm, small.pool.documents, small.pool.examples)
    small.s = small.s.double()
    small.w = (small.s / small.run.temperature).softmax(1)
    return small


def test_the_slopes_agree_with_each_other_and_with_the_softmax_rule(tiny, monkeypatch):
    small = double(tiny())
    monkeypatch.setattr(lesson, "NUDGE", 3e-3)  # transformers' norms are in float32 all the same
    ds, dw, measured = small.slopes()
    assert ds.abs().max() > 0.05
    torch.testing.assert_close(measured, ds, rtol=2e-3, atol=1e-4)
    w = small.w[0]
    torch.testing.assert_close(w / small.run.temperature * (dw - w @ dw), ds, rtol=1e-9, atol=1e-12)
    step = 3e-3  # dL/dw by a difference of its own, in a loop
    for k in range(4):
        moved = [small.w + sign * step * torch.eye(4)[[k]] for sign in (1, -1)]
        with small.run.judge() as llm:
            higher, lower = (target_nll(llm, *small.read, w, small.run.heads).item() for w in moved)
        assert (higher - lower) / (2 * step) == pytest.approx(dw[k].item(), rel=2e-3, abs=1e-4)


def test_the_head_is_read_as_the_equations_say(tiny):
    small = double(tiny())
    shares, r, output = small.read_head()
    for k in range(4):
        inside = small.prefix.document_of == k
        assert shares[k, inside].sum().item() == pytest.approx(1) and not shares[k, ~inside].any()
    layer, head = small.head
    values = small.prefix.values[layer][head // 2]  # two heads share keys and values
    torch.testing.assert_close(shares.to(values) @ values, r)  # eq (3)
    torch.testing.assert_close((small.w @ r)[0], output)  # eq (4)


def test_losses_of_single_tokens_average_to_the_loss(tiny):
    small = tiny()
    lines = list(small.losses())[0].splitlines()[1:]
    with small.run.judge() as llm:
        whole = [target_nll(llm, *small.read, small.w, heads).item() for heads in (small.run.heads, None)]
    assert [float(lines[i].split()[-1]) for i in (0, -1)] == pytest.approx(whole, abs=0.00051)
    assert "d2" in lines[1] and "d2" not in lines[3]


def test_a_step_changes_the_retriever_and_not_the_llm(tiny):
    small = tiny()
    before, llm_loss = small.embed(), small.loss(small.w, injected=False)
    text = "\n".join(small.step())
    after = small.embed()
    assert not torch.equal(before, after) and torch.equal(llm_loss, small.loss(small.w, injected=False))
    shown = [float(x) for x in re.findall(r"([+-]\d\.\d{4})", text)]
    assert shown == pytest.approx((after - before)[0].tolist(), abs=0.000051)


def test_a_head_that_is_not_injected_is_refused(tiny):
    with pytest.raises(BadInput, match=r"HEAD = \(9, 9\) is not injected; choose one of \("):
        tiny((9, 9))


@pytest.mark.parametrize("wrong, says", [
    ({"question": "Which colour?"}, r"QUESTION = 'Which colour\?' is none of .*train.jsonl"),
    ({"documents": ["d2", "d99"]}, "DOCUMENTS must be ids of .*corpus.jsonl, the question's own, 'd2', among them"),
    ({"documents": ["d0", "d1"]}, "the question's own, 'd2', among them")])
def test_a_question_and_documents_that_do_not_fit_are_refused(tiny, wrong, says):
    with pytest.raises(BadInput, match=says):
        tiny(**wrong)


def test_writing_fills_the_marks_and_leaves_the_prose(tiny, tmp_path, monkeypatch):
    page = tmp_path / "LESSON.md"
    block = "Above.\n<!-- lesson: {} -->\n```text\nold\n```\n<!-- end -->\nBelow.\n"
    page.write_text("# Title\n" + "".join(block.format(name) for name in lesson.BLOCKS))
    small = tiny()
    small.agreement = lambda: ["none"]
    monkeypatch.setattr(lesson, "Lesson", lambda *args: small)
    monkeypatch.setattr(lesson, "ROOT", tmp_path)
    lesson.main(["--write"])
    text = page.read_text()
    assert "old" not in text and text.count("Above.\n") == text.count("Below.\n") == len(lesson.BLOCKS)
    assert "```text\nquestion  Which colour has box 2?\n" in text
    page.write_text("# Title\n" + block.format("question"))
    with pytest.raises(BadInput, match="has marks for question; expected question, "):
        lesson.main(["--write"])
    assert page.read_text() == "# Title\n" + block.format("question")
