"""Checkpoints: whole or absent, and a resumed run equals the one that nobody interrupted, to the last bit."""
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cache
import checkpoints
from checkpoints import newest_checkpoint, numbers, read_checkpoint, write_checkpoint
from conftest import ROOT
from data import BadInput

RUN = {"run": {"--lr": 0.1, "data": "abc"}}


def tensors(step):
    return {"a": torch.full((3, 2), float(step)), "b": torch.arange(step + 1)}


def written(folder, *steps):
    for step in steps:
        write_checkpoint(folder, step, tensors(step), RUN)
    return folder


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path):
    written(tmp_path, 1, 2, 10)
    assert numbers(tmp_path) == [10, 2] and len(list(tmp_path.iterdir())) == 4
    found, about = newest_checkpoint(tmp_path, {"--lr": 0.1, "data": "abc"})
    assert about["step"] == 10 and torch.equal(found["a"], tensors(10)["a"]) and torch.equal(found["b"], tensors(10)["b"])


def test_an_empty_folder_has_none(tmp_path):
    assert newest_checkpoint(tmp_path, {}) == (None, None)


def cut(path, at):
    path.write_bytes(path.read_bytes()[:at])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("damage", [lambda p: cut(p, -3), lambda p: cut(p, 0), lambda p: flip(p, 40), lambda p: flip(p, -9), lambda p: p.unlink()])
def test_a_damaged_checkpoint_is_skipped_with_a_word_and_the_one_before_serves(tmp_path, capsys, ending, damage):
    damage(written(tmp_path, 3, 4) / f"checkpoint-4.{ending}")
    _, about = newest_checkpoint(tmp_path, {})
    assert about["step"] == 3
    gone = ending == "json" and not (tmp_path / "checkpoint-4.json").exists()  # then it is as if it had never been finished
    assert gone or "the checkpoint of step 4 is skipped" in capsys.readouterr().err


def test_every_flipped_byte_of_the_json_is_noticed(tmp_path):
    path = written(tmp_path, 1) / "checkpoint-1.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            _, about = read_checkpoint(tmp_path, 1)
        except (ValueError, KeyError, TypeError):
            continue
        assert about["run"] == RUN["run"]  # only white space of the outer object is left over


@pytest.mark.parametrize("name, value", [("--lr", 0.2), ("data", "abd"), ("backbone", "new")])
def test_another_configuration_is_refused_by_name(tmp_path, name, value):
    written(tmp_path, 1)
    with pytest.raises(BadInput, match=f"--resume: {name} was .* and is now {value!r}"):
        newest_checkpoint(tmp_path, {**RUN["run"], name: value})


def test_the_code_of_a_run_is_what_train_imports_and_no_other_file(tmp_path, monkeypatch):
    loaded = subprocess.run([sys.executable, "-c", "import sys, train; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    here = {Path(path).name for path in loaded if Path(path).parent == ROOT}
    assert {"objectives.py", "inject.py"} < here == set(cache.code("train", {}))
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    for name, text in {"train": "import json, part\n", "part": "from later import f\ndef g():\n    import mine\n", "later": "import train\n", "mine": "f = 1"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    before = cache.code("train", {})
    assert list(before) == ["train.py", "part.py", "later.py"]
    (tmp_path / ".#train.py").symlink_to("nowhere")  # an editor's lock
    (tmp_path / "mine.py").write_text("f = 2")
    assert cache.code("train", {}) == before
    (tmp_path / "later.py").write_text("import train\nf = 3\n")
    after = cache.code("train", {})
    assert {name for name in after if after[name] != before[name]} == {"later.py"}
    (tmp_path / "later.py").write_text("import train\nf = (\n")  # half an edit
    assert set(cache.code("train", {})) == set(before) and cache.code("train", {})["later.py"] != before["later.py"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    written(tmp_path, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        write_checkpoint(tmp_path, 2, tensors(2), RUN)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1.json", "checkpoint-1.safetensors"]
    assert newest_checkpoint(tmp_path, {})[1]["step"] == 1


def test_a_file_system_that_cannot_flush_a_folder_has_checkpoints_too(tmp_path, monkeypatch):
    real = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    written(tmp_path, 1)
    assert newest_checkpoint(tmp_path, {})[1]["step"] == 1


def test_tensors_come_before_the_file_that_calls_them_whole(tmp_path, monkeypatch):
    """Dying between the two writes leaves nothing that looks like a checkpoint."""
    real, seen = checkpoints.write_bytes, []

    def dies_at_json(path, content):
        seen.append(path.suffix)
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_bytes", dies_at_json)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 5, tensors(5), RUN)
    assert seen == [".safetensors", ".json"] and numbers(tmp_path) == [] and newest_checkpoint(tmp_path, {}) == (None, None)


def test_json_and_tensors_are_plain(tmp_path):
    written(tmp_path, 1)
    outer = json.loads((tmp_path / "checkpoint-1.json").read_text())
    assert json.loads(outer["content"])["run"] == RUN["run"]
    assert (tmp_path / "checkpoint-1.safetensors").read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON


@pytest.mark.parametrize("damaged, then, kept", [([20], 16, [16, 15]), ([15, 20], 5, [5])])
def test_a_skipped_checkpoint_never_outlives_a_whole_one(tmp_path, damaged, then, kept):
    """The run goes on from before them, or anew: what is written then has a smaller number."""
    written(tmp_path, 15, 20)
    for step in damaged:
        cut(tmp_path / f"checkpoint-{step}.json", -3)
    written(tmp_path, then)
    assert numbers(tmp_path) == kept and all(read_checkpoint(tmp_path, step)[1]["step"] == step for step in kept)
    assert len(list(tmp_path.iterdir())) == 2 * len(kept)
