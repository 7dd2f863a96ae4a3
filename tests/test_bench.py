"""The benchmark's own claims: the specification gives the same losses and gradients, and every mode writes its figures."""
import json

import pytest
import torch

import bench
from conftest import save_tiny, write_collection


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A tiny backbone and collection, by name; children run here, with their arguments through JSON as on a command line."""
    monkeypatch.setattr(bench, "SETTING", {"pool": 4, "questions": 4, "document_tokens": 16, "heads": 6})
    monkeypatch.setattr(bench, "alone", lambda call, *a: json.loads(json.dumps(getattr(bench, call)(*json.loads(json.dumps(a))))))
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
    assert figures["ratios"]["peft / ours"] > 0 and len(figures["seconds"]["peft"]) == 2


def test_growth_and_plan_write_their_tables(setting, monkeypatch, capsys):
    monkeypatch.setattr(bench, "GROWTH", {"questions": (2, 4), "document_tokens": (8, 16)})
    monkeypatch.setattr(bench, "CHECKS", {"Qwen2-0.5B": 4})
    for name in ("Qwen2-0.5B", "SmolLM2-135M"):
        monkeypatch.setitem(bench.SHAPES, name, bench.Shape(4, 64, 4, 2, 16, 96, 300))
    growth = measured([*setting, "--growth"])["growth"]
    assert set(growth["questions"]) == {"2", "4"} and growth["questions"]["2"]["exponents"] == [None, None]
    assert len(growth["document_tokens"]["16"]["exponents"]) == 2
    checks = measured([*setting, "--plan"])["checks"]["Qwen2-0.5B"]
    assert checks["operations, counted / planned"] == pytest.approx(1, rel=0.05)
    assert checks["encoder activations, kept / planned"] == pytest.approx(1, rel=0.05)
    assert "examples/h" in capsys.readouterr().out


def test_a_child_is_a_process_of_its_own(setting, monkeypatch):
    monkeypatch.undo()
    assert bench.alone("step_memory", *setting[1:4:2], "infonce", {"pool": 4, "questions": 4, "heads": 6}) > 0
