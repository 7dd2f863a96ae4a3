"""The experiments behind the tables: their commands are ones that train.py and evaluate.py take, and each result is of its own command."""
import json
import re
import shlex

import pytest

import evaluate
import science
import train
from conftest import ROOT
from data import BadInput
from model import PROMPTS, SUFFIX


@pytest.mark.parametrize("name", science.experiments())
def test_an_experiment_is_a_command(name, tmp_path):
    needs, words = science.experiments()[name]
    script, *flags = shlex.split(words)
    if script != "evaluate.py":
        config = train.parse([*flags, "--out", str(tmp_path)])
        assert config.seed == int(name[-1])
        assert needs is None or config.data.startswith(needs)
    else:
        args = evaluate.parse([*flags, "--out", str(tmp_path / "out.json")])
        assert needs == args.model


def test_rows_of_a_table_differ_in_what_they_are_named_for():
    """dream, infonce, replug, emdr and random heads: the same configuration but for one flag, for each of three seeds."""
    configs = {name: [vars(train.parse(shlex.split(science.experiments()[f"{name}-{seed}"][1])[1:])) for seed in science.SEEDS]
               for name in science.CLASSROOM}
    for name, seeds in configs.items():
        for config, own in zip(configs["dream"], seeds):
            assert len({k for k in config if config[k] != own[k]}) == (name != "dream"), name
        assert [config["seed"] for config in seeds] == list(science.SEEDS)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*-[0-9].json")), ids=lambda path: path.stem)
def test_a_result_is_of_the_command_that_its_name_stands_for(path):
    """But for the precision, which is the machine's."""
    _, words = science.experiments()[path.stem]
    command = re.sub(r" --resume| --dtype \w+", "", json.loads(path.read_text())["command"])
    assert command == f"python {shlex.join(shlex.split(words))} --out runs/{path.stem}"


def test_what_is_there_is_not_run_again_and_an_unknown_name_is_refused(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(science, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def call(words):
        called.append(words)
        out = tmp_path / words.rpartition("--out ")[2]
        if words.startswith("train.py"):
            out.mkdir(parents=True)
            out = out / "result.json"
        out.write_text("{}")

    monkeypatch.setattr(science, "call", call)
    science.main(["infonce"])
    assert [words.partition(" --out")[2] for words in called] == [f" runs/infonce-{seed}" for seed in science.SEEDS]
    science.main(["infonce", "bm25-classroom"])
    assert len(called) == 4 and (tmp_path / "results" / "infonce-2.json").is_file()
    (tmp_path / "runs" / "infonce-0" / "checkpoint-4.json").write_text("{}")  # interrupted: it goes on
    (tmp_path / "results" / "infonce-0.json").unlink()
    monkeypatch.setattr(science, "call", lambda words: called.append(words))
    science.main(["infonce-0"])
    assert called.pop().endswith("--out runs/infonce-0 --resume")
    with pytest.raises(BadInput, match="no experiment 'infonc'"):
        science.main(["infonc"])
    science.main([])
    listed = capsys.readouterr().out
    assert "done    infonce-0" in listed and "missing dream-0" in listed


def test_a_long_run_makes_its_data_first(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(science, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def call(words):
        called.append(words)
        if words.startswith("train.py"):
            out = tmp_path / words.rpartition("--out ")[2]
            out.mkdir(parents=True)
            (out / "result.json").write_text("{}")

    monkeypatch.setattr(science, "call", call)
    (tmp_path / "results" / "qa-dream-0.json").write_text("{}")  # known, but its model is not here
    science.main(["qa-dream-0-beir"])
    assert [words.split()[0] for words in called] == ["data.py", "train.py", "evaluate.py"]
    (tmp_path / "runs" / "wiki").mkdir()  # its rows are there, those that it is measured on are not
    called.clear()
    science.main(["wiki-dream-0"])
    assert [" ".join(words.split()[:4]) for words in called[:2]] == ["data.py split collections/train/qa runs/qa", "train.py --data runs/wiki --eval"]


def test_the_precision_is_the_machines_and_reaches_all_that_computes(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(science, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    def call(words):
        called.append(words)
        if words.startswith("train.py"):
            out = tmp_path / words.rpartition("--out ")[2]
            out.mkdir(parents=True)
            (out / "result.json").write_text("{}")

    monkeypatch.setattr(science, "call", call)
    science.main(["own-cacm-0", "qa-dream-0", "--dtype", "bfloat16"])
    assert [(words.split()[0], words.count("--dtype bfloat16")) for words in called] == [
        ("data.py", 1), ("train.py", 1), ("data.py", 0), ("train.py", 1), ("evaluate.py", 1)]  # a split computes nothing
    called.clear()
    science.main(["qa-dream-1"])
    assert called and not any("--dtype" in words for words in called)


def test_a_group_is_trained_and_measured_elsewhere_and_takes_no_other_with_it(monkeypatch):
    called = []
    monkeypatch.setattr(science, "run", lambda name, dtype: called.append(name))
    science.main(["qa-dream", "wiki-keep-1", "bm25", "ablation-heads-4"])
    assert called == ["qa-dream-0", "qa-dream-0-beir", "qa-dream-1", "qa-dream-1-beir", "qa-dream-2", "qa-dream-2-beir",
                      "wiki-keep-1", "wiki-keep-1-beir", "bm25-classroom", "bm25-beir", "ablation-heads-4-0"]
    with pytest.raises(BadInput, match="no experiment 'qa-.*'"):
        science.main(["qa-.*"])


def test_an_experiment_changes_one_thing_in_the_prompt():
    flag, prompt = shlex.split(science.TUNING["end-token"])
    assert (flag, prompt) == ("--prompt", PROMPTS["query"] + "{text}" + SUFFIX + "<|im_end|>")
    assert shlex.split(science.TUNING["query-prompt"]) == ["--query-prompt", PROMPTS["query"].replace("sentence", "question") + "{text}" + SUFFIX]
