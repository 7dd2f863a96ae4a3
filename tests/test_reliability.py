"""RELIABILITY.md names tests that exist; any flag and file leave a command whole; nothing foreign is run; the same command, the same bytes."""
import ast
import contextlib
import io
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import evaluate
import fetch
import precision
import train
from cache import Cache
from config import Config
from conftest import ROOT, save_tiny, tiny_llm, tiny_tokenizer, write_collection
from data import load_collection
from files import BadInput, command
from model import Retriever
from test_cache import TEXTS, retriever
from test_convert import FILES, broken, lines

PAGE = (ROOT / "RELIABILITY.md").read_text()
FAULTS = ["kill -9 at 20 random moments of training", "kill -9 at 20 random moments of cached encoding", "SIGTERM during a checkpoint",
          "SIGINT", "disk full", "corrupted checkpoint", "half-written checkpoint", "dead rank", "corrupted cache",
          "two processes fill one cache", "two runs into one folder", "NaN batch"]
INPUTS = ["broken JSONL", "truncated gzip", "wrong types", "not UTF-8", "BOM", "CRLF", "empty lines", "NUL bytes", "100 MB lines", "duplicate ids",
          "ids with spaces or tabs", "unicode ids", "missing fields", "queries without documents", "targets longer than allowed",
          "contexts that exceed the LLM", "negative, zero, NaN hyperparameters", "misspelt flags", "output folder is a file", "not writable", "full disk",
          "missing weight file", "corrupted weight file", "tokenizer without EOS", "tokenizer without pad", "backbone that is no causal LM", "any of it, by chance"]


# ------------------------------------------------------------------------------------------------------------ the page


def rows(heading):
    """The cells of the first table below a heading of the page."""
    table = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return found[2:]


@pytest.mark.parametrize("heading, expected", [("Faults", FAULTS), ("Bad input", INPUTS)])
def test_every_row_is_there_and_has_a_test(heading, expected):
    found = rows(heading)
    assert [row[0] for row in found] == expected and all(re.search(r"`\w+\.py::\w+`", row[-1]) for row in found)


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 40
    for file, test in named:
        names = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text())) if isinstance(node, ast.FunctionDef)}
        assert test in names, f"{file}::{test}"


def test_the_counts_and_figures_of_the_page_are_those_of_the_tables_and_results():
    counted = [int(row[1]) for row in rows("Bad input")]
    assert f"{sum(counted):,} inputs" in PAGE and f"{len(rows('Crashes found'))} crashes" in PAGE
    found = json.loads((ROOT / "results" / "precision.json").read_text())
    for value in (found["float32"], found["bfloat16"], found["difference"], found["standard error of the difference"], found["standard error of nDCG"]):
        assert f"{value:.4f}" in PAGE
    rounds, words = json.loads((ROOT / "results" / "soak.json").read_text())["rounds"], " ".join(PAGE.split())
    assert len({r["loss"] for r in rounds}) == len({(r["open_files"], r["threads"]) for r in rounds}) == 1
    assert (f"after each of {len(rounds)} rounds the same loss, {rounds[0]['open_files']} open files, {rounds[0]['threads']} threads and room on the disk; "
            f"resident memory {rounds[0]['resident_mb']:,.0f} MB after the first and {rounds[-1]['resident_mb']:,.0f} MB after the last, "
            f"{max(r['resident_mb'] for r in rounds):,.0f} MB at most") in words


# --------------------------------------------------------------------------------------------------- any flag, any file


NUMBERS = ["", "0", "-1", "1", "2", "nan", "-inf", "1e999", "1e300", "1e-300", "9" * 20, "2147483647", "1_0", "x"]
VALUES = ["", " ", "0", "x" * 300, "../side", "file", "file/below",
          "folder", ".", "/proc/none", "é 日", "{text}", "{text}{text}", "q_proj,none", ",", "dream", "query", "bm25", "float32", "cpu", "meta", "none", "-", "--help", "\udcff"]
