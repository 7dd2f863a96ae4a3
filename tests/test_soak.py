"""The soak run itself: two rounds of a tiny model, and that it notices what grows."""
import json

import soak
from conftest import on_linux


@on_linux
def test_two_rounds_are_recorded_and_equal(tiny_folder, collection_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(soak, "FIRST", 0)  # or there is no round to judge
    monkeypatch.setitem(soak.ALLOWED, "resident_mb", 1000)  # what earlier tests have freed is taken again, or not
    flags = ["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--steps", "1", "--pool", "4", "--heads", "4"]
    assert soak.main(["--minutes", "0", "--out", str(tmp_path / "soak.json"), "--", *flags])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert len(found["rounds"]) == 2 and found["same loss in every round"] and found["grown"] == []
    assert all(r["resident_mb"] > 50 and r["open_files"] > 2 and r["threads"] >= 1 and r["free_mb"] > 0 for r in found["rounds"])
    assert "flat" in capsys.readouterr().out


def rounds(**leak):
    flat = {"resident_mb": 900.0, "open_files": 9, "threads": 4, "used_mb": 3.0}
    return [{name: value + leak.get(name, 0) * i for name, value in flat.items()} for i in range(10)]


def test_what_grows_is_named():
    assert soak.verdict(rounds()) == (dict.fromkeys(soak.ALLOWED, 0.0), [])
    for name, step in (("resident_mb", 20), ("open_files", 1), ("threads", 1), ("used_mb", 4)):
        assert soak.verdict(rounds(**{name: step}))[1] == [name]
    assert soak.verdict(rounds(resident_mb=5))[1] == []  # noise of an allocator
    jump = [{**r, "resident_mb": 500.0 if i < 2 else 900.0} for i, r in enumerate(rounds())]
    assert soak.verdict(jump)[1] == []  # the first rounds fill caches
