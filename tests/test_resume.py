"""Runs that are killed, stopped, or meet a full disk go on as if nothing had happened: the same losses, the same weights, bit for bit."""
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch

import checkpoints
import record
import train
from config import Config
from conftest import ROOT, on_linux, save_tiny, write_collection
from data import BadInput
from test_processes import TORCHRUN, script, worlds

FLAGS = ["--pool", "4", "--questions", "4", "--heads", "3", "--device", "cpu", "--save-every", "2"]

# Runs train.main in child processes, so that torch is imported once: whole, and for each signal until it has met a living run so often
# as asked; prints what each came to, and how many steps were done whenever it was met. A run that ends before is compared and begun anew.
SERVER = """
import json, os, random, shutil, signal, sys, time, traceback
sys.path.insert(0, {root!r})
import torch, train
from data import command
torch.set_num_threads(1)
flags, folder = json.loads(sys.argv[1])

def child(*more):
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            torch.set_num_threads(1)
            command(lambda: train.main([*flags, *more]))
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid

def ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def lines(records):
    return sum(1 for _ in open(records)) if os.path.exists(records) else 0

def adapter(folder):
    with open(os.path.join(folder, "adapter_model.safetensors"), "rb") as file:
        return file.read()

start, whole = time.monotonic(), os.path.join(folder, "whole")
assert code(child("--out", whole)) == 0
seconds, met = time.monotonic() - start, {{}}
for number, kills in ((signal.SIGKILL, 20), (signal.SIGTERM, 4), (signal.SIGINT, 4)):
    random.seed(number)
    broken, codes, steps = os.path.join(folder, number.name), [], []
    records = os.path.join(broken, "metrics.jsonl")
    while len(steps) < kills and len(codes) < 10 * kills:
        training = len(steps) % 2 or number != signal.SIGKILL  # kill -9 may come at any time
        least = lines(records) + random.randint(1, 6) if training else 0  # so many steps more than were recorded
        pid = child("--out", broken, "--resume")
        while lines(records) < least and not ended(pid):
            time.sleep(0.001)
        until = time.monotonic() + random.random() * seconds / (60 if training else 1)
        while time.monotonic() < until and not ended(pid):
            time.sleep(0.001)
        os.kill(pid, number)
        codes.append(code(pid))
        if codes[-1]:
            steps.append(lines(records))
        if os.path.exists(os.path.join(broken, "result.json")):  # it came to its end; --resume clears what it may have left
            assert code(child("--out", broken, "--resume")) == 0 and adapter(broken) == adapter(whole)
            shutil.rmtree(broken)
    met[number.name] = codes, steps, code(child("--out", broken, "--resume"))
print(json.dumps(met))
"""


