"""What a DREAM step costs: counted, timed, and compared with the contrastive step that it replaces.

    python bench.py --out results/bench.json           # the step: ratio to InfoNCE, operations and rate by part, memory
    python bench.py --naive --out results/bench-naive.json
    python bench.py --peft --out results/bench-peft.json
    python bench.py --growth --out results/bench-growth.json
    python bench.py --random Qwen2-0.5B --questions 32 --pool 32 --document-tokens 256    # another shape and batch, for a GPU
    python bench.py --options --out results/bench-options.json     # --compile, --checkpoint, --embed-chunk, bfloat16
    python bench.py --plan --out results/plan.json     # other models, on paper (cost.py), checked against small steps

Everything is a ratio within one process, whose sides take turns, because a machine's speed drifts; medians after warm-up.
Memory is what a process of its own takes beyond the loaded models. How each is measured: measure.py.
"""
import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from attention import READY
from cost import SHAPES, Batch, Shape, count_flops
from files import BadInput, check_file, command, write_json
from inject import target_nll
from measure import (SETTING, alone, configuration, forget, in_turns, medians, part_by_part, peak, prepare, product_rate, save_random, seconds,
                     share_outside_products, timed)
from model import Retriever
from record import about_run, commit
from scale import bench_growth, bench_plan


def step_memory(backbone, data, objective, setting):
    """MB of two steps, beyond the loaded models."""
    run = prepare(backbone, data, objective=objective, **setting)
    pools = run.pools(0)

    def steps():
        if objective != "infonce":
            run.choose_heads()
        for _ in range(2):
            run.step(next(pools))

    return peak(steps)


def token_rows(run, pool):
    """What the retriever reads in a step: the token ids of a pool's questions, and of its documents."""
    return run.tokenize([e.query for e in pool.examples], "query"), run.tokenize([run.corpus[d] for d in pool.documents], "document")


def sizes(run, pool):
    """A pool's mean sizes in tokens, as a Batch."""
    with run.judge() as llm:
        prefix, suffixes, target_mask = run.read(llm, pool.documents, pool.examples)
    B, K = len(pool.examples), len(pool.documents)
    read = target_mask.long().flip(1).argmax(1)  # (B,): what is padding behind the last target
    tokens = [sum(map(len, rows)) for rows in token_rows(run, pool)]
    inside = int((prefix.document_of >= 0).sum())
    return Batch(B, K, round(tokens[1] / K), round(tokens[0] / B), round((suffixes.shape[1] - 1 - read.float()).mean().item()),
                 round(target_mask.sum().item() / B), round((inside - tokens[1]) / K), len(prefix) - inside)


def bench_step(args):
    """A DREAM step and an InfoNCE step on the same pools, and where the DREAM step's time goes."""
    run = prepare(args.backbone, args.data)  # first, so that bad input is told here and not by a child
    memory = {name: alone(step_memory, args.backbone, args.data, name.split()[0], setting) for name, setting in {
        "infonce": {}, "dream": {}, "dream --checkpoint": {"checkpoint": True}, "dream --embed-chunk 4": {"embed_chunk": 4},
        "dream --checkpoint --embed-chunk 4": {"checkpoint": True, "embed_chunk": 4}}.items()}
    run.choose_heads()
    stream, pool = run.pools(0), None

    def one(objective):
        run.config.objective = objective
        run.step(pool)
        forget(run.retriever)

    times = {"infonce": [], "dream": []}
    for turn in range(args.repeats + 1):  # the first is warm-up
        pool = next(stream)
        for objective, values in times.items():
            elapsed = seconds(lambda: one(objective))
            values += [round(elapsed, 3)] if turn else []
    median = medians(times)
    shape, batch = Shape.of(run.retriever.llm.config), sizes(run, pool)
    first = min(layer for layer, _ in run.heads) / shape.layers
    flops = count_flops(shape, shape, batch, run.config.lora_rank, len(run.heads), first)
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
            "outside_products": outside, "ratios": ratios, "tokens": vars(batch)}


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


AttentionInterface.register("dream_specification", naive_attention)


def naive_loss(run, llm, pool, weights, questions):
    """The specification of eq (5): each question its own pass over everything -> the first `questions` losses, one at a time."""
    context, document_of = run.prompts.context([run.corpus[d] for d in pool.documents])
    context, document_of, suffixes, target_mask = (
        x.to(llm.device) for x in (context, document_of, *run.prompts.suffixes(pool.examples)))
    llm.set_attn_implementation("dream_specification")
    for b in range(questions):
        end = int(target_mask[b].nonzero().max()) + 1
        row = torch.cat([context[0], suffixes[b, :end]])
        logits = llm(row[None], use_cache=False, attention_mask=READY,
                     naive=(context.shape[1], document_of, weights[b], set(map(tuple, run.heads)))).logits[0]
        targets = context.shape[1] + target_mask[b].nonzero().flatten()
        yield F.cross_entropy(logits[targets - 1].float(), row[targets])


