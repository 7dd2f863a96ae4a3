"""Every command of the README runs here as it is typed, on a tiny model; a command that cannot says what it needs."""
import ast
import dataclasses
import importlib
import json
import re
import shlex

import pytest
from conftest import ROOT, write_collection

from config import Config
from measure import SETTING

SMALL = {  # what is put behind a command's own flags: the last one counts
    "train.py": "--backbone {tiny} --steps 1 --pool 4 --questions 4 --heads 4 --document-tokens 64 --device cpu --prompt {{text}}",
    "evaluate.py": "--device cpu", "export.py": "", "plot.py": "", "data.py": "", "science.py": "", "tables.py": ""}
MORE = {"data.py corpus": "--llm none", "data.py split": "--share .3"}


def commands():
    """[(command, comment)] of the README's indented blocks."""
    lines = re.findall(r"^    ((?:python|torchrun|make|pytest) .*)$", (ROOT / "README.md").read_text(), re.M)
    return [tuple(part.strip() for part in line.partition("  #")[::2]) for line in lines]


def test_what_cannot_run_here_says_what_it_needs():
    for command, comment in commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        elif words[0] == "torchrun" or words[1] not in SMALL:
            assert "needs" in comment, command


ELSEWHERE = {"python data.py": "a name, not a call", "python data.py corpus": "stands with its arguments below", "python tables.py": "test_tables.py",
             "python science.py all": "says that it needs hours"}


def mentioned():
    """The commands of the tables and of the text."""
    return sorted(set(re.findall(r"`(python [^`]+)`", (ROOT / "README.md").read_text())) - set(ELSEWHERE))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_folder):
    """A folder with everything that the README's commands take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in ("classroom", "my_folder", "beir_folder"):
        write_collection(tmp_path / name, documents=12)
    (tmp_path / "beir_folder" / "qrels" / "test.tsv").rename(tmp_path / "beir_folder" / "qrels" / "train.tsv")
    (tmp_path / "answers.jsonl").write_text(lines(*({"_id": f"q{i}", "answer": "red"} for i in range(12))))
    (tmp_path / "rows.jsonl").write_text(lines({"query": "Which box is red?", "target": "red"}, {"query": "And blue?", "target": "blue"}))
    (tmp_path / "corpus.jsonl").write_text((tmp_path / "classroom" / "corpus.jsonl").read_text())
    (tmp_path / "docs.jsonl").write_text(lines(*(
        {"_id": f"d{i}", "text": f"{name} was born in {town} in 18{i}3. The river at {town} flooded in 18{i}3 and {name} left the place."}
        for i, (name, town) in enumerate([("Ada Quill", "Norwick"), ("Bert Olsen", "Halden"), ("Cora Finch", "Ludlow"), ("Dan Petrov", "Varna")]))))
    paragraphs = [{"context": f"{name} lives in Rome.", "qas": [{"id": name, "question": f"Where does {name} live?", "is_impossible": False,
                   "answers": [{"text": "Rome", "answer_start": len(name) + 10}]}]} for name in ("Ada", "Bert")]
    (tmp_path / "train-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [{"title": "People", "paragraphs": paragraphs}]}))
    small = SMALL["train.py"].format(tiny=tiny_folder)
    importlib.import_module("train").main(shlex.split(f"--data classroom {small} --out runs/dream"))
    importlib.import_module("train").main(shlex.split(f"--data my_folder {small} --out runs/mine"))
    return tmp_path


def test_every_command_runs(desk, tiny_folder, capsys):
    ran = []
    for command, comment in [*commands(), *((command, "") for command in mentioned())]:
        words = shlex.split(command)
        if "needs" in comment or words[0] == "make":
            continue
        script, arguments = words[1], words[2:]
        if script == "data.py":  # each makes a folder that must be new; `my_folder` is there
            arguments = [f"made-{len(ran)}" if word == "my_folder" and arguments[0] != "split" else word for word in arguments]
        more = SMALL[script].format(tiny=tiny_folder) + " " + MORE.get(" ".join([script, *arguments[:1]]), "")
        if re.search(r"--model (SmolLM2|runs/all)", command):  # real weights, in the tables
            more += f" --model {tiny_folder}"
        importlib.import_module(script.removesuffix(".py")).main([*arguments, *shlex.split(more)])
        assert capsys.readouterr().out.strip(), f"{command}: says nothing"
        ran.append(script)
    assert {"train.py", "evaluate.py", "export.py", "data.py"} <= set(ran) and len(ran) >= 18
    assert (desk / "my_model" / "config.json").is_file() and (desk / "runs" / "infonce" / "result.json").is_file()
    assert len((desk / "run.txt").read_text().splitlines()) == 12 * 12


def test_the_readme_names_only_flags_and_files_that_exist():
    readme, more = ((ROOT / name / "README.md").read_text() for name in ("", "results"))
    found = re.findall(r"(?:python|torchrun --nproc-per-node \d+) (\w+\.py)([^\n`#|]*)", readme + more)
    assert {"train.py", "evaluate.py", "data.py", "mteb_run.py", "bench.py"} <= {script for script, _ in found}
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(Config)}
    fields_of = {"train.py": fields, "saturation.py": fields, "bench.py": {name.replace("_", "-") for name in SETTING}}
    for script, flags in found:
        sources = {"data.py": ("commands.py", "corpus.py")}.get(script, (script,))
        source = "".join((ROOT / name).read_text() for name in sources)
        for flag in re.findall(r"--([a-z-]+)", flags):
            assert flag in fields_of.get(script, ()) or (script != "train.py" and f'"--{flag}"' in source), (script, flag)
    for name in re.findall(r"`([a-z_0-9]+\.py|classroom/|results/|tests/)`", readme):
        assert (ROOT / name).exists(), name
    modules = {path.name for path in ROOT.glob("*.py")}
    assert modules <= set(re.findall(r"`(\w+\.py)`", readme)), "every module stands in the README's file map"


def test_equations_in_the_readme_are_where_the_code_tags_them():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \((\d)\) .*\| (`.*`) \|$", readme, re.M)
    claimed = {(number, place) for number, places in rows for place in re.findall(r"`([\w.:]+)`", places)}
    tagged = set()
    for path in set(ROOT.glob("*.py")) - {ROOT / "lesson.py"}:  # which only shows them
        lines, tree = path.read_text().splitlines(), ast.parse(path.read_text())
        for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            for function in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
                name = f"{path.name}:{getattr(owner, 'name', '')}.{function.name}".replace(":.", ":")
                text = "\n".join(lines[function.lineno : function.end_lineno])
                tagged |= {(number, name) for number in re.findall(r"# eq \((\d)\)", text)}
    assert claimed == tagged and {number for number, _ in tagged} == set("123456")


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
