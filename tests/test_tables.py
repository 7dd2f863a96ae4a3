"""Reported figures come from runs."""
import json

import tables
from conftest import ROOT

UNCOMMITTED = {"321cae6", "b149101", "dbf3942"}  # training runs of changed checkouts of these, named in results/README.md; there may be no others


def test_the_pages_show_what_the_results_say():
    parts = {m[2]: m[3] for page in tables.PAGES for m in tables.MARK.finditer(page.read_text())}
    assert parts == {name: make() for name, make in tables.TABLES.items()}


def test_a_cell_is_mean_and_sample_deviation():
    assert tables.cell([0.5, 0.6]) == ".550 +- .071"
    assert tables.cell([0.25]) == ".250"


def test_every_result_says_how_it_came_about():
    paths = list((ROOT / "results").glob("*-[0-9].json"))
    assert len(paths) >= 4
    for path in [*paths, *(ROOT / "results").glob("*-[0-9]-beir.json")]:
        commit = json.loads(path.read_text())["commit"]
        assert commit and commit.removesuffix("-dirty") in {commit, *UNCOMMITTED}, f"{path}: of a checkout with changes"
    for path in paths:
        result = json.loads(path.read_text())
        assert result["config"]["seed"] == int(path.stem[-1]) and result["command"].startswith(("python train.py", "python exercises/")), path
        assert result["hardware"] and result["seconds"]["train"] > 0 and len(result["curve"]) == result["config"]["steps"], path
        assert all(metrics["ndcg@10"] > 0 for when in ("before", "after") for metrics in result[when].values()) and result["before"].keys() == result["after"].keys(), path
