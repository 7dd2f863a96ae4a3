"""Less memory or fewer kernels for a backbone's layers, by what transformers and torch offer. No figure changes."""
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(llm):
    """Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): a layer keeps its input and is computed again later.

    The documents' keys and values are read without a graph, so that they are neither dropped nor computed again.
    """
    llm.activation_checkpointing_enable({"use_reentrant": False})
    llm.disable_input_require_grads()  # else the judge would have a graph below its first injected layer
    for module in llm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # transformers checkpoints in training only; what is inside stays in eval mode


def compile_layers(llm):
    """torch.compile for what stands between the products: norms and gated MLPs with their adapters, one kernel each.

    All layers share one compiled form, and `dynamic` one for every number of tokens: packed texts have no fixed length.
    """
    for module in llm.modules():
        if type(module).__name__.endswith(("MLP", "RMSNorm")):
            module.compile(dynamic=True)
