"""What a DREAM step costs: counted, timed, and compared with the contrastive step that it replaces.

    python bench.py --out results/bench.json           # the step: ratio to InfoNCE, operations and rate by part, memory
    python bench.py --naive --out results/bench-naive.json
    python bench.py --peft --out results/bench-peft.json
    python bench.py --growth --out results/bench-growth.json
    python bench.py --plan --out results/plan.json     # other models, on paper (cost.py), checked against small steps

Everything is a ratio within one process, whose sides take turns, because a machine's speed drifts; medians after warm-up.
Memory is what a process of its own takes beyond the loaded models. How each is measured: measure.py.
"""
import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from attention import READY
from cost import SHAPES, Batch, Shape, count_bytes, count_flops, plan, random_model
from data import command, load_corpus, write_json
from inject import target_nll
from measure import (counted, in_turns, kept, medians, part_by_part, peak, product_rate, seconds, share_outside_products,
                     timed)
from model import Retriever
from record import about_run
from train import Run, parse

SETTING = {"pool": 16, "questions": 16, "document_tokens": 64}


def prepare(backbone, data, **setting):
    """A Run of SETTING, changed by `setting`."""
    flags = ["--backbone", backbone, "--data", data]
    for name, value in {**SETTING, **setting}.items():
        flags += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    run = Run(parse(flags))
    for parameter in run.retriever.llm.parameters():
        parameter.sum()  # what is only mapped so far is in memory from now on
    return run


def alone(call, *arguments):
    """A function of this file, by name, in a process of its own, where no earlier peak has left pages -> what it returns."""
    script = [sys.executable, __file__, "--child", json.dumps([call, *arguments])]
    return json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def step_memory(backbone, data, objective, setting=()):
    """MB of two steps, beyond the loaded models."""
    run = prepare(backbone, data, objective=objective, **dict(setting))
    pools = run.pools(0)

    def steps():
        if objective != "infonce":
            run.choose_heads()
        for _ in range(2):
            run.step(next(pools))

    return peak(steps)


def forget(run):
    for parameter in run.retriever.parameters():
        parameter.grad = None


# ------------------------------------------------------------------------------------------------- what is measured


def bench_step(args):
    """A DREAM step and an InfoNCE step on the same pools, and where the DREAM step's time goes."""
    memory = {name: alone("step_memory", args.backbone, args.data, name.split()[0], setting) for name, setting in {
        "infonce": {}, "dream": {}, "dream --checkpoint": {"checkpoint": True}, "dream --embed-chunk 4": {"embed_chunk": 4},
        "dream --checkpoint --embed-chunk 4": {"checkpoint": True, "embed_chunk": 4}}.items()}
    run = prepare(args.backbone, args.data)
    run.choose_heads()
    stream, pool = run.pools(0), None

    def one(objective):
        run.config.objective = objective
        run.step(pool)
        forget(run)

    times = {"infonce": [], "dream": []}
    for turn in range(args.repeats + 1):  # the first is warm-up
        pool = next(stream)
        for objective, values in times.items():
            elapsed = seconds(lambda: one(objective))
            values += [round(elapsed, 3)] if turn else []
    median = medians(times)
    shape, batch = Shape.of(run.retriever.llm.config), Batch(SETTING["questions"], SETTING["pool"], SETTING["document_tokens"], query=19, suffix=25, targets=4)
    first = min(layer for layer, _ in run.heads) / shape.layers
    flops = count_flops(shape, shape, batch, first=first)
    parts = [part_by_part(run.retriever, batch, run.heads, timed) for _ in range(args.repeats + 1)][1:]
    parts = {name: statistics.median(turn[name] for turn in parts) for name in flops}
    rate = product_rate(shape.width, shape.intermediate, batch.prefix, run.retriever.llm.get_input_embeddings().weight)
    outside = share_outside_products(lambda: one("dream"))
    ratios = {"dream / infonce": median["dream"] / median["infonce"],
              "by count": sum(flops.values()) / (flops["encoder forward"] + flops["encoder backward"]),
              "peak beyond the models": memory["dream"] / memory["infonce"]}
    print(f"{'':20s}{'GFLOP':>9s}{'seconds':>9s}{'GFLOPS':>9s}{'of rate':>9s}")
    for name in flops:
        print(f"{name:20s}{flops[name] / 1e9:9.0f}{parts[name]:9.2f}{flops[name] / parts[name] / 1e9:9.0f}"
              f"{flops[name] / parts[name] / rate:9.0%}")
    print(f"matrix products alone: {rate / 1e9:.0f} GFLOPS; outside them: {outside:.0%} of a DREAM step")
    for name, value in memory.items():
        print(f"{name:40s}{value:6d} MB beyond the models" + (f", {median[name]:.2f} s a step" if name in median else ""))
    print(", ".join(f"{name}: {value:.2f}" for name, value in ratios.items()))
    return {"seconds": times, "median": median, "flops": flops, "part_seconds": parts, "product_rate": rate, "extra_mb": memory,
            "outside_products": outside, "ratios": ratios}


