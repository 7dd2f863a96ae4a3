"""The benchmark's own claims: the specification gives the same losses and gradients, and every mode writes its figures."""
import gc
import importlib
import json
import os

import pytest
import torch

import bench
import bench_peers
import measure
import scale
from conftest import on_linux, save_tiny, write_collection
from files import BadInput


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A tiny backbone and collection, by name; children run here, with their arguments through JSON as on a command line."""
    for name, value in {"pool": 4, "questions": 4, "document_tokens": 48, "heads": 6}.items():
        monkeypatch.setitem(bench.SETTING, name, value)
    for module in (bench, scale):  # where memory that earlier tests have left would hide a peak
        monkeypatch.setattr(module, "peak", lambda function: function() and 0 or 7)
        monkeypatch.setattr(module, "alone", lambda call, *a: json.loads(json.dumps(call(*json.loads(json.dumps(a))))))
    write_collection(tmp_path / "data", documents=12)
    return ["--backbone", save_tiny(tmp_path / "backbone", num_hidden_layers=4), "--data", str(tmp_path / "data"), "--repeats", "2",
            "--out", str(tmp_path / "bench.json")]


def measured(arguments):
    bench.main(arguments)
    return json.loads(open(arguments[arguments.index("--out") + 1]).read())


def test_the_step_is_timed_counted_and_compared(setting, capsys):
    figures = measured(setting)
    assert {k: len(v) for k, v in figures["seconds"].items()} == {"infonce": 2, "dream": 2}
    assert set(figures["flops"]) == set(figures["part_seconds"]) and min(figures["part_seconds"].values()) > 0
    assert figures["ratios"]["dream / infonce"] == figures["median"]["dream"] / figures["median"]["infonce"]
    assert figures["ratios"]["by count"] > 1 and 0 < figures["outside_products"] < 1
    assert len(figures["extra_mb"]) == 5 and "dream / infonce" in capsys.readouterr().out


def test_the_naive_specification_gives_the_same_losses_and_gradients(setting):
    figures = measured([*setting, "--naive"])
    assert max(figures["differences"].values()) < 1e-4
    assert {len(values) for values in figures["seconds"].values()} == {2} and len(figures["ratios"]) == 4


def test_the_naive_specification_can_disagree(setting):
    """With other heads it does: the comparison above is not blind."""
    run = bench.prepare(*setting[1:4:2])
    run.choose_heads()
    pool = next(run.pools(0))
    ours = bench.judged(run, pool, "ours")
    together, first = bench.judged(run, pool, "naive, graphs together"), bench.judged(run, pool, "naive", 2)
    torch.testing.assert_close(together, ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first[0], ours[0][:2], atol=1e-4, rtol=0)
    run.heads = run.heads[:-1]
    assert (bench.judged(run, pool, "naive")[1] - ours[1]).abs().max() > 1e-3 * ours[1].abs().max()


def test_peft_s_layers_are_timed_on_the_same_texts(setting):
    pytest.importorskip("peft", reason="peft is a test dependency")
    figures = measured([*setting, "--peft"])
    assert len(figures["seconds"]["peft"]) == 2 and max(figures["differences"].values()) < 1e-4


def test_options_change_the_time_and_not_the_loss(setting, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "SmolLM2-135M", bench.Shape(4, 64, 4, 2, 16, 96, 300))
    monkeypatch.delitem(bench.OPTIONS, "--compile")  # tests/test_train.py has it, without a compiler
    figures = measured([*setting, "--options"])
    losses = figures["losses"]
    assert set(losses) == set(figures["ratios"]) == {"plain", "--checkpoint", "--embed-chunk 4", "--dtype bfloat16"}
    assert losses["--checkpoint"] == losses["plain"] == pytest.approx(losses["--embed-chunk 4"], rel=1e-5)
    assert losses["--dtype bfloat16"] == pytest.approx(losses["plain"], rel=0.05) and losses["--dtype bfloat16"] != losses["plain"]
    assert figures["setting"] == {"pool": 8, "questions": 8, "heads": 4, "document_tokens": 48}  # what was measured


def test_growth_and_plan_write_their_tables(setting, monkeypatch, capsys):
    monkeypatch.setattr(scale, "GROWTH", {"questions": (2, 4), "document_tokens": (48, 64)})
    monkeypatch.setattr(scale, "CHECKS", {"Qwen2-0.5B": 4})
    for name in ("Qwen2-0.5B", "SmolLM2-135M"):
        monkeypatch.setitem(bench.SHAPES, name, bench.Shape(4, 64, 4, 2, 16, 96, 300))
    growth = measured([*setting, "--growth"])["growth"]
    with pytest.raises(AssertionError, match="too few"):
        scale.grow(*setting[1:4:2], {"questions": 64}, 1)
    assert set(growth["questions"]) == {"2", "4"} and growth["questions"]["2"]["exponents"] == [None, None]
    assert len(growth["document_tokens"]["64"]["exponents"]) == 2
    plan = measured([*setting, "--plan"])
    checks = plan["checks"]["Qwen2-0.5B"]
    assert plan["setting"] == {"pool": 4, "questions": 4, "document_tokens": 64}
    assert checks["operations, counted / planned"] == pytest.approx(1, rel=0.05)
    assert checks["encoder activations, kept / planned"] == pytest.approx(1, rel=0.08)  # so narrow, rotary tables count
    assert "examples/h" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, says", [(["--data", "nowhere"], "nowhere"), (["--repeats", "0"], "--repeats must be at least 1"),
                                         (["--growth", "--questions", "0"], "--questions must be"), (["--out", "."], "cannot be written")])
def test_bad_input_is_told_before_anything_is_measured(setting, monkeypatch, wrong, says):
    for module in (bench, scale):
        monkeypatch.setattr(module, "alone", lambda *_: pytest.fail("a child was asked"))
    with pytest.raises(BadInput, match=says):
        bench.main([*setting, *wrong])


def test_the_naive_step_reads_documents_of_the_length_that_is_asked_for(setting, monkeypatch):
    lengths, embed = [], bench.Retriever.embed
    monkeypatch.setattr(bench.Retriever, "embed", lambda self, rows: lengths.extend(map(len, rows)) or embed(self, rows))
    measured([*setting, "--naive", "--document-tokens", "44"])
    assert 44 in lengths and 64 not in lengths


@on_linux
def test_a_peak_is_what_a_call_held_and_no_more():
    gc.collect()  # what earlier tests have left would be freed meanwhile
    assert 200 <= measure.peak(lambda: torch.ones(2**26)) <= 300  # 2^26 float32: 256 MB, gone when the call is over
    assert measure.peak(lambda: None) < 50


def test_a_child_is_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "where.py").write_text("import os\n\n\ndef state(*told):\n    return [os.getpid(), *told]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    where = importlib.import_module("where")
    process, *told = measure.alone(where.state, 3, {"pool": 2})
    assert process != os.getpid() and told == [3, {"pool": 2}]


def test_a_peer_is_compared_by_medians_of_calls_in_turns(monkeypatch):
    """The first turn, in which much is made for the first time, does not count."""
    monkeypatch.setattr(measure, "timed", lambda function: (None, function()))
    taken, calls = {"ours": iter([9, 1, 2, 3]), "theirs": iter([1, 4, 6, 40])}, []
    ours, theirs = (lambda name=name: calls.append(name) or next(taken[name]) for name in taken)
    assert bench_peers.compare(ours, theirs, 3) == {"ratio": 3.0, "seconds": {"ours": [1, 2, 3], "theirs": [4, 6, 40]}}
    assert calls == ["ours", "theirs"] * 4
    with pytest.raises(BadInput, match="--repeats must be at least 1"):
        bench_peers.main(["--repeats", "0"])
