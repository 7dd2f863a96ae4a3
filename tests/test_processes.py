"""Several processes find what one finds, to the last bit."""
import json
import subprocess
import sys

import pytest
import torch

import train
from conftest import ROOT, write_collection
from processes import end_processes, processes

SCRIPT = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import evaluate, torch
from data import load_collection
from model import Retriever
from processes import end_processes, processes, start_processes
start_processes()
torch.set_num_threads(1)
retriever, collection, found = Retriever.load(sys.argv[1], device="cpu"), load_collection(sys.argv[2]), []
for evaluate.ENCODE_CHUNK in (1, 5, 12):  # twelve documents: shared evenly, unevenly, and one process without any
    found.append(evaluate.retrieve(retriever, collection, k=5))
with open(f"{{sys.argv[3]}}.{{processes()[0]}}", "w") as file:
    json.dump(found, file)
end_processes()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def ended_well(*command, **how):
    """Run a command to its end, which must be a good one; else its last words are told."""
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_two_processes_find_what_one_finds(tiny_folder, tmp_path):
    folder, script = write_collection(tmp_path / "collection", documents=12), tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    for name, launch in (("one", [sys.executable]), ("two", TORCHRUN)):
        ended_well(*launch, script, tiny_folder, folder, tmp_path / name)
    one, two, other = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert two == other and len(one) == 3
    for (run, shape), (shared_run, shared_shape) in zip(one, two):
        assert run == shared_run and len(run) == 12 and all(len(found) == 5 for found in run.values())
        assert shape == pytest.approx(shared_shape, abs=1e-6) and set(shape) == {"alignment", "uniformity", "spread"}


def test_the_command_under_torchrun_speaks_once(tiny_folder, collection_folder, tmp_path):
    arguments = ["evaluate.py", "--model", tiny_folder, "--data", collection_folder, "--device", "cpu",
                 "--split", "test"]
    one, two = (ended_well(*launch, *arguments, "--out", tmp_path / f"{name}.json", "--cache", tmp_path / f"cache-{name}", cwd=ROOT)
                for name, launch in (("one", [sys.executable]), ("two", TORCHRUN)))
    assert "0 of 16 embeddings" in one.stderr  # of two, each may read what the other has just written
    assert one.stderr.count("were read from") == two.stderr.count("were read from") == 1
    assert one.stdout == two.stdout and one.stdout.count("nDCG@10") == 1
    found = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["max_tokens"] == found[1]["max_tokens"]


TRAIN = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch, train
from processes import end_processes, processes, start_processes
start_processes("cpu")
torch.set_num_threads(1)
run = train.Run(train.parse(sys.argv[3:]))
run.choose_heads()
records = []
train.train(run, records.append)
torch.save([run.retriever.parameters(), [[r["loss"], r["gradient_norm"]] for r in records]], f"{{sys.argv[2]}}.{{processes()[0]}}")
end_processes()
"""


def test_two_processes_train_as_one_that_accumulates(tiny_folder, tmp_path):
    """Each process half the pools: the same weights after five steps, and the same on both."""
    folder, script = write_collection(tmp_path / "collection", documents=12), tmp_path / "script.py"
    script.write_text(TRAIN.format(root=str(ROOT), tests=str(ROOT / "tests")))
    flags = ["--backbone", tiny_folder, "--data", folder, "--device", "cpu", "--steps", "5", "--pool", "4", "--heads", "4",
             "--lr", "5e-4"]  # what Adam makes of differences in rounding grows with the rate
    for name, launch, more in (("one", [sys.executable], ["--accumulate", "2"]), ("two", TORCHRUN, [])):
        ended_well(*launch, script, "-", tmp_path / name, *flags, *more)
    one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert all(map(torch.equal, two[0], other[0])) and two[1] == other[1]
    start = train.Run(train.parse(list(map(str, flags)))).retriever.parameters()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(one[0], two[0]))
    assert max((a - b).abs().max() for a, b in zip(one[0], start)) > 1e-3
    assert torch.allclose(torch.tensor(one[1]), torch.tensor(two[1]), rtol=1e-4)


@pytest.mark.parametrize("objective, more", [("dream", []), ("infonce", ["--embed-chunk", "3", "--checkpoint"])])
def test_a_shared_pool_is_one_large_pool(tiny_folder, tmp_path, objective, more):
    """--gather: two processes, each half the documents and questions, train as one process that has them all."""
    folder, script = write_collection(tmp_path / "collection", documents=12), tmp_path / "script.py"
    one_pool = """
run_pools = run.pools
def both(seed):
    stream = run_pools(seed)
    for a, b in zip(stream, stream):
        yield train.Pool(a.documents + b.documents, a.examples + b.examples)
run.choose_heads()
if processes()[1] == 1: run.pools = both"""
    script.write_text(TRAIN.format(root=str(ROOT), tests=str(ROOT / "tests")).replace("run.choose_heads()", one_pool))
    flags = ["--backbone", tiny_folder, "--data", folder, "--device", "cpu", "--steps", "3", "--pool", "4", "--heads", "4",
             "--objective", objective, "--lr", "1e-4"]
    for name, launch, how in (("one", [sys.executable], []), ("two", TORCHRUN, ["--gather", *more]), ("apart", TORCHRUN, [])):
        ended_well(*launch, script, "-", tmp_path / name, *flags, *how)
    one, two, apart = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "apart.0"))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(one[0], two[0]))
    assert torch.allclose(torch.tensor(one[1]), torch.tensor(two[1]), rtol=1e-4)
    assert max((a - b).abs().max() for a, b in zip(two[0], apart[0])) > 1e-4


def test_the_training_command_under_torchrun_writes_once(tiny_folder, collection_folder, tmp_path):
    out = tmp_path / "out"
    run = subprocess.run([*TORCHRUN, "train.py", "--backbone", tiny_folder, "--data", collection_folder, "--device", "cpu", "--steps", "2",
                          "--pool", "4", "--heads", "4", "--out", out], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.count("saved in") == run.stdout.count("nDCG@10") == 1
    result = json.loads((out / "result.json").read_text())
    assert result["processes"] == 2 and len(result["curve"]) == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(out.glob("*.part"))


def test_a_process_that_dies_ends_the_run_with_its_reason(tiny_folder, collection_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TRAIN.format(root=str(ROOT), tests=str(ROOT / "tests")).replace(
        "run.choose_heads()", "run.choose_heads()\nif processes()[0] == 1: raise SystemExit('this process has had enough')"))
    run = subprocess.run([*TORCHRUN, script, "-", tmp_path / "x", "--backbone", tiny_folder, "--data", collection_folder, "--device", "cpu",
                          "--pool", "4", "--heads", "4"], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0 and "this process has had enough" in run.stderr and "SyntaxError" not in run.stderr and not list(tmp_path.glob("x.*"))


def test_the_end_leaves_no_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    end_processes()
    assert not torch.distributed.is_initialized()
    end_processes()  # and is harmless where there is none
    assert processes() == (0, 1)
