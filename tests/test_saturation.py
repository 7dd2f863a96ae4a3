"""Made-up weights, and what each objective says to them: the objectives themselves are the reference."""
import json
import math

import pytest
import torch

import saturation
from files import BadInput
from inject import score_heads, target_nll
from objectives import OBJECTIVES, document_likelihoods
from train import Run, parse


@pytest.fixture
def run(tiny_folder, collection_folder):
    run = Run(parse(["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--pool", "4", "--questions", "4", "--heads", "4"]))
    run.choose_heads()
    return run


def test_weights_are_as_they_are_asked_for():
    assert saturation.shares(torch.tensor([1]), 3, 0.5).tolist() == [[0.25, 0.5, 0.25]]
    assert saturation.shares(torch.tensor([2]), 3, 0.75, other=1).tolist() == [[0.25, 0, 0.75]]
    for share in saturation.SHARES:
        assert torch.allclose(saturation.shares(torch.tensor([0, 3]), 16, share).sum(1), torch.ones(2))


@pytest.mark.parametrize("share, other", [(0.5, None), (0.9, None), (0.75, 1)])
def test_each_loss_is_the_objectives(run, share, other):
    """Scores whose softmax is these weights, through objectives.py."""
    pool = next(run.pools(0))
    weights = saturation.shares(pool.source, len(pool.documents), share, other)
    with run.judge() as llm:
        read = run.read(llm, pool.documents, pool.examples)
        found = saturation.losses(run, llm, pool, read, document_likelihoods(run, llm, pool), share, other)
        for name in (*OBJECTIVES, "dream-keep"):
            if name == "replug" and other:  # 0 (log 0 - ...) of the documents without weight
                continue
            run.config.budget, objective = ("keep" if name == "dream-keep" else "documents"), OBJECTIVES[name.removesuffix("-keep")]
            assert found[name] == pytest.approx(objective(run, llm, pool, run.temperature * weights.log()).item(), abs=1e-5), name


def test_a_document_without_weight_counts_for_nothing(run):
    """All the rest on one document: replug and emdr stay finite, dream reads two documents alone."""
    pool = next(run.pools(0))
    with run.judge() as llm:
        read = run.read(llm, pool.documents, pool.examples)
        found = saturation.losses(run, llm, pool, read, document_likelihoods(run, llm, pool), 0.75, 1)
        weights = 0.75 * torch.eye(4)[pool.source] + 0.25 * torch.eye(4)[(pool.source + 1) % 4]
        assert found["dream"] == pytest.approx(target_nll(llm, *read, weights, run.heads).mean().item(), abs=1e-6)
    assert all(map(math.isfinite, found.values())) and found["infonce"] == pytest.approx(-math.log(0.75))


@pytest.mark.parametrize("rows", ["target", "question"])
def test_attention_lies_on_the_source_on_other_documents_or_outside(rows, run):
    """Each document by itself, added up, is the reference."""
    run.config.head_rows = rows
    pool = next(run.pools(0))
    with run.judge() as llm:
        read = run.read(llm, pool.documents, pool.examples)
        found = saturation.attention(run, llm, *read, pool.source)
        alone = [score_heads(llm, *read, (pool.source + k) % 4, rows) for k in range(4)]
    alone = [sum(scores[layer, head].item() for layer, head in run.heads) / len(run.heads) for scores in alone]
    assert found == pytest.approx({"source": alone[0], "others": sum(alone[1:]), "outside": 1 - sum(alone)}, abs=1e-6)
    assert all(mass > 0 for mass in found.values())


def test_the_table_is_printed_and_written(tiny_folder, collection_folder, tmp_path, capsys):
    flags = ["--backbone", tiny_folder, "--data", str(collection_folder), "--pool", "4", "--questions", "4", "--heads", "4", "--device", "cpu"]
    saturation.main([*flags, "--pools", "1", "--out", str(tmp_path / "s.json")])
    said = capsys.readouterr().out
    assert said.count("emdr") == 2 * len(saturation.SHARES) and "untouched: source 0." in said
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["command"].startswith("python saturation.py --backbone") and written["attention"].keys() == {"source", "others", "outside"}
    with pytest.raises(SystemExit):
        saturation.main([*flags, "--pols", "1"])


def test_bad_input_is_told_before_anything_is_loaded(tmp_path):
    for flags, says in ((["--pools", "0"], "--pools must be at least 1"), (["--out", str(tmp_path)], "cannot be written")):
        with pytest.raises(BadInput, match=says):
            saturation.main([*flags, "--backbone", "nowhere"])