def judged(run, pool, how, questions=None):
    """The judge's part of a step, `how` one of "ours", "naive" (each question's graph freed before the next) or "naive, graphs
    together", for the first `questions` -> (losses, gradient of the weights)."""
    generator, questions = torch.Generator().manual_seed(0), questions or len(pool.examples)
    weights = torch.randn(len(pool.examples), len(pool.documents), generator=generator).mul(2).softmax(-1)
    weights = weights.to(run.retriever.device).requires_grad_()
    with run.retriever.adapters_off() as llm:
        if how == "ours":
            losses = target_nll(llm, *run.read(llm, pool.documents, pool.examples), weights, run.heads)
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
    memory = {"ours": alone(judge_memory, args.backbone, args.data, run.heads, "ours"),
              "naive": alone(judge_memory, args.backbone, args.data, run.heads, "naive", 2)}  # the others change no peak
    together = [alone(judge_memory, args.backbone, args.data, run.heads, "naive, graphs together", n) for n in (1, 2)]
    memory["naive, all graphs, from one and two questions"] = together[0] + (SETTING["questions"] - 1) * (together[1] - together[0])
    pool = next(run.pools(0))
    ours, naive = judged(run, pool, "ours"), judged(run, pool, "naive")
    differences = {"losses": (ours[0] - naive[0]).abs().max().item(),
                   "gradients, relative": ((ours[1] - naive[1]).abs().max() / naive[1].abs().max()).item()}
    rows = sum(token_rows(run, pool), [])
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
    """The encoder's forward and backward pass with this project's LoRA and with peft's: same weights, same packed texts."""
    from peft import LoraConfig, get_peft_model

    run = prepare(args.backbone, args.data)
    pool, config, ours = next(run.pools(0)), run.config, run.retriever
    rows = sum(token_rows(run, pool), [])
    fresh = Retriever.load(args.backbone, config.device, config.dtype)
    targets = sorted({name.rpartition(".")[2] for name in ours.adapters()})
    wrapped = get_peft_model(fresh.llm, LoraConfig(r=config.lora_rank, lora_alpha=next(iter(ours.adapters().values())).alpha, lora_dropout=0.0, target_modules=targets))
    theirs = Retriever("peft", fresh.tokenizer, wrapped.get_base_model())
    generator = torch.Generator().manual_seed(0)
    pairs = [(layer.lora_A, theirs.llm.get_submodule(name).lora_A["default"].weight) for name, layer in ours.adapters().items()]
    pairs += [(layer.lora_B, theirs.llm.get_submodule(name).lora_B["default"].weight) for name, layer in ours.adapters().items()]
    for own, other in pairs:
        own.data.copy_(torch.randn(own.shape, generator=generator) * 0.02)
        other.data.copy_(own)

    def embed(retriever):
        embeddings = retriever.embed(rows)
        embeddings[:, 0].sum().backward()
        return embeddings.detach()

    differences = {"embeddings": (embed(ours) - embed(theirs)).abs().max().item(),
                   "gradients, relative": max(((a.grad - b.grad).abs().max() / b.grad.abs().max()).item() for a, b in pairs)}
    times = in_turns({"ours": lambda: embed(ours), "peft": lambda: embed(theirs)}, args.repeats, warm=True)
    ratio = statistics.median(p / o for p, o in zip(times["peft"], times["ours"]))
    print(f"encoder forward and backward: {medians(times)} s; peft takes {ratio:.2f} of our time; differences {differences}")
    return {"seconds": times, "median": medians(times), "ratios": {"peft / ours": ratio}, "differences": differences}


OPTIONS = {"plain": {}, "--compile": {"compile": True}, "--checkpoint": {"checkpoint": True}, "--embed-chunk 4": {"embed_chunk": 4},
           "--dtype bfloat16": {"dtype": "bfloat16"}}


def bench_options(args):
    """What each option does to a step's time and loss: 4 layers, 8 questions x 8 documents, small enough for bfloat16 on any CPU."""
    small = {"pool": 8, "questions": 8, "heads": 4}
    with tempfile.TemporaryDirectory() as folder:
        save_random(folder, args.backbone, layers=4)
        runs = {name: prepare(folder, args.data, **small, **setting) for name, setting in OPTIONS.items()}
        runs["plain"].choose_heads()
        pool = next(runs["plain"].pools(0))
        for run in runs.values():
            run.heads = runs["plain"].heads
        first = {name: seconds(lambda: run.step(pool)) for name, run in runs.items()}  # with what compiling takes
        losses = {name: run.step(pool)["loss"] for name, run in runs.items()}
        times = in_turns({name: lambda run=run: (run.step(pool), forget(run.retriever)) for name, run in runs.items()}, args.repeats)
    ratios = {name: statistics.median(t / p for t, p in zip(values, times["plain"])) for name, values in times.items()}
    for name in OPTIONS:
        print(f"{name:18s}{ratios[name]:8.2f} of the plain step's time, first step {first[name]:6.1f} s, loss {losses[name]:.4f}")
    return {"setting": {**SETTING, **small}, "seconds": times, "median": medians(times), "first_seconds": first, "losses": losses, "ratios": ratios}


MODES = {"--naive": bench_naive, "--peft": bench_peft, "--options": bench_options, "--growth": bench_growth, "--plan": bench_plan}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--backbone", default="SmolLM2-135M")
    parser.add_argument("--data", default="classroom")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each kind that count (default: %(default)s)")
    parser.add_argument("--out", help="write the figures here, as JSON")
    modes = parser.add_mutually_exclusive_group()
    for mode, measure in MODES.items():
        modes.add_argument(mode, dest="mode", action="store_const", const=measure, default=bench_step, help=measure.__doc__.split("\n")[0])
    for name in SETTING:
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=SETTING[name], help="of train.py (default: %(default)s)")
    parser.add_argument("--random", choices=SHAPES, help="random weights of this shape; --backbone gives the tokenizer")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise BadInput(f"--repeats must be at least 1, not {args.repeats}")
    SETTING.update({name: getattr(args, name) for name in SETTING})
    configuration(args.backbone, args.data)  # or BadInput, here and not in a child
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        check_file(args.out)
    commit()  # now, not when all is measured
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            save_random(folder, args.backbone, args.random)
            args.backbone = folder
        figures = args.mode(args)
    if args.out:
        write_json(args.out, {**about_run("bench.py", argv), "setting": SETTING, "seed": 0, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    command(main)
