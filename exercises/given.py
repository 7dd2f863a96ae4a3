"""What the exercises are given: the repository's modules within reach, a tiny LLM, and one question read the slow way.

The tiny LLM has the architecture of the real one and random weights, so that a checker takes a second. With `zero=True`
all its weights are zero: every token gets the same attention and the same probability, and numbers can be worked by hand.
"""
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent.parent))  # the repository's modules

from inject import prefill  # noqa: E402  (it stands there)

VOCABULARY = 257


def tiny_llm(zero=False):
    """A frozen causal LM with 2 layers of 4 heads."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=VOCABULARY, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True))
    for weight in llm.parameters() if zero else ():
        weight.data.zero_()
    return llm.requires_grad_(False).eval()


def read_prefix(llm, document_of):
    """Documents of random tokens, read once: [-1, 0, 0, 1] is a prompt's token, two of document 0, one of document 1 -> Prefix."""
    ids = torch.randint(1, VOCABULARY, (1, len(document_of)), generator=torch.Generator().manual_seed(1))
    return prefill(llm, ids, torch.tensor(document_of))


@torch.no_grad()
def read_question(llm, prefix, question):
    """One question's tokens (T,) behind the documents, by transformers itself -> what its T rows attend to, and predict.

    attention: (layers, heads, T, L + T), of each row (softmax done, each row sums to 1) to the L tokens of the documents'
    prompt and the question's own T; logits: (T, vocabulary), row t's prediction of token t + 1.
    """
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values)):
        cache.update(keys[None], values[None], layer)
    llm.set_attn_implementation("eager")
    output = llm(input_ids=question[None], past_key_values=cache, output_attentions=True)
    return torch.stack(output.attentions)[:, 0], output.logits[0]


@contextmanager
def count_rows(llm):
    """Within this block the list that it gives gets the number of rows (tokens) of each pass through the LLM's first layer."""
    rows = []
    hook = llm.model.layers[0].register_forward_hook(lambda layer, args, output: rows.append(output.shape[0] * output.shape[1]))
    try:
        yield rows
    finally:
        hook.remove()
