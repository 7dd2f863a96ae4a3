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


def test_what_the_tables_show_is_in_the_files_as_read_by_hand():
    """One cell of three tables, and the trained retriever's own row, each from its files here."""
    def value(name, *keys):
        found = json.loads((ROOT / "results" / f"{name}.json").read_text())
        for key in keys:
            found = found[key]
        return found

    def cells(table, label):
        line = next(line for line in tables.TABLES[table]().splitlines() if line.startswith(f"| {label} |"))
        return [cell.strip() for cell in line.strip("|\n").split("|")]

    def shown(number):
        return f"{number:.3f}".lstrip("0")

    seeds = [value(f"dream-{seed}", "after", "classroom", "ndcg@10") for seed in (0, 1, 2)]
    assert any(cell.startswith(shown(sum(seeds) / 3)) for cell in cells("results", "dream"))
    names = ("cranfield", "cacm", "cisi", "medline", "adi", "humaneval", "mbpp")
    seven = [[value(f"qa-emdr-{seed}-beir", "metrics", name, "ndcg@10") for name in names] for seed in (0, 1, 2)]
    row = cells("beir", "qa-emdr")
    assert row[1] == "3" and row[3:10] == [shown(sum(column) / 3) for column in zip(*seven)]
    assert row[-1].startswith(shown(sum(map(sum, seven)) / 21))
    ours = "qa-dream-keep-temperature-.05"
    less = [sum(value(f"{ours}-{seed}-beir", "metrics", name, "ndcg@10") for name in names) / 7 - sum(seven[seed]) / 7 for seed in (0, 1, 2)]
    dev = [value(f"{ours}-{seed}", "after", "dev", "ndcg@10") - value(f"qa-emdr-{seed}", "after", "dev", "ndcg@10") for seed in (0, 1, 2)]
    assert cells("by_seed", "qa-emdr")[1:] == [", ".join(f"{x:+.3f}".replace("0.", ".") for x in column) for part in (less, dev) for column in (part, [sum(part) / 3])]
    own = [(value(f"own-keep-{name}-0", "before", name, "ndcg@10"), value(f"own-keep-{name}-0", "after", name, "ndcg@10")) for name in names[:4]]
    row = cells("corpus", "mean of the first four")
    assert [row[1], row[3]] == [shown(sum(column) / 4) for column in zip(*own)]


def test_every_result_says_how_it_came_about():
    paths = list((ROOT / "results").glob("*-[0-9].json"))
    assert len(paths) >= 4
    for path in paths:
        result = json.loads(path.read_text())
        assert result["config"]["seed"] == int(path.stem[-1]) and result["command"].startswith(("python train.py", "python exercises/")), path
        assert result["hardware"] and result["seconds"]["train"] > 0 and len(result["curve"]) == result["config"]["steps"], path
        assert sum(step["seconds"] for step in result["curve"]) <= result["seconds"]["train"] + 1 or path.stem == "qa-emdr-2", path  # its last part alone
        assert result["before"].keys() == result["after"].keys(), path
        assert all(metrics["ndcg@10"] > 0 for when in ("before", "after") for metrics in result[when].values()), path


def test_a_run_that_is_not_measured_with_all_seeds_is_not_compared_seed_by_seed(monkeypatch):
    whole, on = tables.by_seed(), tables.on_collections
    monkeypatch.setattr(tables, "on_collections", lambda files: on(files)[:2] if files.startswith("qa-emdr") else on(files))
    assert tables.by_seed() == "".join(line for line in whole.splitlines(keepends=True) if not line.startswith("| qa-emdr ")) != whole


def test_no_further_result_is_of_a_checkout_with_changes():
    paths = [path for name in ("*-[0-9].json", "*-[0-9]-beir.json") for path in (ROOT / "results").glob(name)]
    assert len(paths) >= 4
    for path in paths:
        commit = json.loads(path.read_text())["commit"]
        assert commit and commit.removesuffix("-dirty") in {commit, *UNCOMMITTED}, path


def test_what_was_not_measured_is_left_out_of_the_table_of_judges(monkeypatch):
    whole = tables.saturation_qa().splitlines()
    monkeypatch.setattr(tables, "JUDGES", {"SmolLM2-135M": "saturation-qa", "larger": "of-no-name"})
    assert tables.saturation_qa().splitlines() == [line for line in whole if not line.startswith("| larger")]
    assert tables.attention().splitlines()[-1] == "| larger | not run | not run | not run |"
