"""Every dependency is declared, pinned, used, and has its reason beside it; what only extras need is imported where it is used."""
import ast
import re
import sys
from importlib.metadata import packages_distributions, version

import pytest
from conftest import ROOT

MODULES = sorted(ROOT.glob("*.py"))
OWN = {path.stem for pattern in ("*.py", "tests/*.py", "exercises/*.py") for path in ROOT.glob(pattern)}
DISTRIBUTIONS = packages_distributions()
FOR_TRANSFORMERS = {"gguf", "accelerate"}  # what the packaged model is read with, inside transformers
EXTRAS = ("requirements-plot.txt", "requirements-peers.txt", "requirements-test.txt")
WEIGHTS = ("requirements-model.txt", "requirements-test-model.txt")


def plain(name):
    """A distribution's name as indexes compare it.

    >>> plain("PyYAML"), plain("huggingface_hub")
    ('pyyaml', 'huggingface-hub')
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(file, included=True):
    """{distribution: (version, reason)} of a requirement file and of those that it includes."""
    found = {}
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("-r "):
            found |= declared(line[3:], included) if included else {}
        elif line and not line.startswith("#"):
            name, pinned, reason = re.fullmatch(r"([\w.-]+)==([\w.]+)(?: +--hash=sha256:[0-9a-f]{64})?(?: +# (.+))?", line).groups()
            assert plain(name) not in found, line
            found[plain(name)] = pinned, reason
    return found


def modules(node):
    """The modules that a node of a syntax tree imports: by a statement, or by pytest.importorskip."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {node.module.partition(".")[0]}
    skips = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip"
    return {node.args[0].value.partition(".")[0]} if skips else set()


def imported(path):
    """{distribution: whether each import of it is within a function} of a Python file; this project and Python itself aside."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), {}
    within = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        for module in modules(node) - OWN - set(sys.stdlib_module_names):
            distribution = plain(DISTRIBUTIONS[module][0])
            found[distribution] = found.get(distribution, True) and id(node) in within
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_imports_the_base_set_and_extras_only_where_they_are_used(path):
    base, extras = declared("requirements.txt"), declared("requirements-plot.txt") | declared("requirements-peers.txt")
    for name, lazy in imported(path).items():
        assert name in base or (lazy and name in extras), f"{path.name} imports {name}"


def test_everything_in_the_base_set_is_used_by_the_main_job():
    """Imported at the top of a module that training or evaluation loads; the two that are not say why."""
    job, todo = set(), ["train.py", "evaluate.py", "data.py", "export.py"]
    while todo:
        path = ROOT / todo.pop()
        job.add(path)
        names = {f"{name}.py" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in modules(node)}
        todo += [name for name in names if ROOT / name in set(MODULES) - job and name not in todo]
    used = {name for path in job for name, lazy in imported(path).items() if not lazy}
    base = declared("requirements.txt")
    assert base.keys() - used == FOR_TRANSFORMERS
    assert all("not imported: transformers" in base[name][1] for name in FOR_TRANSFORMERS)
    assert len(job) < len(MODULES) and ROOT / "bench_peers.py" not in job


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_tests_import_nothing_undeclared(path):
    everything = declared("requirements.txt") | declared("requirements-test.txt")
    assert imported(path).keys() <= everything.keys()


@pytest.mark.parametrize("file", ("requirements.txt", *EXTRAS))
def test_every_dependency_is_pinned_to_what_is_tested_and_has_a_reason(file):
    for name, (pinned, reason) in declared(file, included=False).items():
        assert version(name).partition("+")[0] == pinned, name
        assert reason and len(reason) > 6, name


def test_no_extra_is_in_the_base_set_and_tests_have_them_all():
    base, plot, peers = (declared(f) for f in ("requirements.txt", "requirements-plot.txt", "requirements-peers.txt"))
    assert not base.keys() & (plot | peers).keys() and not plot.keys() & peers.keys()
    assert (plot | peers).keys() < declared("requirements-test.txt").keys()
    named = {name for file in sorted(ROOT.glob("requirements*.txt")) for name in declared(file)}
    used = {name for path in (*MODULES, *(ROOT / "tests").glob("*.py")) for name in imported(path)}
    weights = {name for file in WEIGHTS for name in declared(file)}
    assert named - used - weights == FOR_TRANSFORMERS | {"pytest-xdist"}  # the -n of make test


def test_weights_are_pinned_by_their_hash():
    for file in WEIGHTS:
        lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
        assert lines and all(re.search(r"--hash=sha256:[0-9a-f]{64}$", line) for line in lines)


def test_make_installs_again_when_a_requirement_file_changes():
    rules = dict(re.findall(r"^(\.venv/\S+): (.+)$", (ROOT / "Makefile").read_text(), re.M))
    watched = {word for files in rules.values() for word in files.split() if word.startswith("requirements")}
    assert watched == {path.name for path in ROOT.glob("requirements*.txt")}
