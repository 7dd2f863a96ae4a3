"""Less memory or fewer kernels for a backbone's layers, by what transformers and torch offer."""
import os
import shutil

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from attention import attend
from files import BadInput


def layers_of(llm):
    """The layers that a model is a stack of: attention and MLP, with their norms."""
    return [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(llm):
    """Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): a layer keeps its input and is computed again later.

    The documents' keys and values are read without a graph, so that they are neither dropped nor computed again.
    Raises BadInput for a model that cannot.
    """
    if not llm.supports_gradient_checkpointing:
        raise BadInput(f"--checkpoint: {llm.config.model_type} does not support activation checkpointing")
    llm.activation_checkpointing_enable({"use_reentrant": False})
    llm.disable_input_require_grads()  # else the judge would have a graph below its first injected layer
    for layer in layers_of(llm):
        layer.training = True  # transformers checkpoints in training only; what is inside stays in eval mode
        for name, value in list(vars(layer).items()):
            if "drop" in name and isinstance(value, float):  # some, such as OPT's, drop out by themselves
                setattr(layer, name, 0.0)


def compile_layers(llm, backend="inductor"):
    """torch.compile for what stands around each layer's attention: norms, projections with their adapters, rotations, MLPs. Equal up to rounding.

    All layers share compiled forms (with and without adapters, with and without a graph), and `dynamic` makes each serve
    every number of tokens: packed texts have no fixed length, and buckets would bring padding back. In this process attention is from now
    on left to Python for every model: what replaces it, a Reading, is another object in each pass. Raises BadInput.
    """
    told, usual = ("CXX", ["g++"]) if llm.device.type == "cpu" else ("CC", ["gcc", "clang"])  # inductor calls it, or Triton
    compilers = [os.environ[told]] if told in os.environ else usual
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise BadInput(f"--compile: the compiler {' or '.join(compilers)} is not there; install it, or do without --compile")
    layers = layers_of(llm)
    if not layers:
        raise BadInput(f"--compile: {llm.config.model_type} has no layers that this knows how to compile")
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # per form, of two models
    AttentionInterface.register("dream", torch.compiler.disable(attend))
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