def outcome(folder):
    """What must be equal: every step's record but its seconds, and the adapter's bytes."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in step.items() if k != "seconds"} for step in steps], (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def flags(tiny_folder, tmp_path):
    return ["--backbone", tiny_folder, "--data", str(write_collection(tmp_path / "collection", documents=12)), *FLAGS]


@on_linux
def test_killed_at_random_moments(flags, tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, script, json.dumps([[*flags, "--steps", "60", "--eval", ""], str(tmp_path)])],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    met = json.loads(done.stdout.splitlines()[-1])
    for name, kills, stopped in (("SIGKILL", 20, -9), ("SIGTERM", 4, 130), ("SIGINT", 4, 130)):
        codes, steps, last = met[name]
        assert last == 0 and set(codes) <= {0, stopped} and codes.count(stopped) == kills, (name, codes, done.stderr[-4000:])
        assert len(set(steps)) > 2, (name, steps)  # at different stages of the work
        broken = tmp_path / name
        assert outcome(tmp_path / "whole") == outcome(broken)
        assert not list(broken.glob("checkpoint-*")) and (broken / "result.json").is_file()
    assert re.search(r"after step [1-9]", done.stdout)  # runs went on from there


def interrupted(flags, out, at, monkeypatch, number=signal.SIGTERM):
    """Run train.main, which gets a signal while step `at` runs."""
    real = train.Training.step

    def step(self, pools, stop):
        if len(self.curve) + 1 == at:
            os.kill(os.getpid(), number)
        return real(self, pools, stop)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train.main([*flags, "--out", str(out)])


@pytest.mark.parametrize("number, more", [(signal.SIGTERM, []), (signal.SIGINT, ["--accumulate", "2", "--final-temperature", ".1"]),
                                          (signal.SIGINT, ["--objective", "infonce"]), (signal.SIGTERM, ["--objective", "replug"])])
def test_a_stopped_run_saves_at_once_and_says_where_it_goes_on(flags, tmp_path, monkeypatch, capsys, number, more):
    flags = [*flags, "--steps", "6", *more]
    monkeypatch.setattr(record.Clock, "seconds", property(lambda self: dict(self.laps)))  # not rounded
    train.main([*flags, "--out", str(tmp_path / "whole")])
    interrupted(flags, tmp_path / "broken", 3, monkeypatch, number)
    assert checkpoints.numbers(tmp_path / "broken") == [3, 2] and not (tmp_path / "broken" / "adapter_model.safetensors").exists()
    laps = checkpoints.read_checkpoint(tmp_path / "broken", 3)[1]["laps"]
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    assert "after step 3 of 6" in capsys.readouterr().out
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "broken"))
    assert one["before"] == two["before"] and one["after"] == two["after"] and one["seconds"].keys() == two["seconds"].keys()
    assert two["seconds"]["evaluate before"] == laps["evaluate before"] and two["seconds"]["load"] > laps["load"]
    assert two["seconds"]["train"] > laps["train"] + sum(step["seconds"] for step in two["curve"][3:])  # of both parts


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(flags, tmp_path, monkeypatch, capsys):
    flags = [*flags, "--steps", "6"]
    train.main([*flags, "--out", str(tmp_path / "whole")])
    interrupted(flags, tmp_path / "broken", 5, monkeypatch)
    path = tmp_path / "broken" / "checkpoint-5.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    said = capsys.readouterr()
    assert "the checkpoint of step 5 is skipped" in said.err and "after step 4 of 6" in said.out
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")


@pytest.mark.parametrize("change, name", [
    (["--lr", "0.5"], "--lr"), (["--seed", "7"], "--seed"), (["--steps", "9"], "--steps"), (["--heads", "2"], "--heads")])
def test_another_configuration_cannot_resume(flags, tmp_path, monkeypatch, change, name):
    interrupted([*flags, "--steps", "6"], tmp_path / "run", 3, monkeypatch)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(BadInput, match=f"--resume: {name} was"):
        train.main([*flags, "--steps", "6", *change, "--out", str(tmp_path / "run"), "--resume"])
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}


def test_other_data_cannot_resume(flags, tmp_path, monkeypatch):
    interrupted([*flags, "--steps", "6"], tmp_path / "run", 3, monkeypatch)
    rows = tmp_path / "collection" / "train.jsonl"
    rows.write_text(rows.read_text().replace("Which colour", "What colour", 1))
    with pytest.raises(BadInput, match="--resume: the data was"):
        train.main([*flags, "--steps", "6", "--out", str(tmp_path / "run"), "--resume"])


@pytest.mark.parametrize("file, old, new, says", [
    ("collection/qrels/test.tsv", "q1\td1\t1", "q1\td2\t1", "what is measured"), ("own/config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1', "the tokenizer, or the configuration"),
    ("own/tokenizer.json", '"normalizer": null', '"normalizer": {"type": "Lowercase"}', "the tokenizer, or the configuration")])
def test_what_else_a_run_depends_on_cannot_change(flags, tmp_path, monkeypatch, file, old, new, says):
    flags[1] = save_tiny(tmp_path / "own", seed=1)
    interrupted([*flags, "--steps", "6"], tmp_path / "run", 3, monkeypatch)
    text = (tmp_path / file).read_text()
    assert text.count(old) == 1
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(BadInput, match=f"--resume: {says} was"):
        train.main([*flags, "--steps", "6", "--out", str(tmp_path / "run"), "--resume"])


def test_a_run_names_all_the_hardware_that_it_had(flags, tmp_path, monkeypatch):
    for peak, name in ((9_000_000, "one CPU"), (1, "another CPU"), (2, "one CPU")):
        with monkeypatch.context() as patch:
            patch.setattr(record, "processor", lambda: name)
            patch.setattr(record, "peak_mb", lambda: peak)
            if peak != 2:
                interrupted([*flags, "--steps", "6", *["--resume"] * (peak == 1)], tmp_path / "run", 3 if peak > 1 else 4, patch)
            else:
                train.main([*flags, "--steps", "6", "--out", str(tmp_path / "run"), "--resume"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["hardware"] == "; then ".join(f"{name}, {os.cpu_count()} cores" for name in ("one CPU", "another CPU")) and result["peak_mb"] == 9_000_000


def test_another_number_of_processes_cannot_resume(flags, tmp_path, monkeypatch):
    interrupted([*flags, "--steps", "6"], tmp_path / "run", 3, monkeypatch)
    monkeypatch.setattr(checkpoints, "processes", lambda: (0, 2))
    with pytest.raises(BadInput, match="--resume: the number of processes was 1 and is now 2"):
        train.main([*flags, "--steps", "6", "--out", str(tmp_path / "run"), "--resume"])


def test_another_backbone_cannot_resume(flags, tmp_path, monkeypatch):
    """The same folder, with other weights."""
    flags[1] = save_tiny(tmp_path / "own", seed=1)
    interrupted([*flags, "--steps", "6"], tmp_path / "run", 3, monkeypatch)
    save_tiny(tmp_path / "own", seed=5)
    with pytest.raises(BadInput, match="--resume: the backbone was"):
        train.main([*flags, "--steps", "6", "--out", str(tmp_path / "run"), "--resume"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_good_state(flags, tmp_path, monkeypatch, what):
    """The documents of the step are named; mended, the run goes on. The same where its gradient alone is none."""
    flags, real = [*flags, "--steps", "6"], train.Run.step

    def poisoned(self, pool, own=slice(None)):
        record = real(self, pool, own)
        poisoned.calls += 1
        if poisoned.calls == 4 and what == "gradient":
            self.retriever.parameters()[0].grad[0, 0] = math.nan
        return {**record, "loss": math.nan} if poisoned.calls == 4 and what == "loss" else record

    poisoned.calls = 0
    train.main([*flags, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "step", poisoned)
        with pytest.raises(BadInput, match=r"step 4: the loss or its gradient is not a number.*d\d+, d\d+"):
            train.main([*flags, "--out", str(tmp_path / "broken")])
    assert checkpoints.numbers(tmp_path / "broken")[0] == 3
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")


def test_too_little_memory_for_a_step_is_one_line_and_leaves_the_last_good_state(flags, tmp_path, monkeypatch):
    flags, real = [*flags, "--steps", "6", "--save-every", "0"], train.Run.step
    train.main([*flags, "--out", str(tmp_path / "whole")])
    calls = []

    def short(self, pool, own=slice(None)):
        record = real(self, pool, own)  # the gradients are there
        calls.append(record)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")
        if len(calls) == 9:
            raise RuntimeError("something else")
        return record

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "step", short)
        with pytest.raises(BadInput, match=r"^step 4: CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has; --resume goes on where.*--embed-chunk.*") as told:
            train.main([*flags, "--out", str(tmp_path / "broken")])
        assert checkpoints.numbers(tmp_path / "broken") == [3] and "\n" not in str(told.value)
        with pytest.raises(RuntimeError, match="something else"):
            train.main([*flags, "--out", str(tmp_path / "other")])
        assert not checkpoints.numbers(tmp_path / "other")
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")


def test_a_second_run_into_the_same_folder_is_refused(flags, tmp_path, monkeypatch):
    ready, held = os.pipe()
    other = os.fork()
    if other == 0:
        try:
            with checkpoints.claim(Config(out=str(tmp_path / "run"))):
                os.write(held, b"held")
                time.sleep(600)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(held)  # or a child that has failed would be waited for
    try:
        assert os.read(ready, 4) == b"held"
        with pytest.raises(BadInput, match="another run is writing there"):
            train.main([*flags, "--steps", "2", "--out", str(tmp_path / "run")])
    finally:
        os.close(ready)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    train.main([*flags, "--steps", "2", "--out", str(tmp_path / "run")])  # whoever held it is dead: nothing to clean up
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_run_that_is_stopped_while_the_next_one_loads_is_not_lost(flags, tmp_path, monkeypatch):
    """It writes its checkpoint when its step is done, and only then lets go of the folder."""
    out, load = tmp_path / "run", train.Run

    def loading(config):
        run = load(config)
        with monkeypatch.context() as patch:
            patch.setattr(train, "Run", load)
            interrupted([*flags, "--steps", "6"], out, 3, patch)
        return run

    monkeypatch.setattr(train, "Run", loading)
    with pytest.raises(BadInput, match="a run was interrupted there after step 3"):
        train.main([*flags, "--steps", "4", "--out", str(out)])
    assert checkpoints.numbers(out) == [3, 2]


def test_the_schedule_and_evaluation_leave_training_alone(flags, tmp_path):
    """Measuring on more collections, and saving more often, changes no step."""
    flags = [*flags, "--steps", "4"]
    train.main([*flags, "--out", str(tmp_path / "one")])
    other = write_collection(tmp_path / "another", documents=5)
    train.main([*flags, "--out", str(tmp_path / "two"), "--save-every", "1", "--eval", f"{tmp_path / 'collection'},{other}"])
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


def test_a_run_killed_while_it_measures_has_its_last_step(flags, tmp_path, monkeypatch, capsys):
    flags = [*flags, "--steps", "3", "--save-every", "0"]
    train.main([*flags, "--out", str(tmp_path / "whole")])

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "report", dies)
        with pytest.raises(KeyboardInterrupt):
            train.main([*flags, "--out", str(tmp_path / "broken")])
    with pytest.raises(BadInput, match="was interrupted there after step 3; go on with --resume"):
        train.main([*flags, "--out", str(tmp_path / "broken")])
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    assert "after step 3 of 3" in capsys.readouterr().out and outcome(tmp_path / "whole") == outcome(tmp_path / "broken")
    assert [json.loads((tmp_path / name / "result.json").read_text())["candidates"] for name in ("whole", "broken")] == [4, 4]


def test_another_tool_s_folders_are_left_alone(flags, tmp_path):
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    train.main([*flags, "--steps", "2", "--out", str(tmp_path / "run")])
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_finished_run_is_left_alone(flags, tmp_path, capsys):
    flags = [*flags, "--steps", "2", "--out", str(tmp_path / "run")]
    train.main(flags)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    train.main([*flags, "--resume"])
    assert "nothing to resume" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--resume: --lr was 0.001 and is now 0.5"):
        train.main([*flags, "--lr", ".5", "--resume"])
    rows = tmp_path / "collection" / "train.jsonl"
    kept = rows.read_text()
    rows.write_text(kept.replace("Which colour", "What colour", 1))
    with pytest.raises(BadInput, match="--resume: the data is no longer what the finished run in .* was trained on"):
        train.main([*flags, "--resume"])
    rows.write_text(kept)
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    del result["config"]["clip"], result["data_digest"]  # as before there was such a flag, and the data's digest
    path.write_text(json.dumps(result))
    before["result.json"] = path.read_bytes()
    train.main([*flags, "--resume"])
    assert "nothing to resume" in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}


TRAINING = """
real = train.Training.step
def step(self, pools, stop):
    if len(self.curve) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, pools, stop)

