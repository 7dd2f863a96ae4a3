"""Several processes find what one finds, to the last bit."""
import json
import os
import subprocess
import sys

import pytest
import torch

import train
from conftest import ROOT, write_collection
from files import BadInput
from processes import end_processes, processes, start_processes

# Imports once and forks: main(arguments) in worlds of so many processes, one world after the other, each with the variables and the
# store that torchrun would give it; prints their exit codes. What torchrun itself does is tested with torchrun.
WORLDS = """
import json, os, signal, sys, traceback
sys.path[:0] = [{root!r}, {tests!r}]
import torch, evaluate, train
from data import load_collection
from files import command
from model import Retriever
from processes import end_processes, processes, start_processes
torch.set_num_threads(1)
{code}

def one(arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this process
    main(sys.argv[1:])
    sys.exit()
codes = []
for size, arguments in json.loads(sys.argv[1]):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), WORLD_SIZE=str(size), TORCHELASTIC_USE_AGENT_STORE="True")
    ended = {{}}
    for rank in range(size):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        if (child := os.fork()) == 0:
            code = one(arguments)
            sys.stdout.flush()
            os._exit(code)
        ended[child] = None
    while None in ended.values():
        child, status = os.wait()
        ended[child] = os.waitstatus_to_exitcode(status)
        for other in ended if ended[child] else ():  # could wait for the one that has failed
            if ended[other] is None:
                os.kill(other, signal.SIGKILL)
    codes.append([*ended.values()])
print(json.dumps(codes))
"""


def script(folder, code):
    """A file with main(arguments), for worlds() or for torchrun -> its path."""
    path = folder / "script.py"
    path.write_text(WORLDS.format(root=str(ROOT), tests=str(ROOT / "tests"), code=code))
    return path


def worlds(folder, code, *runs):
    """Each of runs, (number of processes, arguments), in processes of its own -> [exit codes of a run's processes], what was said."""
    done = subprocess.run([sys.executable, script(folder, code), json.dumps([[size, list(map(str, arguments))] for size, arguments in runs])],
                          capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


FIND = """
def main(arguments):
    model, data, out = arguments
    start_processes()
    retriever, collection, found = Retriever.load(model, device="cpu"), load_collection(data), []
    for evaluate.ENCODE_CHUNK in (1, 5, 12):  # twelve documents: shared evenly, unevenly, and one process without any
        found.append(evaluate.retrieve(retriever, collection, k=5))
    with open(f"{out}.{processes()[0]}", "w") as file:
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
    folder = write_collection(tmp_path / "collection", documents=12)
    codes, said = worlds(tmp_path, FIND, (1, [tiny_folder, folder, tmp_path / "one"]), (2, [tiny_folder, folder, tmp_path / "two"]))
    assert codes == [[0], [0, 0]], said
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


def test_a_gpu_is_not_named_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="--device cuda:1: under torchrun each process takes the GPU of its place"):
        start_processes("cuda:1")


def test_processes_that_torchrun_did_not_start_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(BadInput, match="WORLD_SIZE is set, and LOCAL_RANK is not: several processes are started by torchrun"):
        start_processes("cpu")
    monkeypatch.setenv("WORLD_SIZE", "")
    start_processes("cpu")
    assert not torch.distributed.is_initialized()


TRAIN = """
def prepare(run):
    run.choose_heads()

def main(arguments):
    out, *flags = arguments
    start_processes("cpu")
    run, records = train.Run(train.parse(flags)), []
    prepare(run)
    train.train(run, records.append)
    torch.save([run.retriever.parameters(), [[r["loss"], r["gradient_norm"]] for r in records]], f"{out}.{processes()[0]}")
    end_processes()
"""


def test_two_processes_train_as_one_that_accumulates(tiny_folder, tmp_path):
    """Each process half the pools: the same weights after five steps, and the same on both."""
    folder = write_collection(tmp_path / "collection", documents=12)
    flags = ["--backbone", tiny_folder, "--data", folder, "--device", "cpu", "--steps", "5", "--pool", "4", "--heads", "4",
             "--lr", "5e-4"]  # what Adam makes of differences in rounding grows with the rate
    codes, said = worlds(tmp_path, TRAIN, (1, [tmp_path / "one", *flags, "--accumulate", "2"]), (2, [tmp_path / "two", *flags]))
    assert codes == [[0], [0, 0]], said
    one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert all(map(torch.equal, two[0], other[0])) and two[1] == other[1]
    start = train.Run(train.parse(list(map(str, flags)))).retriever.parameters()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(one[0], two[0]))
    assert max((a - b).abs().max() for a, b in zip(one[0], start)) > 1e-3
    assert torch.allclose(torch.tensor(one[1]), torch.tensor(two[1]), rtol=1e-4)


@pytest.mark.parametrize("objective, more", [("dream", []), ("infonce", ["--embed-chunk", "3", "--checkpoint"])])
def test_a_shared_pool_is_one_large_pool(tiny_folder, tmp_path, objective, more):
    """--gather: two processes, each half the documents and questions, train as one process that has them all."""
    folder, one_pool = write_collection(tmp_path / "collection", documents=12), """
choose = prepare
def prepare(run):
    run_pools = run.pools
    def both(seed):
        stream = run_pools(seed)
        for a, b in zip(stream, stream):
            yield train.Pool(a.documents + b.documents, a.examples + b.examples)
    choose(run)
    if processes()[1] == 1:
        run.pools = both
"""
    flags = ["--backbone", tiny_folder, "--data", folder, "--device", "cpu", "--steps", "3", "--pool", "4", "--heads", "4",
             "--objective", objective, "--lr", "1e-4"]
    codes, said = worlds(tmp_path, TRAIN + one_pool, (1, [tmp_path / "one", *flags]), (2, [tmp_path / "two", *flags, "--gather", *more]),
                        (2, [tmp_path / "apart", *flags]))
    assert codes == [[0], [0, 0], [0, 0]], said
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
    dies = "choose = prepare\ndef prepare(run):\n    if processes()[0] == 1: raise SystemExit('this process has had enough')\n    choose(run)\n"
    run = subprocess.run([*TORCHRUN, script(tmp_path, TRAIN + dies), tmp_path / "x", "--backbone", tiny_folder, "--data", collection_folder, "--device", "cpu",
                          "--pool", "4", "--heads", "4"], capture_output=True, text=True, timeout=600)
    assert run.returncode != 0 and "this process has had enough" in run.stderr and "SyntaxError" not in run.stderr and not list(tmp_path.glob("x.*"))


def test_the_end_leaves_no_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    end_processes()
    assert not torch.distributed.is_initialized()
    end_processes()  # and is harmless where there is none
    assert processes() == (0, 1)
