"""How a step is measured: which step, seconds in turns, operations as torch counts them, bytes that autograd keeps, peak memory."""
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cost import SHAPES, random_model
from inject import prefill, target_nll
from model import Retriever
from train import Run, parse


SETTING = {"pool": 16, "questions": 16, "document_tokens": 64}


def configuration(backbone, data, **setting):
    """train.py's of SETTING, changed by `setting`. Raises BadInput."""
    flags = ["--backbone", backbone, "--data", data]
    for name, value in {**SETTING, **setting}.items():
        flags += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return parse(flags)


def prepare(backbone, data, **setting):
    """A Run of that configuration."""
    run = Run(configuration(backbone, data, **setting))
    for parameter in run.retriever.llm.parameters():
        parameter.sum()  # what is only mapped so far is in memory from now on
    return run


def forget(retriever):
    for parameter in retriever.parameters():
        parameter.grad = None


def save_random(folder, backbone, shape="SmolLM2-135M", layers=None):
    """Random weights of a shape of cost.py, or of its first layers, with the tokenizer of `backbone`, as a folder."""
    random_model(SHAPES[shape], layers, torch.bfloat16).save_pretrained(folder)
    Retriever.load(backbone, device="cpu").tokenizer.save_pretrained(folder)


def seconds(function):
    """Wall-clock seconds of one call."""
    return timed(function)[1]


def in_turns(sides, repeats, warm=False):
    """{name: function} -> {name: seconds of `repeats` calls}, taken in turns; unless `warm`, after one turn that does not count."""
    turns = [{name: seconds(side) for name, side in sides.items()} for _ in range(repeats + (not warm))]
    return {name: [round(turn[name], 4) for turn in turns[-repeats:]] for name in sides}


def medians(times):
    return {name: statistics.median(values) for name, values in times.items()}


# ------------------------------------------------------------------------------------------ the step, part by part


def part_by_part(retriever, batch, heads, measure):
    """One DREAM step on random tokens -> {part of cost.py: measure(function)[1]}; measure also hands the result through."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, found = retriever.llm.config.vocab_size, {}

    def tokens(*shape):
        return torch.randint(5, vocabulary, shape, generator=generator).to(retriever.device)

    def part(name, function):
        result, found[name] = measure(function)
        return result

    queries, documents = tokens(batch.questions, batch.query).tolist(), tokens(batch.documents, batch.document).tolist()
    piece = torch.arange(batch.documents).repeat_interleave(batch.document + batch.header)
    document_of = torch.cat([torch.full((batch.introduction,), -1), piece]).to(retriever.device)
    context = tokens(1, len(document_of))
    suffixes = tokens(batch.questions, batch.suffix + 1)
    target_mask = (torch.arange(batch.suffix + 1, device=retriever.device) > batch.suffix - batch.targets).expand(len(suffixes), -1)
    embeddings = part("encoder forward", lambda: torch.cat([retriever.embed(queries), retriever.embed(documents)]))
    weights = torch.randn(batch.questions, batch.documents, generator=generator).softmax(-1).to(retriever.device).requires_grad_()
    with retriever.adapters_off() as llm:
        prefix = part("prefill", lambda: prefill(llm, context, document_of))
        loss = part("suffix forward", lambda: target_nll(llm, prefix, suffixes, target_mask, weights, heads).mean())
        part("suffix backward", loss.backward)
    part("encoder backward", lambda: embeddings.backward(torch.ones_like(embeddings) / len(embeddings)))
    forget(retriever)
    return found


def timed(function):
    """Wall-clock seconds of one call, and before them what it returns."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def fused_attention(query, key, value, dropout=0.0, is_causal=False, *rest, out_val=None, **more):
    return 4 * math.prod(query) * key[2] / (2 if is_causal else 1)


def fused_attention_backward(gradient, query, key, value, output, lse, dropout, is_causal, *rest, out_val=None, **more):
    return 2.5 * fused_attention(query, key, value, dropout, is_causal)


def added_in_place(y, a, b, *rest, out_val=None, **more):
    return 2 * math.prod(a) * b[1]


aten = torch.ops.aten  # what torch's counter does not know: the CPU's fused attention, and a product added in place
UNKNOWN = {aten.addmm_: added_in_place, aten._scaled_dot_product_flash_attention_for_cpu: fused_attention,
           aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_attention_backward}


def counted(function):
    """The operations that torch's own counter sees."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        result = function()
    return result, counter.get_total_flops()


def kept(function):
    """The bytes that autograd keeps for the backward pass, frozen weights and adapters aside."""
    seen = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor._base is not None and isinstance(tensor._base, torch.nn.Parameter)):
            seen[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen.values()}
    return result, sum(storages.values())


def product_rate(width, intermediate, rows, like, repeats=20):
    """Operations a second of plain matrix products as large as an MLP's: what could be reached. like: a tensor of the model."""
    x, weight = like.new_empty(rows, width).normal_(), like.new_empty(intermediate, width).normal_()
    best = min(seconds(lambda: [F.linear(x, weight) for _ in range(repeats)]) for _ in range(5))
    return 2 * x.numel() * len(weight) * repeats / best


def share_outside_products(function):
    """The share of a call's kernel time that is not spent in matrix products or fused attention."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        function()
    if on_gpu:  # kernels alone: the operators that launched them hold the same time once more
        times = [(e.key, e.self_device_time_total) for e in seen.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    else:
        times = [(e.key, e.self_cpu_time_total) for e in seen.key_averages()]
    names = ("gemm", "nvjet", "cutlass", "flash", "fmha") if on_gpu else ("mm", "flash_attention")
    return 1 - sum(t for key, t in times if any(name in key for name in names)) / sum(t for _, t in times)


# ------------------------------------------------------------------------------------------------------- memory


def peak(function):
    """MB that a call takes beyond what was held before: of a GPU's allocator, else resident memory (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)

    def status(name):
        return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # from now on, the highest is counted anew
    before = status("VmRSS")
    function()
    return round(status("VmHWM") - before)


def alone(function, *arguments):
    """A module's function in a process of its own, where no earlier peak has left pages -> what it returns, by way of JSON."""
    module = Path(function.__code__.co_filename).stem
    script = (f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {module}, measure; (setting, arguments) = json.loads(sys.argv[1]); measure.SETTING.update(setting); "
              f"print(json.dumps({module}.{function.__name__}(*arguments)))")
    done = subprocess.run([sys.executable, "-c", script, json.dumps([SETTING, arguments])], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
