"""Backbones by name: the list, and the hub's own environment variables, against a server in a thread that is the hub. No network."""
import json
import os
import runpy
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from conftest import ROOT, save_tiny, serving, write_collection

from backbones import BACKBONES

LISTED = {  # what `python model.py` must name: hub id, parameters, licence
    "SmolLM2-135M": ("HuggingFaceTB/SmolLM2-135M-Instruct", "135M", "Apache-2.0"),
    "SmolLM2-360M": ("HuggingFaceTB/SmolLM2-360M-Instruct", "362M", "Apache-2.0"),
    "Qwen2-0.5B": ("Qwen/Qwen2-0.5B", "494M", "Apache-2.0"), "Qwen2.5-0.5B": ("Qwen/Qwen2.5-0.5B", "494M", "Apache-2.0"),
    "Qwen2.5-1.5B": ("Qwen/Qwen2.5-1.5B", "1.54B", "Apache-2.0"), "Qwen2.5-3B": ("Qwen/Qwen2.5-3B", "3.09B", "Qwen Research"),
    "Qwen3-0.6B": ("Qwen/Qwen3-0.6B", "596M", "Apache-2.0"), "Llama-3.2-1B": ("meta-llama/Llama-3.2-1B", "1.24B", "Llama 3.2 Community"),
    "Llama-3.2-3B": ("meta-llama/Llama-3.2-3B", "3.21B", "Llama 3.2 Community")}


def test_the_command_lists_every_backbone(capsys):
    runpy.run_path(str(ROOT / "model.py"), run_name="__main__")
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(BACKBONES) == len(LISTED)
    for line, (name, (hub, parameters, licence)) in zip(told, LISTED.items()):
        assert line.split() == [name, parameters, *licence.split(), hub]


class Hub(BaseHTTPRequestHandler):
    """Whatever model is asked for is the one of `server.folder`, or not there at all."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        owner_name, _, file = self.path.lstrip("/").partition("/resolve/main/")
        path = self.server.folder / file if owner_name == self.server.repository and file else None
        there = path is not None and path.is_file()
        body = path.read_bytes() if there else b"none"
        code = "EntryNotFound" if self.server.repository in self.path else "RepoNotFound"
        self.send_response(200 if there else 404)
        for name, value in {"ETag": f'"{file}"', "X-Repo-Commit": "0123456789" * 4, "Content-Length": str(len(body)),
                            **({} if there else {"X-Error-Code": code})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """A hub that has a tiny Qwen2 under the id of Qwen2-0.5B, and what a process needs to use it."""
    with serving(Hub) as server:
        server.asked, server.repository, server.folder = [], BACKBONES["Qwen2-0.5B"].hub, tmp_path / "weights"
        save_tiny(server.folder, "qwen2")
        server.environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"),
                              "HF_TOKEN": "hf_secret", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        yield server


def test_a_short_name_comes_from_the_mirror_and_offline_from_the_cache(mirror, tmp_path):
    data = write_collection(tmp_path / "data")

    def run(model, **environment):
        done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--model", model, "--data", data, "--out", tmp_path / "out.json"], cwd=tmp_path,
                              env={**mirror.environment, **environment}, capture_output=True, text=True)
        assert "hf_secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done

    first = run("Qwen2-0.5B")
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    home = "/Qwen/Qwen2-0.5B/resolve/main/"
    assert {path for path, _ in mirror.asked} >= {home + name for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert {token for path, token in mirror.asked if path.endswith(".safetensors")} == {"Bearer hf_secret"}
    mirror.asked.clear()
    (tmp_path / "out.json").unlink()
    assert run("Qwen2-0.5B", HF_HUB_OFFLINE="1").returncode == 0 and not mirror.asked
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == found
    (tmp_path / "out.json").unlink()
    with_password = {"HF_ENDPOINT": mirror.url.replace("//", "//me:hf_secret@"), "HF_HOME": str(tmp_path / "other")}
    for model, environment in (("Qwen/Qwen2.5-0.5B", {"HF_HUB_OFFLINE": "1"}), ("no-such-owner/no-such-model", with_password)):
        mirror.asked.clear()
        wrong = run(model, **environment)
        told = [line for line in wrong.stderr.replace("\r", "\n").split("\n") if line.strip() and "%|" not in line]
        assert wrong.returncode == 2 and len(told) == 1 and model in told[0], wrong.stderr
        assert not (tmp_path / "out.json").exists()
        assert bool(mirror.asked) == ("HF_HUB_OFFLINE" not in environment)
