"""Do the tests notice a planted fault: mutants of inject.py and of the metrics, one at a time.

    OMP_NUM_THREADS=1 python tests/mutation.py [inject] [evaluate] [output]    # -> results/mutation.json

A mutant is the module with one change: an operator, a comparison or a constant is another, a condition is the opposite,
a keyword argument, a decorator or a statement is gone. It is killed if a test fails, or takes longer than TIMEOUT. A
survivor needs a test, or a `why` beside it in the file: what makes it no fault. A later run keeps that.
Docstrings, annotations and the text of messages stay as they are. mutmut 3.8 leaves functions with decorators out, such
as prefill and score_heads; so the mutants are made here. torch is imported once, and every mutant is a fork.
"""
import ast
import copy
import difflib
import json
import os
import signal
import sys
import tempfile
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"inject": (None, ["inject.py", "tests/test_inject.py"]),  # module: (functions or all, the tests that must notice)
           "evaluate": (("places", "compute_metrics", "geometry"), ["evaluate.py", "tests/test_evaluate.py"]),
           "output": (("rank",), ["tests/test_evaluate.py"])}
TIMEOUT = 120  # seconds; all tests of a module take about ten
PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
         (ast.In, ast.NotIn), (ast.And, ast.Or), ("any", "all"), ("max", "min"), ("amax", "amin"), ("sum", "mean")]
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
OTHER |= dict.fromkeys((ast.FloorDiv, ast.MatMult, ast.Mod, ast.Pow), ast.Mult)


def variants(node):
    """What may stand in a node's place."""
    def changed(**fields):
        new = copy.copy(node)
        vars(new).update(fields)
        return new

    match node:
        case ast.Constant(value=bool()):
            yield changed(value=not node.value)
        case ast.Constant(value=int() | float() | str()):
            yield changed(value=node.value + ("?" if isinstance(node.value, str) else 1))
        case ast.BinOp() | ast.BoolOp() if type(node.op) in OTHER:
            yield changed(op=OTHER[type(node.op)]())
        case ast.Compare():
            yield from (changed(ops=[*node.ops[:i], OTHER[type(op)](), *node.ops[i + 1 :]]) for i, op in enumerate(node.ops))
        case ast.UnaryOp():
            yield node.operand
        case ast.If() | ast.IfExp():
            yield changed(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Attribute(attr=name) if name in OTHER:
            yield changed(attr=OTHER[name])
        case ast.Name(id=name) if name in OTHER:
            yield changed(id=OTHER[name])
    for name in ("ifs", "keywords", "decorator_list"):  # one of them less
        parts = getattr(node, name, [])
        yield from (changed(**{name: parts[:i] + parts[i + 1 :]}) for i in range(len(parts)))
    match node:
        case ast.Expr() | ast.AugAssign() | ast.Assert() | ast.Raise() | ast.Assign(targets=[ast.Subscript()]):
            yield ast.Pass()


def mutants(module, functions):
    """Yield (line, diff, source) of every mutant of a module's `functions`."""
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    original = ast.unparse(tree).splitlines()

    def visit(node):
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            for i, child in enumerate(children):
                docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                elsewhere = node is tree and functions and getattr(child, "name", "") not in functions
                if name in ("annotation", "returns", "msg") or not isinstance(child, ast.AST) or docstring or elsewhere:
                    continue
                for new in variants(child):
                    setattr(node, name, [*children[:i], new, *children[i + 1 :]] if isinstance(value, list) else new)
                    source = ast.unparse(tree)
                    diff = [line for line in difflib.ndiff(original, source.splitlines()) if line[0] in "-+"]
                    yield getattr(child, "lineno", getattr(node, "lineno", None)), diff, source
                setattr(node, name, value)
                yield from visit(child)

    yield from visit(tree)


def survives(module, source, tests, folder):
    """Run the tests on a module's `source` in a fork -> do they all pass in time?"""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        signal.alarm(TIMEOUT)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for name, loaded in list(sys.modules.items()):  # the tests must import the mutant
            if name != "__main__" and Path(getattr(loaded, "__file__", None) or "/").parent in (ROOT, ROOT / "tests"):
                del sys.modules[name]
        mutant = sys.modules[module] = types.ModuleType(module)
        mutant.__file__ = str(ROOT / f"{module}.py")
        exec(compile(source, mutant.__file__, "exec"), vars(mutant))
        code = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={folder}/tests", *tests])
    finally:
        os._exit(code)


def measure(module, reasons):
    """All mutants of a module -> what results/mutation.json says of it; reasons: {diff: why} of survivors that are no fault."""
    (functions, tests), count, survivors = TARGETS[module], 0, []
    with tempfile.TemporaryDirectory() as folder:
        pytest.main(["-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests", *tests])  # what a fork need not import again
        if not survives(module, (ROOT / f"{module}.py").read_text(), tests, folder):
            sys.exit(f"{' '.join(tests)}: must pass before anything is changed")
        for count, (line, diff, source) in enumerate(mutants(module, functions), 1):
            if survives(module, source, tests, folder):
                survivors.append({"line": line, "diff": diff, "why": reasons.get(tuple(diff), "")})
                print(f"{module}.py:{line} survives", *diff, sep="\n", flush=True)
    print(f"{module}: {count - len(survivors)} of {count} killed", flush=True)
    return {"functions": functions or "all", "tests": tests, "mutants": count, "killed": count - len(survivors),
            "share": round(1 - len(survivors) / count, 3), "survivors": survivors}


def main(names):
    from record import about_run

    os.chdir(ROOT)
    path = ROOT / "results" / "mutation.json"
    modules = json.loads(path.read_text())["modules"] if path.is_file() else {}
    for module in names or TARGETS:
        modules[module] = measure(module, {tuple(s["diff"]): s["why"] for s in modules.get(module, {}).get("survivors", ())})
    path.write_text(json.dumps({"modules": modules, **about_run("tests/mutation.py", None)}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
