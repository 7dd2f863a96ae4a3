"""What a DREAM step costs, as a ratio to the contrastive step that it replaces.

    python bench.py [--repeats 7] [--out results/bench.json]

Both steps share the encoder, the pools and the batch: 16 questions x 16 documents x 64 tokens. They take turns in one
process and medians are compared, because the machine's speed drifts. Peak memory is the resident memory (on Linux) of a
process of its own for each objective.
"""
import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from data import command, write_json
from record import about_run
from train import Run, parse

SETTING = ["--pool", "16", "--questions", "16", "--document-tokens", "64"]


def prepare(backbone, data):
    return Run(parse(["--backbone", backbone, "--data", data, *SETTING]))


def timed(run, objective, pool):
    """One forward and backward pass of `objective` on `pool`, in seconds."""
    run.config.objective = objective
    start = time.perf_counter()
    run.step(pool)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for parameter in run.retriever.parameters():
        parameter.grad = None
    return seconds


def compare(run, repeats):
    """Seconds of each objective's steps, taken in turns on the same pools; the first turn is warm-up."""
    seconds, pools = {"infonce": [], "dream": []}, run.pools(0)
    for turn in range(repeats + 1):
        pool = next(pools)
        for objective in seconds:
            elapsed = timed(run, objective, pool)
            if turn:
                seconds[objective].append(round(elapsed, 3))
    return seconds


def peak_memory(args, objective):
    """Highest resident memory of a fresh process that takes two steps, in MB."""
    call = [sys.executable, __file__, "--backbone", args.backbone, "--data", args.data, "--memory-of", objective]
    return int(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbone", default="SmolLM2-135M")
    parser.add_argument("--data", default="classroom")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each kind that count (default: %(default)s)")
    parser.add_argument("--out", help="write the figures here, as JSON")
    parser.add_argument("--memory-of", choices=("infonce", "dream"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # Children first, while this process is small: on Linux a child's peak starts at its parent's.
    memory = {} if args.memory_of else {objective: peak_memory(args, objective) for objective in ("infonce", "dream")}
    run = prepare(args.backbone, args.data)
    if args.memory_of:
        pools = run.pools(0)
        if args.memory_of != "infonce":
            run.choose_heads()
        for _ in range(2):
            timed(run, args.memory_of, next(pools))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    run.choose_heads()
    seconds = compare(run, args.repeats)
    median = {objective: statistics.median(values) for objective, values in seconds.items()}
    ratio = median["dream"] / median["infonce"]
    for objective in seconds:
        print(f"{objective:8s} {median[objective]:7.2f} s a step (median of {args.repeats}), peak {memory[objective]} MB")
    print(f"dream / infonce: {ratio:.2f} in time, {memory['dream'] / memory['infonce']:.2f} in peak memory")
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, {**about_run("bench.py", argv), "setting": " ".join(SETTING),
                              "seed": run.config.seed, "seconds": seconds, "median": median,
                              "ratio": ratio, "peak_mb": memory, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    command(main)