LEAVE = ("plot", "compile")  # seconds each
FLAGS = {"train": [f"--{name.replace('_', '-')}" for name in vars(Config()) if name not in LEAVE] + ["--temprature", "--stepz", "file"],
         "evaluate": ["--model", "--data", "--split", "--run", "--out", "--prompt", "--query-prompt", "--max-tokens", "--drop-self", "--ask", "--device", "--dtype", "--modell", "file"],
         "split": ["--share", "--seed", "--shar", "file"], "jsonl": ["--query-field", "--target-field", "--document-field", "--loose", "--field"],
         "corpus": ["--llm", "--rows", "--per-document", "--seed", "--document-tokens", "--row"], "qrels": ["--split", "--splits"], "squad": ["--x"]}
POSITIONAL = {"split": ["folder", "out"], "jsonl": ["folder/train.jsonl", "folder", "out"], "corpus": ["folder", "out"], "squad": ["folder/squad.json", "out"],
              "qrels": ["folder", "folder/answers.jsonl", "out", "--split", "test"]}
NUMERIC = {f"--{name.replace('_', '-')}" for name, value in vars(Config()).items() if type(value) in (int, float)} | {"--max-tokens", "--share", "--rows", "--per-document"}
FILE_OF = {"jsonl": ["corpus.jsonl", "train.jsonl"], "squad": ["squad.json"], "corpus": ["corpus.jsonl"]}


@st.composite
def calls(draw):
    """A command, flags with values that are often wrong, and at times a broken file."""
    name = draw(st.sampled_from(["train"] * 4 + ["evaluate"] * 4 + list(POSITIONAL)))
    flags = draw(st.lists(st.sampled_from(FLAGS[name]).flatmap(lambda flag: st.tuples(st.just(flag), st.sampled_from(NUMBERS if flag in NUMERIC else VALUES))), max_size=3))
    files = FILE_OF.get(name, ["corpus.jsonl", "train.jsonl", "test.tsv"])
    damaged = draw(st.none() | st.sampled_from(files).flatmap(broken))
    return name, [part for pair in flags for part in pair[: draw(st.sampled_from([2, 2, 2, 1]))]], damaged


