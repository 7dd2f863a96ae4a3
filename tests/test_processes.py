"""Several processes find what one finds, to the last bit."""
import json
import subprocess
import sys

import pytest

from conftest import ROOT, write_collection

SCRIPT = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import evaluate, torch
from data import load_collection
from model import Retriever
from processes import processes, start_processes
start_processes()
torch.set_num_threads(1)
retriever, collection, found = Retriever.load(sys.argv[1], device="cpu"), load_collection(sys.argv[2]), []
for evaluate.ENCODE_CHUNK in (1, 5, 12):  # twelve documents: shared evenly, unevenly, and one process without any
    found.append(evaluate.retrieve(retriever, collection, k=5))
with open(f"{{sys.argv[3]}}.{{processes()[0]}}", "w") as file:
    json.dump(found, file)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_find_what_one_finds(tiny_folder, tmp_path):
    folder, script = write_collection(tmp_path / "collection", documents=12), tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    for name, launch in (("one", [sys.executable]), ("two", TORCHRUN)):
        subprocess.run([*launch, script, tiny_folder, folder, tmp_path / name], check=True, capture_output=True)
    one, two, other = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert two == other and len(one) == 3
    for (run, shape), (shared_run, shared_shape) in zip(one, two):
        assert run == shared_run and len(run) == 12 and all(len(found) == 5 for found in run.values())
        assert shape == pytest.approx(shared_shape, abs=1e-6) and set(shape) == {"alignment", "uniformity", "spread"}


def test_the_command_under_torchrun_speaks_once(tiny_folder, collection_folder, tmp_path):
    arguments = ["evaluate.py", "--model", tiny_folder, "--data", collection_folder, "--device", "cpu",
                 "--cache", tmp_path / "cache", "--split", "test"]
    one = subprocess.run([sys.executable, *arguments, "--out", tmp_path / "one.json"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "0 of 16 embeddings" in one.stderr
    two = subprocess.run([*TORCHRUN, *arguments, "--out", tmp_path / "two.json"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert one.stdout == two.stdout and one.stdout.count("nDCG@10") == 1
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads((tmp_path / "two.json").read_text())
