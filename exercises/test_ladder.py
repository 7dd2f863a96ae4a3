"""Runs the checkers on your files: `pytest exercises -m ex3` for exercise 3, `pytest exercises` for all."""
import importlib

import pytest

from checkers import LADDER


@pytest.mark.parametrize("file, names, checker", [pytest.param(*parts, id=parts[0], marks=getattr(pytest.mark, f"ex{number}"))
                                                  for number, parts in LADDER.items()])
def test_exercise(file, names, checker):
    mine, broken = importlib.import_module(file), None
    try:
        checker(*(getattr(mine, name) for name in names))
    except (NotImplementedError, AssertionError) as error:
        broken = str(error) or repr(error)
    if broken:
        pytest.fail(broken, pytrace=False)