def naive_attention(module, query, key, value, attention_mask, scaling, naive, **kwargs):
    """The specification of eqs (3) and (4): the documents and one question in full, eager, heads and documents in loops."""
    prefix, document_of, weights, heads = naive  # L; (L,); (K,); {(layer, head)}
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(groups, 1)[0] for x in (key, value))  # (H, S, d)
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    logits = (query[0] @ key.transpose(1, 2) * scaling).masked_fill(future, -torch.inf)  # (H, S, S)
    outputs = list((logits.softmax(-1) @ value).unbind())
    for head in range(len(outputs)):
        if (module.layer_idx, head) in heads:
            rows = 0
            for k, weight in enumerate(weights):
                inside = (document_of == k).nonzero().flatten()
                rows = rows + weight * (logits[head, prefix:][:, inside].softmax(-1) @ value[head, inside])  # eqs (3), (4)
            outputs[head] = torch.cat([outputs[head][:prefix], rows])
    return torch.stack(outputs)[None].transpose(1, 2), None


AttentionInterface.register("naive", naive_attention)


def naive_loss(run, llm, pool, weights, questions):
    """The specification of eq (5): each question its own pass over everything -> the first `questions` losses, one at a time."""
    context, document_of = run.prompts.context([run.corpus[d] for d in pool.documents])
    suffixes, target_mask = run.prompts.suffixes(pool.examples)
    llm.set_attn_implementation("naive")
    for b in range(questions):
        end = int(target_mask[b].nonzero().max()) + 1
        row = torch.cat([context[0], suffixes[b, :end]])
        logits = llm(row[None], use_cache=False, attention_mask=READY,
                     naive=(context.shape[1], document_of, weights[b], set(map(tuple, run.heads)))).logits[0]
        targets = context.shape[1] + target_mask[b].nonzero().flatten()
        yield F.cross_entropy(logits[targets - 1].float(), row[targets])


def our_loss(run, llm, pool, weights):
    prefix, input_ids, target_mask = run.read(llm, pool)
    return target_nll(llm, prefix, input_ids, target_mask, weights, run.heads)


def judged(run, pool, how, questions=None):
    """The judge's part of a step, `how` one of "ours", "naive" (each question's graph freed before the next) or "naive, graphs
    together", for the first `questions` -> (losses, gradient of the weights)."""
    generator, questions = torch.Generator().manual_seed(0), questions or len(pool.examples)
    weights = torch.randn(len(pool.examples), len(pool.documents), generator=generator).mul(2).softmax(-1).requires_grad_()
    with run.retriever.adapters_off() as llm:
        if how == "ours":
            losses = our_loss(run, llm, pool, weights)
            losses.mean().backward()
            return losses.detach(), weights.grad
        losses = []
        for loss in naive_loss(run, llm, pool, weights, questions):
            if how == "naive":
                (loss / questions).backward()
            losses.append(loss if "together" in how else loss.detach())
        losses = torch.stack(losses)
        if losses.requires_grad:
            losses.mean().backward()
        return losses.detach(), weights.grad


def judge_memory(backbone, data, heads, how, questions=None):
    run = prepare(backbone, data)
    pool, run.heads = next(run.pools(0)), heads
    return peak(lambda: judged(run, pool, how, questions))


def bench_naive(args):
    """The judge's part and the whole step, against the naive implementation: time, memory, losses, gradients."""
    run = prepare(args.backbone, args.data)
    run.choose_heads()
    memory = {"ours": alone("judge_memory", args.backbone, args.data, run.heads, "ours"),
              "naive": alone("judge_memory", args.backbone, args.data, run.heads, "naive", 2)}  # the others change no peak
    together = [alone("judge_memory", args.backbone, args.data, run.heads, "naive, graphs together", n) for n in (1, 2)]
    memory["naive, all graphs, from one and two questions"] = together[0] + (SETTING["questions"] - 1) * (together[1] - together[0])
    pool = next(run.pools(0))
    ours, naive = judged(run, pool, "ours"), judged(run, pool, "naive")
    differences = {"losses": (ours[0] - naive[0]).abs().max().item(),
                   "gradients, relative": ((ours[1] - naive[1]).abs().max() / naive[1].abs().max()).item()}
    rows = run.retriever.tokenize([e.query for e in pool.examples], "query")
    rows += run.retriever.tokenize([run.corpus[d] for d in pool.documents], "document", 64)
    times = in_turns({"encoder": lambda: run.retriever.embed(rows).sum().backward(), "ours": lambda: judged(run, pool, "ours"),
                      "naive": lambda: judged(run, pool, "naive")}, args.repeats, warm=True)  # by the comparison above
    median = medians(times)
    ratios = {"time of the judge": median["naive"] / median["ours"],
              "time of a step": (median["encoder"] + median["naive"]) / (median["encoder"] + median["ours"]),
              "memory of the judge": memory["naive"] / memory["ours"],
              "memory, all graphs": memory["naive, all graphs, from one and two questions"] / memory["ours"]}
    print("medians, s: ", {name: round(value, 2) for name, value in median.items()}, "MB: ", memory)
    print(", ".join(f"{name}: {value:.1f} times" for name, value in ratios.items()))
    print(", ".join(f"{name}: {value:.1e}" for name, value in differences.items()))
    return {"seconds": times, "median": median, "extra_mb": memory, "together_mb": together, "ratios": ratios, "differences": differences}


