"""What a measured figure depends on: written beside every figure in results/."""
import functools
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

CPUINFO = Path("/proc/cpuinfo")


def processor():
    """The CPU's name where Linux tells it, or else its architecture's."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), f"{platform.machine()} CPU")


@functools.cache
def commit():
    """The checkout's commit when this was first asked, as a run's clock does at its start; None without git."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # git is not installed
        return None
    return git.stdout.strip() or None


def peak_mb():
    """The most memory that this process has had resident so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux KB


def about_run(script, argv, device=None, earlier=None):
    """What a figure depends on: versions, hardware, the commit, and the command (argv: None for the real command line).

    device: the torch device that has computed; None: a GPU where there is one. earlier: what this said of a run's earlier processes,
    whose hardware and peak count too.
    """
    gpu = torch.cuda.get_device_name(device) if torch.cuda.is_available() and str(device) != "cpu" else None
    hardware = gpu or f"{processor()}, {os.cpu_count()} cores"
    before = earlier["hardware"].split("; then ") if earlier else []
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "hardware": "; then ".join(dict.fromkeys([*before, hardware])),
        "peak_mb": max(peak_mb(), earlier["peak_mb"] if earlier else 0),
        "commit": commit(),
        "command": shlex.join(["python", script, *(sys.argv[1:] if argv is None else argv)]),
    }


class Clock:
    """Seconds of a run's parts; of one that was interrupted, those of its earlier processes too, as far as they were kept."""

    def __init__(self):
        self.laps, self.since = {}, time.perf_counter()
        commit()  # while the run lasts, the checkout may change

    @property
    def seconds(self):
        return {name: round(value, 2) for name, value in self.laps.items()}

    def lap(self, name):
        """All since the last lap belongs to `name`."""
        now = time.perf_counter()
        self.add({name: now - self.since})
        self.since = now

    def add(self, laps):
        for name, value in laps.items():
            self.laps[name] = self.laps.get(name, 0) + value
