"""How a step grows with its batch, and what other models would cost: `bench.py --growth` and `bench.py --plan`."""
import json
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from cost import SHAPES, Batch, count_bytes, count_flops, plan, random_model
from data import load_corpus
from measure import alone, counted, forget, kept, part_by_part, peak, prepare, save_random, seconds, timed
from model import PROMPTS, Retriever

GROWTH = {"questions": (4, 8, 16, 32, 64), "pool": (4, 8, 16, 32, 64), "document_tokens": (64, 128, 256, 512)}


def grow(backbone, data, setting, repeats):
    """Seconds and MB of DREAM steps of one setting."""
    run = prepare(backbone, data, **setting)
    pools = run.pools(0)

    def step():
        pool = next(pools)
        assert (len(pool.examples), len(pool.documents)) == (run.config.questions, run.config.pool), "too few rows or documents"
        run.step(pool)
        forget(run.retriever)

    memory = peak(lambda: (run.choose_heads(), step()))
    times = [seconds(step) for _ in range(repeats + 1)]
    return {"seconds": [round(t, 3) for t in times[1:]], "median": statistics.median(times[1:]), "extra_mb": memory}


def bench_growth(args):
    """How time and memory grow: random weights, SmolLM2-135M's shape with 4 of its 30 layers, long documents."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        save_random(folder, args.backbone, layers=4)
        texts = list(load_corpus(args.data).items())
        data = Path(folder) / "data"
        data.mkdir()
        long = [{"_id": d, "title": "", "text": " ".join(t for _, t in (texts * 2)[i : i + 8])} for i, (d, _) in enumerate(texts)]
        (data / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
        (data / "train.jsonl").write_bytes((Path(args.data) / "train.jsonl").read_bytes() * 6)  # questions enough for few documents
        for name, values in GROWTH.items():
            results[name] = {value: alone(grow, folder, str(data), {"heads": 4, "neighbours": 1, name: value}, args.repeats) for value in values}
            points = list(results[name].items())
            print(f"{name:16s}{'seconds':>9s}{'exponent':>9s}{'MB':>9s}{'exponent':>9s}")
            for (before, was), (value, now) in zip([points[0], *points], points):
                exponents = [math.log(now[x] / was[x]) / math.log(value / before) if value != before and min(now[x], was[x]) > 0 else None
                             for x in ("median", "extra_mb")]
                now["exponents"] = exponents
                shown = [f"{x:9.2f}" if x is not None else f"{'-':>9s}" for x in exponents]
                print(f"{value:16d}{now['median']:9.2f}{shown[0]}{now['extra_mb']:9d}{shown[1]}", flush=True)
    return {"growth": results}


CHECKS = {"Qwen2-0.5B": 24, "Llama-3.2-1B": 16, "Llama-3.2-3B": 8, "Qwen2.5-7B": 4}  # layers that 24 GB hold


def check_plan(name, layers, batch):
    """A step of random weights of a shape, and what cost.py says of it, both counted on this machine."""
    shape, batch = replace(SHAPES[name], layers=layers), Batch(**batch)
    retriever = Retriever(name, None, random_model(shape), prompts=dict.fromkeys(PROMPTS, ""), suffix="")  # token ids, no texts
    retriever.add_lora(16, 32)
    heads = [(layer, head) for layer in range(layers // 4, layers) for head in range(shape.heads)][:16]
    flops, held = count_flops(shape, shape, batch, heads=len(heads)), count_bytes(shape, shape, batch, size=4)
    timing = part_by_part(retriever, batch, heads, timed)
    seen, bytes_seen = part_by_part(retriever, batch, heads, counted), part_by_part(retriever, batch, heads, kept)
    return {"layers": layers, "all_layers": SHAPES[name].layers, "operations, counted / planned": sum(seen.values()) / sum(flops.values()),
            "encoder activations, kept / planned": bytes_seen["encoder forward"] / held["encoder activations"],
            "gflops": sum(seen.values()) / sum(timing.values()) / 1e9}


def bench_plan(args):
    """Other models on paper, and steps of random weights of their shapes, as many layers as memory holds, against the paper."""
    text, rows = plan()
    print(text)
    batch = Batch(4, 4, 64)
    checks = {name: alone(check_plan, name, layers, vars(batch)) for name, layers in CHECKS.items()}
    for name, check in checks.items():
        print(f"{name}, {check['layers']} of {check['all_layers']} layers, random weights: " + ", ".join(
            f"{key} {value:.2f}" for key, value in check.items() if "planned" in key) + f"; {check['gflops']:.0f} GFLOPS here")
    return {"setting": {"pool": batch.documents, "questions": batch.questions, "document_tokens": batch.document}, "plan": rows, "checks": checks}
