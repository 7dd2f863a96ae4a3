"""Adapters in PEFT's format: which layers have LoRA, of which rank and strength, and on which base.

    adapter_config.json          r, lora_alpha, target_modules, rank_pattern, alpha_pattern, use_rslora, the base's name
    adapter_model.safetensors    base_model.model.LAYER.lora_A.weight (r, in) and .lora_B.weight (out, r)

    y = W x + s B A x            s = alpha / r, or with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) alpha / sqrt(r)

Everything else that an adapter_config.json can say and that would change an embedding is refused by name, never ignored.
LAYER is a name in the causal language model, or in the model without its vocabulary head: both are read. Reference: peft.
"""
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from backbones import BACKBONES, is_hub_id, short_name, unreachable
from files import BadInput, brief, replacing, write_json
from peers import locate, read_json, refuse_unknown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = ("lora_A", "lora_B")
READ = ("base_model_name_or_path", "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
        "use_rslora")
TRAINING = ("task_type", "inference_mode", "auto_mapping", "peft_version", "lora_dropout", "megatron_core",  # of no effect on
            "qalora_group_size")  # an embedding, as long as what they belong to is off
# Other initialisations (PiSSA, OLoRA, LoftQ, CorDA...) change the base's weights, and would have to be run again.
INITIAL = (True, False, None, "gaussian", "orthogonal")


@dataclass
class Adapter:
    """What an adapter's files say; layers are named as there."""

    source: str
    base: str  # a short name, hub id or local folder
    tokenizer: str | None  # where its own tokenizer is, if it has one
    config: dict
    tensors: dict[str, dict[str, torch.Tensor]]  # {layer: {"lora_A": (r, in), "lora_B": (out, r)}}
    about: dict | None  # retriever.json, where Retriever.save() wrote it

    def has(self, layer):
        """Does the configuration put LoRA on this layer?"""
        chosen = self.config["target_modules"]
        return names(chosen, layer) and not names(self.config.get("exclude_modules") or (), layer)

    def strength(self, layer):
        """A layer's rank r, and the alpha for which s = alpha / r."""
        rank = pattern(self.config.get("rank_pattern"), layer, self.config["r"])
        alpha = pattern(self.config.get("alpha_pattern"), layer, self.config["lora_alpha"])
        return rank, alpha * rank ** 0.5 if self.config.get("use_rslora") else alpha


def names(chosen, layer):
    """PEFT's rule: a text is a regular expression for the whole name, a list holds ends of names.

    >>> names(["q_proj"], "model.layers.0.self_attn.q_proj"), names("layers.*", "model.layers.0"), names("all-linear", "up")
    (True, False, True)
    """
    if isinstance(chosen, str):
        return chosen.lower() == "all-linear" or re.fullmatch(chosen, layer) is not None
    return any(layer == end or layer.endswith(f".{end}") for end in chosen)


def pattern(patterns, layer, otherwise):
    """PEFT's rule for rank_pattern and alpha_pattern: the first key, a regular expression, that ends the layer's name.

    >>> pattern({"up_proj": 4, r"layers\\.[01]\\.mlp.*": 2}, "layers.1.mlp.up_proj", 8)
    4
    """
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return otherwise


def check_config(source, config):
    """Refuse by name what is not supported here, and what is not as PEFT writes it. Raises BadInput."""
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{source}: {CONFIG} says peft_type = {config.get('peft_type')}; known here: LORA")
    if config.get("init_lora_weights", True) not in INITIAL:
        raise BadInput(f"{source}: {CONFIG} says init_lora_weights = {config['init_lora_weights']}, which changes the base; not supported")
    refuse_unknown(source, CONFIG, config, (*READ, *TRAINING, "init_lora_weights"), {"peft_type": "LORA", "bias": "none", "revision": "main"})
    kinds = {"base_model_name_or_path": str, "r": int, "lora_alpha": (int, float), "target_modules": (str, list)}
    kinds.update({name: kind for name, kind in (("exclude_modules", (str, list)), ("rank_pattern", dict), ("alpha_pattern", dict))
                  if config.get(name) is not None})
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise BadInput(f"{source}: {CONFIG} says {name} = {config.get(name)!r}, which is not as PEFT writes it")
    for name, most in (("r", int), ("lora_alpha", (int, float)), ("rank_pattern", int), ("alpha_pattern", (int, float))):
        values = (config.get(name) or {}).values() if name.endswith("pattern") else [config[name]]
        if (wrong := [x for x in values if isinstance(x, bool) or not isinstance(x, most) or not 0 < x < math.inf]):
            raise BadInput(f"{source}: {CONFIG} says {name} = {wrong[0]!r}, which is not as PEFT writes it")
    if isinstance(config["target_modules"], list) and not all(isinstance(name, str) for name in config["target_modules"]):
        raise BadInput(f"{source}: {CONFIG} says target_modules = {config['target_modules']!r}, which is not as PEFT writes it")
    if not config["base_model_name_or_path"] or not isinstance(config.get("use_rslora") or False, bool):
        raise BadInput(f"{source}: {CONFIG} names no base, or says use_rslora = {config.get('use_rslora')!r}; not as PEFT writes it")
    try:
        for expression in (*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ()),
                           *(config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str))):
            re.compile(expression)
    except re.error as error:
        raise BadInput(f"{source}: {CONFIG} has a pattern that is no regular expression: {expression} ({error})") from None


