"""What a figure depends on, where a machine tells it and where it does not."""
import os
import platform
import types

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


def test_the_hardware_is_what_computed(monkeypatch):
    monkeypatch.setattr(record.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record.torch.cuda, "get_device_name", {None: "The first", "cuda:1": "The second"}.get)
    told = {device: record.about_run("train.py", [], device)["hardware"] for device in (None, "cuda:1", "cpu")}
    assert told[None] == "The first" and told["cuda:1"] == "The second" and told["cpu"].endswith(" cores")


def test_memory_is_counted_in_bytes_on_macos(monkeypatch):
    monkeypatch.setattr(record.resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=3 * 1024**2))
    monkeypatch.setattr(record.sys, "platform", "linux")
    assert record.peak_mb() == 3 * 1024
    monkeypatch.setattr(record.sys, "platform", "darwin")
    assert record.peak_mb() == 3


def test_the_commit_is_that_of_the_start(monkeypatch):
    now = types.SimpleNamespace(stdout="first\n")
    monkeypatch.setattr(record.subprocess, "run", lambda *command, **how: now)
    record.commit.cache_clear()
    try:
        record.Clock()
        now.stdout = "second\n"
        assert record.about_run("train.py", [])["commit"] == "first"
    finally:
        record.commit.cache_clear()