def called(script, main, argv):
    """Run a main() as its script does -> (exit code, what it said)."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", [script, *argv])
        patch.setattr(sys, "stdin", io.StringIO(""))
        try:
            command(lambda: main(argv))
        except SystemExit as stop:
            return stop.code or 0, said.getvalue()
    return 0, said.getvalue()


def test_any_flags_and_files_end_well_or_with_one_line(tiny_folder, monkeypatch):
    """Never a traceback or a half output. Training ends where the folder is claimed: everything before it is what may be refused."""
    monkeypatch.setattr(train, "carry_out", lambda *_: None)
    codes = {}

    @settings(derandomize=True, deadline=None, database=None, max_examples=400)
    @given(calls())
    def run(call):
        name, flags, damaged = call
        with tempfile.TemporaryDirectory() as above, pytest.MonkeyPatch.context() as patch:
            home = Path(above) / "home"
            (home / "folder" / "qrels").mkdir(parents=True)
            patch.chdir(home)
            for file, content in FILES.items():
                (home / "folder" / ("qrels" if file == "test.tsv" else "") / file).write_bytes(content)
            (home / "folder" / "queries.jsonl").write_text(lines({"_id": "q1", "text": "Where is Viso?"}, {"_id": "q0", "text": "What?"}))
            (home / "folder" / "answers.jsonl").write_text(lines({"_id": "q1", "answer": "Italy"}))
            (home / "file").write_text("mine")
            if damaged:
                place = home / "folder" / ("qrels" if damaged[0].startswith("test.tsv") else "")
                (place / damaged[0].removesuffix(".gz")).unlink()
                (place / damaged[0]).write_bytes(damaged[1])
            before = {path: path.is_file() and path.read_bytes() for path in Path(above).rglob("*")}
            if name == "train":
                script, main, argv = "train.py", train.main, ["--backbone", tiny_folder, "--data", "folder", "--device", "cpu", "--pool", "2", "--heads", "4", "--out", "out"]
            elif name == "evaluate":
                script, main, argv = "evaluate.py", evaluate.main, ["--model", "bm25", "--data", "folder", "--device", "cpu"]
            else:
                script, main, argv = "data.py", data.main, [name, *POSITIONAL[name], *(["--llm", "none"] if name == "corpus" else [])]
            code, said = called(script, main, [*argv, *flags])
            assert code in (0, 2) and "Traceback" not in said, said
            codes[name, code] = codes.get((name, code), 0) + 1
            if code == 2:
                assert said.splitlines()[-1].startswith(script.removesuffix(".py")), said
                assert before == {path: path.is_file() and path.read_bytes() for path in Path(above).rglob("*")}
            assert not list(Path(above).rglob("*.part"))

    run()
    assert all(codes.get((name, 2)) for name in FLAGS) and codes["train", 0] > 5 and codes["evaluate", 0] > 5


# ------------------------------------------------------------------------------------------------------------ security


def plant(folder, marker, kind=None):
    """A backbone whose configuration asks for code of its own, which would write a marker."""
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').write('was here')\nclass Own: pass\n")
    for file, classes in (("config.json", ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]), ("tokenizer_config.json", ["AutoTokenizer"])):
        content = json.loads((folder / file).read_text())
        content["auto_map"] = {name: ["modeling_own.Own", None] if name == "AutoTokenizer" else "modeling_own.Own" for name in classes}
        if kind and file == "config.json":
            content["model_type"] = kind
        (folder / file).write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("kind", [None, "own"])
def test_a_model_s_own_code_is_never_run(tiny_folder, collection_folder, tmp_path, kind):
    """Of an architecture that transformers knows, its own classes are used; any other is refused."""
    marker, common = tmp_path / "marker", ["--data", str(collection_folder), "--device", "cpu"]
    planted = plant(Path(save_tiny(tmp_path / "planted")), marker, kind)
    run = ["--steps", "1", "--pool", "4", "--heads", "4", "--out", str(tmp_path / "out")]
    for main, flags in ((train.main, ["--backbone", planted, *run]), (train.main, ["--backbone", tiny_folder, "--llm", planted, *run]),
                        (evaluate.main, ["--model", planted])):
        code, said = called("script.py", main, [*flags, *common])
        assert code == (2 if kind else 0) and "Traceback" not in said and not marker.exists()
        assert not kind or "custom code" in said


class Evil:
    """Unpickled, it would write a marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickles_are_never_opened(tiny_folder, tmp_path, capsys):
    """Weights as pytorch_model.bin, and an array of objects in the cache."""
    marker = tmp_path / "marker"
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(marker)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(BadInput, match="no file named model.safetensors"):
        Retriever.load(tmp_path / "model", device="cpu")
    expected = Cache(retriever(), tmp_path / "cache").encode(TEXTS, "document")
    [path] = (tmp_path / "cache").rglob("*.npy")
    with open(path, "wb") as file:
        np.save(file, np.array([Evil(marker)], object), allow_pickle=True)
    assert torch.equal(Cache(retriever(), tmp_path / "cache").encode(TEXTS, "document"), expected)
    assert "damaged" in capsys.readouterr().err and not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # it would have worked


def test_no_module_opens_pickles_or_runs_foreign_code():
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called_name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called_name not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "os.system", "joblib.load"), f"{path.name}: {called_name}"
            for keyword in getattr(node, "keywords", []) if isinstance(node, ast.Call) else ():
                if keyword.arg in ("trust_remote_code", "allow_pickle", "shell"):
                    assert ast.unparse(keyword.value) == "False", f"{path.name}: {keyword.arg}"


def test_names_and_ids_never_lead_out_of_a_folder(tmp_path, monkeypatch):
    """Documents, queries, a collection and a model whose names climb or have blanks: files lie where they were asked for, nowhere else."""
    folder = write_collection(tmp_path / "a b" / ".. c")
    for file in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "train.jsonl", folder / "qrels" / "test.tsv"):
        file.write_text(re.sub(r"\b([dq])(\d)\b", r"../../\1\2", file.read_text()))
    model = save_tiny(tmp_path / "in" / "..m\tn o\np")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = set(tmp_path.rglob("*"))
    common = ["--data", str(folder), "--device", "cpu"]
    evaluate.main(["--model", model, *common, "--cache", "cache", "--run", "run.txt", "--out", "found.json"])
    train.main(["--backbone", model, *common, "--steps", "1", "--pool", "4", "--heads", "4", "--out", "out"])
    new = [path.relative_to(work).parts[0] for path in set(tmp_path.rglob("*")) - before]  # ValueError for anything elsewhere
    assert set(new) == {"cache", "run.txt", "found.json", "out"}
    ranked = (work / "run.txt").read_text().splitlines()
    assert len(ranked) == 64 and all(len(line.split()) == 6 and line.endswith(" ..m_n_o_p") for line in ranked)