def bench_peft(args):
    """The encoder's forward and backward pass with this project's LoRA and with peft's, same weights, same packed texts."""
    from peft import LoraConfig, get_peft_model

    run = prepare(args.backbone, args.data)
    pool, config = next(run.pools(0)), run.config
    rows = run.retriever.tokenize([e.query for e in pool.examples], "query")
    rows += run.retriever.tokenize([run.corpus[d] for d in pool.documents], "document", config.document_tokens)
    base = prepare(args.backbone, args.data).retriever
    targets = sorted({name.rpartition(".")[2] for name in base.adapters()})
    fresh = Retriever.load(args.backbone)
    wrapped = get_peft_model(fresh.llm, LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=targets))
    theirs = Retriever("peft", fresh.tokenizer, wrapped.get_base_model())
    times = in_turns({"ours": lambda: run.retriever.embed(rows).sum().backward(), "peft": lambda: theirs.embed(rows).sum().backward()},
                     args.repeats)
    ratio = statistics.median(p / o for p, o in zip(times["peft"], times["ours"]))
    print(f"encoder forward and backward: {medians(times)} s; peft takes {ratio:.2f} of our time")
    return {"seconds": times, "median": medians(times), "ratios": {"peft / ours": ratio}}


GROWTH = {"questions": (4, 8, 16, 32, 64), "pool": (4, 8, 16, 32, 64), "document_tokens": (64, 128, 256, 512)}


def grow(backbone, data, setting, repeats):
    """Seconds and MB of DREAM steps of one setting."""
    run = prepare(backbone, data, **setting)
    pools = run.pools(0)

    def step():
        run.step(next(pools))
        forget(run)

    memory = peak(lambda: (run.choose_heads(), step()))
    times = [seconds(step) for _ in range(repeats + 1)]
    return {"seconds": [round(t, 3) for t in times[1:]], "median": statistics.median(times[1:]), "extra_mb": memory}


def bench_growth(args):
    """How time and memory grow: random weights, SmolLM2-135M's shape with 4 of its 30 layers, long documents."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Retriever.load(args.backbone).tokenizer
        random_model(SHAPES["SmolLM2-135M"], layers=4).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        texts = list(load_corpus(args.data).items())
        data = Path(folder) / "data"
        data.mkdir()
        long = [{"_id": d, "title": "", "text": " ".join(t for _, t in (texts * 2)[i : i + 8])} for i, (d, _) in enumerate(texts)]
        (data / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
        (data / "train.jsonl").write_bytes((Path(args.data) / "train.jsonl").read_bytes())
        for name, values in GROWTH.items():
            results[name] = {value: alone("grow", folder, str(data), {"heads": 4, "neighbours": 1, name: value}, args.repeats) for value in values}
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
    retriever = Retriever(name, None, random_model(shape))
    retriever.tokenizer = type("NoText", (), {"pad_token_id": 0})
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
    checks = {name: alone("check_plan", name, layers, vars(Batch(4, 4, 64))) for name, layers in CHECKS.items()}
    for name, check in checks.items():
        print(f"{name}, {check['layers']} of {check['all_layers']} layers, random weights: " + ", ".join(
            f"{key} {value:.2f}" for key, value in check.items() if "planned" in key) + f"; {check['gflops']:.0f} GFLOPS here")
    return {"plan": rows, "checks": checks}


MODES = {"--naive": bench_naive, "--peft": bench_peft, "--growth": bench_growth, "--plan": bench_plan}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbone", default="SmolLM2-135M")
    parser.add_argument("--data", default="classroom")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each kind that count (default: %(default)s)")
    parser.add_argument("--out", help="write the figures here, as JSON")
    for mode in ("--naive", "--peft", "--growth", "--plan"):
        parser.add_argument(mode, dest="mode", action="store_const", const=MODES[mode], default=bench_step,
                            help=MODES[mode].__doc__.split("\n")[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        name, *arguments = json.loads(args.child)
        functions = {f.__name__: f for f in (step_memory, judge_memory, grow, check_plan)}
        print(json.dumps(functions[name](*arguments)))
        return
    figures = args.mode(args)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, {**about_run("bench.py", argv), "setting": SETTING, "seed": 0, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    command(main)