def read_adapter(source):
    """A local folder or hub id -> its Adapter; None where it is none. Raises BadInput."""
    if source in BACKBONES or not (Path(source).is_dir() or is_hub_id(source)):
        return None
    try:
        config = read_json(source, CONFIG)
        if config is None:
            return None
        check_config(source, config)
        path = locate(source, WEIGHTS)
        if path is None:
            raise BadInput(f"{source}: not a whole retriever folder (lacks {WEIGHTS}; adapters in pickled files are not read)")
        tokenizer = source if locate(source, "tokenizer_config.json") else None
        about = read_json(source, "retriever.json")
    except BadInput:
        raise
    except Exception as error:  # the hub cannot be reached
        raise unreachable(source, source, error) from None
    try:
        stored = load_file(path)
    except Exception as error:  # whatever safetensors raises
        raise BadInput(f"{source}: not a whole retriever folder ({WEIGHTS} is damaged: {brief(error, 160)})") from None
    tensors = {}
    for key, tensor in stored.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB])\.weight", key)
        if not found:
            raise BadInput(f"{source}: {WEIGHTS} has tensors that fit nowhere: {key}")
        tensors.setdefault(found[1], {})[found[2]] = tensor
    return Adapter(source, short_name(config["base_model_name_or_path"]), tokenizer, config, tensors, about)


def linear_layers(llm):
    """{name: module} of the layers that can have LoRA: every linear one below the vocabulary head."""
    head = llm.get_output_embeddings()
    return {name: module for name, module in llm.named_modules() if isinstance(module, torch.nn.Linear) and module is not head}


def check_lora(llm, rank, targets):
    """Raise BadInput for a rank, or for last names of linear layers, that a model does not have. targets: a set; empty: all."""
    there = {name.rpartition(".")[2] for name in linear_layers(llm)}
    if not there:
        raise BadInput(f"--backbone: {llm.config.model_type} has no torch.nn.Linear layers below its head, which LoRA needs")
    if targets - there:
        raise BadInput(f"--lora-targets {','.join(sorted(targets))}: the backbone has no linear layers of some of these names; there: {', '.join(sorted(there))}")
    if rank > (width := llm.config.hidden_size):
        raise BadInput(f"--lora-rank {rank}: the backbone is {width} wide, and no rank is larger")


def write_adapter(folder, llm, layers, base, bare=False):
    """{name: LoRALinear} of `llm` -> the two files. bare: named as in the model without its head, for AutoModel.

    `base` is what others find the base by: a hub id or a path.
    """
    causal = llm.get_output_embeddings() is not None and not bare
    short = {name: name.removeprefix(f"{llm.base_model_prefix}.") if bare else name for name in layers}
    tensors = {f"base_model.model.{short[name]}.{part}.weight": getattr(layer, part).detach().cpu().contiguous()
               for name, layer in layers.items() for part in PARTS}
    ends = sorted({name.rpartition(".")[2] for name in layers})
    others = [n for n, m in llm.named_modules() if isinstance(m, torch.nn.Linear) and n.rpartition(".")[2] in ends
              and n.removesuffix(".base") not in layers and m is not llm.get_output_embeddings()]
    ranks, alphas = ({short[n]: getattr(layer, name) for n, layer in layers.items()} for name in ("rank", "alpha"))
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM" if causal else "FEATURE_EXTRACTION", "base_model_name_or_path": base,
              "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
              "target_modules": sorted(short.values()) if others else ends,
              "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
              "alpha_pattern": {n: a for n, a in alphas.items() if a != alpha}}
    with replacing(folder / WEIGHTS, "wb") as file:
        file.write(save(tensors))
    write_json(folder / CONFIG, config)
