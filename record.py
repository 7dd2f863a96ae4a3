"""What a measured figure depends on: written beside every figure in results/."""
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


def about_run(script, argv):
    """What a figure depends on: versions, hardware, the commit, and the command (argv: None for the real command line)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "hardware": gpu or f"{processor()}, {os.cpu_count()} cores",
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,  # resident, on Linux
        "commit": commit,
        "command": shlex.join(["python", script, *(sys.argv[1:] if argv is None else argv)]),
    }


class Clock:
    """Seconds of a run's parts."""

    def __init__(self):
        self.seconds, self.since = {}, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.seconds[name], self.since = round(now - self.since, 2), now
