"""What a training run can be told: one dataclass, one flag of train.py for each of its fields; and the learning rate and the temperature of each step.

Left out: what is a constant beside the code that it belongs to (train.py).
"""
import argparse
import dataclasses
import math
from dataclasses import dataclass

from files import BadInput
from objectives import OBJECTIVES
from pictures import library


LARGEST, HIGHEST = 2**31, 1e30  # what whole and other numbers stay under: torch takes no larger ones
WARMUP = 0.1  # the share of the steps in which the learning rate rises  # ASSUMPTION: the paper leaves the schedule open


def option(default, help, **more):
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass
class Config:
    # ASSUMPTION: what the paper leaves open is decided by these defaults: the training data, LoRA's rank, the learning rate, the temperature,
    # the numbers of candidates and questions, the budget.
    backbone: str = option("SmolLM2-135M", "the retriever's base: a short name (python model.py lists them), hub id, folder or .gguf")
    llm: str = option("", "the frozen LLM that judges, if not the backbone itself")
    data: str = option("classroom", "training folder with corpus.jsonl and train.jsonl")
    eval: str = option("", "folders in BEIR layout, separated by commas; empty: the training folder, if it has judgments")
    out: str = option("runs/dream", "where the retriever and the run's records are written")
    objective: str = option("dream", "what trains the retriever", choices=tuple(OBJECTIVES))
    heads: int = option(16, "how many attention heads of the LLM are injected")
    head_choice: str = option("query", "the heads that look at the source document, random ones, or all", choices=("query", "random", "all"))
    head_rows: str = option("target", "heads are scored from the rows that predict the target, or from the question's", choices=("target", "question"))
    budget: str = option("documents", "an injected head reads documents alone, or keeps its attention elsewhere", choices=("documents", "keep"))
    temperature: float = option(0.02, "tau of eq (2)")
    final_temperature: float = option(0.0, "tau at the last step, reached geometrically; 0: the same throughout")
    pool: int = option(16, "K, candidate documents of a step")
    questions: int = option(16, "B, questions of a step")
    neighbours: int = option(2, "documents of a pool that stand together")
    order: str = option("file", "what stands together: the corpus file's order, or a chain of BM25 neighbours", choices=("file", "bm25"))
    prompt: str = option("", "what the retriever reads of a text, which is {text} in it; empty: PromptEOL's, or the backbone's own files'")
    query_prompt: str = option("", "another prompt for queries, with the same behind its {text} as documents have; empty: theirs")
    document_tokens: int = option(128, "documents are cut here in training, the retriever's with its prompt; it reads its own length (512) at most")
    cut_targets: str = option("keep", "examples whose target is cut off with its document", choices=("keep", "drop"))
    steps: int = option(12, "optimiser steps")
    accumulate: int = option(1, "pools of a step, one after the other; under torchrun, of each process")
    lr: float = option(1e-3, "peak learning rate: linear warm-up over a tenth of the steps, then cosine to zero")
    clip: float = option(1.0, "the largest norm of a step's gradient, which is scaled down to it")
    lora_rank: int = option(16, "r of LoRA")
    lora_targets: str = option("", "last names of the linear layers that have LoRA, separated by commas; empty: all")
    embed_chunk: int = option(0, "texts embedded at a time, twice each (gradient caching); 0: all at once")
    checkpoint: bool = option(False, "activation checkpointing: layers keep their inputs alone and are computed again")
    compile: bool = option(False, "compile the layers around their attention, in the first step; measure whether it pays (python bench.py --options)")
    gather: bool = option(False, "under torchrun: every process's documents are candidates for all questions of a step")
    save_every: int = option(50, "steps between two checkpoints; 0: only when the run is interrupted")
    resume: bool = option(False, "go on from the newest whole checkpoint in --out")
    plot: bool = option(False, "draw the run's pictures into its folder (pip install matplotlib)")
    seed: int = option(0, "of pools, initialisation and random heads, each drawn on its own")
    device: str = option("auto", "cpu, cuda or auto")
    dtype: str = option("auto", "of the frozen weights; on a CPU bfloat16 pays only with avx512_bf16 or amx_bf16", choices=("auto", "float32", "bfloat16"))


def parse(argv=None):
    """Command line -> Config; one flag per field, strict."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train a retriever through a frozen language model.", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Config):
        how = {"action": "store_true"} if field.type is bool else {"type": field.type}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **how, **field.metadata)
    config = Config(**vars(parser.parse_args(argv)))
    for name, value in vars(config).items():
        if isinstance(value, (int, float)) and abs(value) >= (LARGEST if isinstance(value, int) else HIGHEST):
            raise BadInput(f"--{name.replace('_', '-')} {value} is too large")
        if name in ("backbone", "data", "out") and not value.strip():
            raise BadInput(f"--{name} is empty")
    for name in ("heads", "temperature", "questions", "neighbours", "document_tokens", "steps", "accumulate", "lr", "clip", "lora_rank"):
        if not 0 < getattr(config, name) < math.inf:
            raise BadInput(f"--{name.replace('_', '-')} must be a positive number, not {getattr(config, name)}")
    if config.pool < 2 or config.embed_chunk < 0 or config.save_every < 0:
        raise BadInput("--pool must be at least 2, --embed-chunk and --save-every 0 or more")
    if config.checkpoint and config.compile:  # transformers checkpoints inside of what would be compiled
        raise BadInput("--checkpoint and --compile do not go together: nothing would be compiled")
    if not 0 <= config.final_temperature < math.inf:
        raise BadInput("--final-temperature must be 0 or more")
    if config.plot:
        library()  # or BadInput, before the work is done
    return config


def changes(config):
    """What differs from the defaults, as a line for people."""
    found = {field.name: value for field in dataclasses.fields(Config) if (value := getattr(config, field.name)) != field.default}
    return ", ".join(f"{name}={value}" for name, value in found.items()) or "all defaults"


def learning_rate(config, step):
    """Linear warm-up over the first WARMUP of the steps, then half a cosine to zero; step counts from 0."""
    warm = WARMUP * config.steps
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm)))


def temperature(config, step):
    """tau of a step: from --temperature to --final-temperature in equal ratios."""
    ratio = (config.final_temperature or config.temperature) / config.temperature
    return config.temperature * ratio ** (step / max(1, config.steps - 1))
