"""What a figure depends on, where a machine tells it and where it does not."""
import os
import platform

import pytest

import record


@pytest.mark.parametrize("told, expected", [
    ("processor\t: 0\nmodel name\t: Some CPU @ 2.5GHz: fast\nprocessor\t: 1\nmodel name\t: Other\n", "Some CPU @ 2.5GHz: fast"),
    ("processor\t: 0\nBogoMIPS\t: 50.00\n", f"{platform.machine()} CPU"),  # as on ARM
    (None, f"{platform.machine()} CPU"),
])
def test_the_processor_has_its_name(tmp_path, monkeypatch, told, expected):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(record, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(record.torch.cuda, "is_available", lambda: False)
    assert record.about_run("train.py", [])["hardware"] == f"{expected}, {os.cpu_count()} cores"
