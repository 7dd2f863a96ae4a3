"""checkup.py on a tiny model: every part has its figures, references are seen to differ where they should, and faults are told."""
import json
import shutil

import pytest
import torch
from conftest import save_tiny, tiny_llm, write_collection

import checkup
from data import Collection
from model import Retriever

PARTS = ["model", "answers", "heads", "nll", "embeddings", "injection", "training"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Flags for a tiny backbone; its references are computed here, with their arguments through JSON as on a command line."""
    monkeypatch.setattr(checkup, "alone", lambda call, *a: json.loads(json.dumps(call(*json.loads(json.dumps(a))))))
    data = write_collection(tmp_path / "data", documents=12)
    return ["--backbone", save_tiny(tmp_path / "base", "qwen2", num_hidden_layers=5), "--data", str(data), "--steps", "2", "--pool", "4",
            "--asked", "2", "--documents", "5", "--out", str(tmp_path / "out.json")]


def run(command, capsys):
    """-> exit code, figures, lines of stderr that are its own."""
    with pytest.raises(SystemExit) as end:
        checkup.main(command)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkup.py: ")]
    return end.value.code, json.loads(open(command[command.index("--out") + 1]).read()), told


def test_every_part_is_measured(command, capsys, tmp_path):
    pytest.importorskip("peft", reason="opens the trained adapter; make test installs it")
    _, figures, told = run([*command, "--keep", str(tmp_path / "kept")], capsys)
    assert list(figures["seconds"]) == list(figures["peaks_mb"]) == [*PARTS, "trained embeddings"]
    assert figures["model"] == {"class": "Qwen2ForCausalLM", "layers": 5, "heads": 4, "key_value_heads": 2, "width": 32, "vocabulary": 257,
                                "parameters": sum(p.numel() for p in tiny_llm("qwen2", num_hidden_layers=5).parameters()), "source": "base"}
    assert len(figures["answers"]) == 2 and len(figures["heads"]) == 16 and len(figures["nll"]) == 7
    best = sorted((score for row in figures["scores"] for score in row), reverse=True)[:16]
    assert [score for *_, score in figures["heads"]] == pytest.approx(best)
    for name in ("embeddings", "trained embeddings"):
        assert figures[name]["difference"] < 1e-5 and figures[name]["between texts"] > 0.1
    assert figures["injection"]["losses"] < 1e-4 and figures["injection"]["gradients, relative"] < 1e-3
    assert [record["step"] for record in figures["training"]["curve"]] == [1, 2]
    assert figures["training"]["before"]["data"].keys() == {"ndcg@10", "recall@10", "mrr@10"}
    assert figures["commit"] and figures["command"].startswith("python checkup.py --backbone") and figures["threads"] >= 1
    kept = Retriever.load(tmp_path / "kept", device="cpu")
    assert len(kept.adapters()) == 5 * 7 and json.loads((tmp_path / "kept" / "heads.json").read_text())["scores"] == figures["scores"]
    assert all("source document" in line for line in told)  # random weights may read nothing; all else holds


def test_a_wrong_embedding_and_a_wrong_injection_are_faults(command, capsys, monkeypatch):
    embed, judged = Retriever.embed, checkup.judged
    monkeypatch.setattr(Retriever, "embed", lambda self, rows: embed(self, [row[:-1] for row in rows]))  # another last token
    monkeypatch.setattr(checkup, "judged", lambda run, pool, how: tuple((1 if how == "ours" else 1.01) * x for x in judged(run, pool, how)))
    code, figures, told = run(command, capsys)
    assert code == 1 and figures["embeddings"]["difference"] > 0.01
    assert {"embeddings differ from those of transformers' own forward pass", "losses differ from the naive implementation's",
            "gradients differ from the naive implementation's"} <= {line.removeprefix("checkup.py: ") for line in told}


def test_without_judgments_nothing_is_evaluated(command, capsys):
    shutil.rmtree(f"{command[3]}/qrels")
    _, figures, _ = run(command, capsys)
    assert figures["training"]["before"] == figures["training"]["after"] == {} and len(figures["training"]["curve"]) == 2


def test_faults_are_what_does_not_hold():
    good = {"embeddings": {"difference": 1e-6}, "trained embeddings": {"difference": 1e-6},
            "injection": {"losses": 1e-5, "gradients, relative": 1e-5},
            "nll": {"query-focused, gold": 1.0, "query-focused, uniform": 2.0, "query-focused, wrong": 3.0}}
    assert checkup.faults(good) == [] and checkup.faults({name: good[name] for name in good if name != "trained embeddings"}) == []
    for name, worse in (("embeddings", {"difference": float("nan")}), ("trained embeddings", {"difference": 1e-4}),
                        ("injection", {"losses": 1e-3, "gradients, relative": 0}), ("nll", {**good["nll"], "query-focused, gold": 2.5}), ("nll", {**good["nll"], "query-focused, wrong": 0.5})):
        assert len(checkup.faults({**good, name: worse})) == 1


def test_a_small_collection_is_judged_documents_with_a_question_each():
    corpus, queries = {f"d{i}": f"text {i}" for i in range(6)}, {f"q{i}": f"question {i}" for i in range(5)}
    qrels = {"q0": {"d3": 1, "d0": 2}, "q1": {"d0": 1}, "q2": {"d1": 0}, "q3": {"d3": 1}, "q4": {"d5": 1}}
    made = checkup.small(Collection(corpus, queries, qrels), 2)
    assert list(made.corpus) == ["d0", "d3"] and list(made.queries) == ["q0", "q3"] and made.qrels == {"q0": {"d3": 1, "d0": 2}, "q3": {"d3": 1}}


def test_a_right_answer_has_the_target_in_it(command, monkeypatch):
    made = checkup.Run(checkup.parse(["--backbone", command[1], "--data", command[3]]))
    wanted = made.retriever.tokenizer(" It is RED.\nAnd so on", add_special_tokens=False).input_ids
    monkeypatch.setattr(type(made.retriever.llm), "generate", lambda self, asked, **_: torch.cat([asked, torch.tensor([wanted])], 1))
    first, second = checkup.answers(made, [e for e in made.examples if e.target in ("red", "blue")])
    assert (first["answer"], first["right"], second["right"]) == ("It is RED.", True, False)