def full(self, pools, stop):
    if os.environ["RANK"] == "1":  # has enough, and waits for the first, which writes its checkpoint
        return real(self, pools, stop)
    raise torch.OutOfMemoryError("CUDA out of memory")

def main(arguments):
    how, *flags = arguments
    train.Training.step = {"stop": step, "full": full}.get(how, real)
    if how == "apart" and os.environ["RANK"] == "1":  # a machine with a disk of its own
        train.newest_checkpoint = lambda *_: (None, None)
    command(lambda: train.main(flags))
"""


def test_two_processes_resume_too(flags, tmp_path):
    """One of two under torchrun gets SIGTERM, both stop, and two that go on are equal to the two that nobody stopped."""
    flags = [*flags, "--steps", "6", "--eval", ""]
    broken = [*flags, "--out", tmp_path / "broken"]
    done = subprocess.run([*TORCHRUN, script(tmp_path, TRAINING), "stop", *broken], capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "stopped after step 3" in done.stderr and checkpoints.numbers(tmp_path / "broken") == [3, 2], done.stderr[-4000:]
    first = [*flags, "--out", tmp_path / "first"]
    codes, said = worlds(tmp_path, TRAINING, (2, ["apart", *broken, "--resume"]), (2, ["whole", *flags, "--out", tmp_path / "whole"]),
                         (2, ["resume", *broken, "--resume"]), (2, ["full", *first]), (2, ["apart", *first, "--resume"]))
    assert 2 in codes[0] and all(f"not all processes find the same checkpoint in {tmp_path / name};" in said for name in ("broken", "first")), said
    assert codes[1:3] == [[0, 0], [0, 0]] and "after step 3 of 6" in said, said
    assert codes[3][0] == 2 and 2 in codes[4] and checkpoints.numbers(tmp_path / "first") == [0], said  # step 1 had too little memory
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")


def test_a_run_that_ends_after_its_result_and_before_its_last_line_is_finished(flags, tmp_path, monkeypatch, capsys):
    flags = [*flags, "--steps", "2", "--out", str(tmp_path / "run")]

    def stopped(rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("report.table", stopped)
        train.main(flags)
    assert checkpoints.numbers(tmp_path / "run") == [2]
    train.main([*flags, "--resume"])
    assert "finished, there is nothing to resume" in capsys.readouterr().out and not checkpoints.numbers(tmp_path / "run")
    train.main(flags)  # and may be done anew


@pytest.mark.parametrize("content", ["", "[]", '{"metrics": {}}', '{"config": 1}'])
def test_a_result_of_another_kind_is_refused(flags, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(content)
    with pytest.raises(BadInput, match="result.json is not what train.py writes"):
        train.main([*flags, "--steps", "2", "--out", str(tmp_path / "run"), "--resume"])


def test_what_calls_a_folder_whole_goes_first_when_a_run_begins_anew(flags, tmp_path, monkeypatch):
    flags = [*flags, "--steps", "1", "--out", str(tmp_path / "run")]
    train.main(flags)
    gone, unlink = [], type(tmp_path).unlink
    monkeypatch.setattr(type(tmp_path), "unlink", lambda path, **more: gone.append(path.name) or unlink(path, **more))
    train.main(flags)
    files = [name for name in gone if name in ("result.json", "adapter_model.safetensors", "retriever.json")]
    assert files[0] == "result.json" and len(files) == 3
