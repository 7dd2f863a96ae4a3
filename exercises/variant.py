"""A run of train.py with one thing changed that has no flag: measured, trained, measured again.

It takes train.py's flags, but for --resume, --gather and --plot, and keeps no checkpoint (--save-every): a run that is interrupted
begins anew. The folder gets the retriever, `metrics.jsonl` and `result.json`, as after train.py, but without BM25's metrics.
"""
import dataclasses
import json
import sys

import given  # noqa: F401  (the repository's modules)
from checkpoints import check_out, claim, clear
from config import parse
from files import BadInput, write_json
from objectives import INJECTS
from output import table
from plot import PICTURES
from record import Clock, about_run
from report import measured
from train import train


def run_variant(kind, script, flags, argv=None):
    """Carry out a Run of another `kind`. flags: what stands before the command line's own, which win. Raises BadInput."""
    words = [*flags, *(sys.argv[1:] if argv is None else argv)]
    if without := [flag for flag in ("--resume", "--gather", "--plot") if flag in words]:
        raise BadInput(f"{script} has no {without[0]}")
    config = parse(words)
    check_out(config)
    clock, run = Clock(), kind(config)
    clock.lap("load")
    with claim(config) as out:
        with run.retriever.adapters_off():
            before = measured(run, out)
        clock.lap("evaluate before")
        if config.objective in INJECTS:
            scores = run.choose_heads().tolist()
            clock.lap("choose heads")
        clear(out, "result.json", "adapter_*", "retriever.json", "heads.json", *PICTURES)
        if run.heads:
            write_json(out / "heads.json", {"heads": run.heads, "scores": scores})
        with open(out / "metrics.jsonl", "w", buffering=1) as file:
            training = train(run, lambda record: file.write(json.dumps(record) + "\n"))
        clock.lap("train")
        run.retriever.save(out)
        after = measured(run, out)
        clock.lap("evaluate after")
        write_json(out / "result.json", {"before": before, "after": after, "config": dataclasses.asdict(config), "seconds": clock.seconds,
                                         **about_run(script, argv, run.retriever.device), "curve": training.curve})
        rows = {f"{name} {label}": values[name] for name in run.collections for label, values in (("before", before), ("after", after))}
        print(table(rows) if rows else f"saved in {out}")