def test_a_secret_of_the_environment_is_written_nowhere(tiny_folder, collection_folder, tmp_path, monkeypatch, capsys):
    secret = "hf_Geheimnis123"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, secret)
    common = ["--data", str(collection_folder), "--device", "cpu"]
    train.main(["--backbone", tiny_folder, *common, "--steps", "2", "--pool", "4", "--heads", "4", "--save-every", "1", "--out", str(tmp_path / "out")])
    evaluate.main(["--model", str(tmp_path / "out"), *common, "--out", str(tmp_path / "found.json"), "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    for url in (f"http://me:{secret}@127.0.0.1/beir", f"http://127.0.0.1/beir?token={secret}"):
        monkeypatch.setenv("DREAM_BEIR_URL", url)
        with pytest.raises(BadInput, match="without a name, password or query") as error:
            fetch.fetch("scifact", tmp_path / "beir")
        assert secret not in str(error.value)
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


# --------------------------------------------------------------------------------------------------------- determinism


def test_the_same_command_twice_makes_the_same_bytes(tiny_folder, collection_folder, tmp_path):
    """Two fresh processes, whose hashes of texts differ."""
    for name, seed in (("one", "1"), ("two", "2")):
        subprocess.run([sys.executable, "train.py", "--backbone", tiny_folder, "--data", collection_folder, "--device", "cpu", "--steps", "3", "--pool", "4",
                        "--heads", "4", "--order", "bm25", "--out", tmp_path / name], cwd=ROOT, check=True, capture_output=True,
                       env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed})
    for file in ("adapter_model.safetensors", "heads.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["after"] == two["after"] and [r["loss"] for r in one["curve"]] == [r["loss"] for r in two["curve"]]


def test_training_neither_draws_from_nor_moves_the_global_generators(tiny_folder, collection_folder, tmp_path):
    """Whoever calls main() may have drawn numbers before, and goes on with their own afterwards."""
    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        train.main(["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--steps", "2", "--pool", "4", "--heads", "4",
                    "--out", str(tmp_path / str(seed))])
        assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist()) and torch.equal(states[2], torch.get_rng_state())
        found.append((tmp_path / str(seed) / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_data_and_initialisation_have_generators_of_their_own(tiny_folder, collection_folder):
    """Another rank leaves the pools alone, another number of questions the first adapters, an evaluation both; another seed moves both."""
    def start(*flags):
        run = train.Run(train.parse(["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--pool", "4", "--heads", "4", *flags]))
        if flags == ():
            evaluate.evaluate(run.retriever, load_collection(collection_folder))
        stream = run.pools(run.config.seed)
        return [next(stream).documents for _ in range(5)], [p.clone() for p in run.retriever.parameters()]

    def same(one, two):
        return len(one) == len(two) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two))

    pools, adapters = start()
    assert start("--lora-rank", "8")[0] == pools and not same(start("--lora-rank", "8")[1], adapters)
    fewer = start("--questions", "1", "--order", "bm25", "--neighbours", "1")
    assert fewer[0] != pools and same(fewer[1], adapters)
    other = start("--seed", "1")
    assert other[0] != pools and not same(other[1], adapters)


def test_float32_and_bfloat16_rank_alike_within_noise(tmp_path):
    """A tiny model on classroom/'s documents, each asked for by its own beginning."""
    corpus = dict(list(load_collection(ROOT / "classroom").corpus.items())[:60])
    queries = {d: text[:60] for d, text in corpus.items()}

    def load(dtype):
        return Retriever("tiny", tiny_tokenizer(), tiny_llm(dtype=getattr(torch, dtype)), max_tokens=100)

    found = precision.compare(load, data.Collection(corpus, queries, {d: {d: 1} for d in corpus}))
    assert found["float32"] > 0.2 and precision.within_noise(found), found
    far = {**found, "difference": -0.1, "standard error of the difference": 0.01}
    assert not precision.within_noise(far)
