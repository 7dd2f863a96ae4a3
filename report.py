"""What a training run measures before and after, and what it leaves at its end: result.json, the table, pictures."""
import dataclasses
import os
import shlex
import shutil
import sys

from bm25 import BM25
from cache import SMALL, Cache
from checkpoints import clear
from evaluate import evaluate
from files import write_json
from output import table
from plot import plot_run
from processes import processes
from record import about_run


def measured(run, out):
    """{collection: metrics}; the embeddings of a small corpus are kept in the run's folder, where evaluate.py --ask finds them."""
    kept = Cache(run.retriever, out / "embeddings", tell=False)
    found = {name: evaluate(kept if len(c.corpus) <= SMALL else run.retriever, c, progress=True) for name, c in run.collections.items()}
    run.embeddings |= set(kept.kinds.values())
    return found


def report(run, training, out, before, after, clock, argv, data_digest, earlier=None):
    """Write result.json, and print the table. data_digest: of what was trained on; earlier: what about_run()
    said of an interrupted run's earlier processes."""
    config, bm25 = run.config, {name: evaluate(BM25(), c) for name, c in run.collections.items()}
    clock.lap("evaluate bm25")
    write_json(out / "result.json", {
        "before": before, "after": after, "bm25": bm25, "config": dataclasses.asdict(config), "seconds": clock.seconds,
        **about_run("train.py", argv, run.retriever.device, earlier), "processes": processes()[1], "candidates": training.documents,
        "data_digest": data_digest, "curve": training.curve})
    for left in set((out / "embeddings").glob("*/about.json")) if not config.resume else ():
        if left.parent not in run.embeddings:  # of an earlier run
            shutil.rmtree(left.parent)
    rows = {f"{name} {label}": values[name] for name in run.collections
            for label, values in (("BM25", bm25), ("before", before), ("after", after))}
    if rows:
        print(table(rows))
    if config.plot:
        print(*plot_run(out, run.retriever), sep="\n")
    clear(out, "checkpoint-*")  # all is there
    words = [os.path.relpath(sys.executable), "evaluate.py", "--model", str(out), "--data", config.eval or config.data]
    print(f"saved in {out}" + (f"; try: {shlex.join(words)}" if rows else ""))
