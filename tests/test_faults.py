"""Faults injected on purpose, the rows of RELIABILITY.md that no other file has: what was written stays whole, what goes on is the same."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

import checkpoints
import evaluate
import train
from conftest import ROOT, on_full_disks
from test_cache import collection, retriever
from test_processes import TORCHRUN, script, worlds
from test_resume import flags, outcome  # noqa: F401 (a fixture)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# ------------------------------------------------------------------------------------------------------------ killed


ENCODER = """
import json, os, random, signal, sys, time, traceback
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from test_cache import collection, retriever
import evaluate
from cache import Cache
torch.set_num_threads(1)
evaluate.ENCODE_CHUNK = 10

def child(folder, out):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            cached = Cache(retriever(), folder, tell=False)
            torch.save((*evaluate.retrieve(cached, collection(), k=7), cached.found), out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid

random.seed(3)
folder, out = sys.argv[1:]
start = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(child(folder + "-whole", out + "-whole"), 0)[1]) == 0
whole, killed, found = time.monotonic() - start, 0, []
while killed < 20 or (killed < 200 and not (len(set(map(len, found))) > 2 and 1 < len(found[-1]) < 6)):  # at several stages, the last in the middle
    pid = child(folder, out)
    time.sleep(random.random() * whole)
    os.kill(pid, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found.append(sorted(name for _, _, names in os.walk(folder) for name in names if name.endswith(".npy")))
    if len(found[-1]) == 6:  # all is there; once more from the start
        [os.remove(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names]
assert os.waitstatus_to_exitcode(os.waitpid(child(folder, out), 0)[1]) == 0
print(json.dumps(found))
"""


def test_kill_9_at_20_moments_of_cached_encoding_changes_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ENCODER.format(root=str(ROOT), tests=str(ROOT / "tests")))
    done = subprocess.run([sys.executable, script, tmp_path / "cache", tmp_path / "out"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "damaged" not in done.stderr, done.stderr[-2000:]
    (*one, read), (*two, repeats) = (torch.load(tmp_path / name, weights_only=True) for name in ("out", "out-whole"))
    found = json.loads(done.stdout)
    assert one == two and len(found) >= 20 and len(set(map(len, found))) > 2  # kills at different stages of the work
    # What the last kill left was read, the queries and chunks of ten texts, beside those of the twenty chunks that repeat another one.
    assert 1 < len(found[-1]) < 6 and repeats == 150 and read == repeats + (len(found[-1]) - 1) * 10 + 2
    one, two = ({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.npy")} for folder in (tmp_path / "cache", tmp_path / "cache-whole"))
    assert len(one) == 6 and one == two  # twenty chunks of ten texts, five of them different, and the queries: equal chunks are one file


FILLERS = """
import numpy, time
from cache import Cache
from test_cache import collection, retriever

def main(arguments):
    folder, out = arguments
    evaluate.ENCODE_CHUNK, made = 10, retriever()
    encode, save = made.encode, numpy.save
    made.encode = lambda *args, **options: (time.sleep(.05), encode(*args, **options))[1]
    numpy.save = lambda *to: (save(*to), time.sleep(.05))  # so that both write the same file
    torch.save(evaluate.retrieve(Cache(made, folder, tell=False), collection(), k=7), f"{out}.{os.environ['RANK']}")
"""


def test_two_processes_fill_one_cache_and_both_are_right(tmp_path):
    """Each on its own, as two commands at once."""
    codes, said = worlds(tmp_path, FILLERS, (2, [tmp_path / "cache", tmp_path / "found"]))
    assert codes == [[0, 0]], said
    one, two = (torch.load(tmp_path / f"found.{i}", weights_only=True) for i in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "ENCODE_CHUNK", 10)
        assert one == two == evaluate.retrieve(retriever(), collection(), k=7)
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("moment", [".safetensors", ".json"])
@pytest.mark.parametrize("step", [2, 4])  # in the middle, and the last one
def test_sigterm_during_a_checkpoint_leaves_it_whole(flags, tmp_path, monkeypatch, moment, step):  # noqa: F811
    """The signal comes while a file of the checkpoint is open and half written."""
    flags, real = [*flags, "--steps", "4"], checkpoints.replacing
    train.main([*flags, "--out", str(tmp_path / "whole")])

    class Half:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGTERM)
            self.file.write(content[len(content) // 2 :])

    @checkpoints.contextmanager
    def slowly(path, mode="w"):
        with real(path, mode) as file:
            yield Half(file) if path.name == f"checkpoint-{step}{moment}" else file

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "replacing", slowly)
        with pytest.raises(KeyboardInterrupt):
            train.main([*flags, "--out", str(tmp_path / "broken")])
    assert checkpoints.numbers(tmp_path / "broken")[0] == min(step + 1, 4) and not (tmp_path / "broken" / "result.json").exists()
    train.main([*flags, "--out", str(tmp_path / "broken"), "--resume"])
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "broken")


DIES = """
real = train.Training.step
def step(self, pools, stop):
    if len(self.curve) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, pools, stop)

def main(arguments):
    how, *flags = arguments
    train.Training.step = step if how == "dies" else real
    command(lambda: train.main(flags))
"""


def test_a_rank_that_is_killed_ends_the_run_and_the_rest_goes_on_from_its_checkpoint(flags, tmp_path):  # noqa: F811
    flags, out = [*flags, "--steps", "5", "--eval", ""], tmp_path / "broken"
    done = subprocess.run([*TORCHRUN, script(tmp_path, DIES), "dies", *flags, "--out", out], capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode != 0 and checkpoints.numbers(out) == [2], done.stderr[-2000:]
    codes, said = worlds(tmp_path, DIES, (2, ["lives", *flags, "--out", tmp_path / "whole"]), (2, ["lives", *flags, "--out", out, "--resume"]))
    assert codes == [[0, 0], [0, 0]] and "after step 2 of 5" in said and outcome(tmp_path / "whole") == outcome(out), said


# --------------------------------------------------------------------------------------------------------- full disk


def test_a_disk_that_is_full_at_any_file_is_one_line_and_the_run_goes_on_when_there_is_room(flags, tmp_path):  # noqa: F811
    """Each file that a run writes is once the first that finds no room."""
    flags = [*flags, "--steps", "2", "--eval", ""]
    train.main([*flags, "--out", str(tmp_path / "whole")])
    names = {p.name for p in (tmp_path / "whole").rglob("*") if p.is_file()} | {"checkpoint-2.safetensors", "checkpoint-2.json"}
    assert {"about.json", "heads.json", "metrics.jsonl", "result.json", "adapter_model.safetensors"} < names and len(names) > 10
    codes, told = on_full_disks("train", names, *flags, "--out", str(tmp_path / "run-PLACE"))
    assert codes == dict.fromkeys(names, 2), (codes, told)
    for name in names:
        out = tmp_path / f"run-{name}"
        last = told[name].replace("\r", "\n").splitlines()[-1]
        assert re.search("cannot be written|File too large", last) and "Traceback" not in told[name] and not list(out.rglob("*.part")), (name, told[name])
        train.main([*flags, "--out", str(out), "--resume"])
        assert outcome(out) == outcome(tmp_path / "whole"), name
