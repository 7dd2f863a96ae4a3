"""What a step costs on paper: operations and bytes, counted from the shapes of the models and of the batch.

A product of an (m, k) and a (k, n) matrix is 2 m k n operations. A frozen weight costs one product forward and one
backward (the input's gradient; a frozen weight has none), a LoRA pair one and two. Of a causal square of attention half is
counted, because kernels skip the future. What is not a product (norms, softmax, rotary positions) is not counted.

    python bench.py --plan                 # the table for the usual retrievers and judges

tests/test_cost.py holds the counts against torch's own counter and against what autograd keeps. Symbols: see model.py.
"""
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

H100 = 989e12  # operations a second: bfloat16, dense, NVIDIA's data sheet for the H100 SXM


@dataclass(frozen=True)
class Shape:
    """A causal LM of the Llama or Qwen2 kind."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    kind: str = "llama"  # "qwen2": biases on q, k and v

    @classmethod
    def of(cls, config):
        return cls(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
                   getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
                   config.intermediate_size, config.vocab_size, config.tie_word_embeddings, config.model_type)

    def config(self, **changes):
        """transformers' configuration of this shape, for random weights."""
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[self.kind]
        return kind(**{**dict(num_hidden_layers=self.layers, hidden_size=self.width, num_attention_heads=self.heads,
                              num_key_value_heads=self.kv_heads, head_dim=self.head_dim, intermediate_size=self.intermediate,
                              vocab_size=self.vocabulary, tie_word_embeddings=self.tied, max_position_embeddings=131072),
                       **changes})

    @property
    def q(self):
        return self.heads * self.head_dim

    @property
    def kv(self):
        return self.kv_heads * self.head_dim

    @property
    def linear(self):
        """Weights of one layer's linear layers."""
        return 2 * self.width * (self.q + self.kv) + 3 * self.width * self.intermediate

    @property
    def lora(self):
        """Sum over a layer's linear layers of inputs + outputs: LoRA's weights at rank 1."""
        return 2 * (self.q + self.width) + 2 * (self.width + self.kv) + 3 * (self.width + self.intermediate)

    @property
    def parameters(self):
        """All weights, norms and biases included."""
        bias = self.q + 2 * self.kv if self.kind == "qwen2" else 0
        return self.layers * (self.linear + 2 * self.width + bias) + self.width + self.vocabulary * self.width * (2 - self.tied)


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 9, 3, 64, 1536, 49152),
    "Qwen2-0.5B": Shape(24, 896, 14, 2, 64, 4864, 151936, kind="qwen2"),
    "Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256),
    "Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, kind="qwen2"),
    "Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256),
    "Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18944, 152064, tied=False, kind="qwen2"),
}


@dataclass(frozen=True)
class Batch:
    """A step's texts, in tokens; every text of a kind is as long as the others."""

    questions: int = 32
    documents: int = 32
    document: int = 256  # of a document
    query: int = 20  # of a question as the retriever reads it
    suffix: int = 28  # of a question with its target as the judge reads it, the last target left out
    targets: int = 4  # of a target
    header: int = 6  # before and after a document in the judge's prompt
    introduction: int = 9

    @property
    def encoder_tokens(self):
        return self.questions * self.query + self.documents * self.document

    @property
    def prefix(self):
        """L: tokens of the documents' prompt."""
        return self.introduction + self.documents * (self.document + self.header)


def count_flops(retriever, judge, batch, rank=16, heads=16, first=0.25, checkpoint=False):
    """Operations of one DREAM step by part; the encoder's two are an InfoNCE step's.

    heads: how many are injected; first: where the lowest of them is, as a share of the layers (all above it have a graph).
    """
    e, j, b = retriever, judge, batch
    N, squares = b.encoder_tokens, b.questions * b.query**2 + b.documents * b.document**2
    forward = 2 * N * (e.linear + rank * e.lora) * e.layers
    attention = 4 * e.q * squares / 2 * e.layers
    first_input = 2 * N * (e.width * (e.q + 2 * e.kv) + 3 * rank * e.width)  # nobody needs the embeddings' gradient
    backward = 2 * N * (e.linear + 2 * rank * e.lora) * e.layers - first_input + 2.5 * attention

    L = b.prefix
    prefill = 2 * L * (j.linear * (j.layers - 1) + j.width * (j.q + 2 * j.kv)) + 4 * j.q * L**2 / 2 * (j.layers - 1)

    rows, above = b.questions * b.suffix, j.layers - 1 - round(first * j.layers)
    own, vocabulary = j.q * b.questions * b.suffix**2, 2 * j.width * j.vocabulary * b.questions * b.targets
    injected = heads * j.head_dim * rows * (2 * L - b.introduction)  # the logits, over L; the readings, over the documents
    suffix = (2 * rows * j.linear + 4 * j.q * rows * L + 4 * own) * j.layers + 2 * injected + vocabulary
    suffix_backward = (2 * rows * (j.linear * above + j.linear - j.width * (j.q + 2 * j.kv))
                       + (6 * j.q * rows * L + 8 * own) * above + 2 * injected + vocabulary)
    if checkpoint:
        backward += forward + attention
        suffix_backward += (2 * rows * j.linear + 4 * j.q * rows * L + 4 * own) * (above + 1)
    return {"encoder forward": forward + attention, "encoder backward": backward, "prefill": prefill,
            "suffix forward": suffix, "suffix backward": suffix_backward}


def count_bytes(retriever, judge, batch, rank=16, heads=16, first=0.25, size=2, checkpoint=False):
    """Bytes by part at a step's peak; size: of a frozen weight and an activation. A judge that is the retriever is held once.

    What autograd keeps of a layer: its norms' inputs in float32, the inputs of LoRA's products, attention's inputs and
    output, the gate, its activation and their product.
    """
    e, j, b = retriever, judge, batch
    N, rows = b.encoder_tokens, b.questions * b.suffix
    per_token = 2 * e.width * 4 + size * (2 * e.width + 3 * e.q + 2 * e.kv + 4 * e.intermediate + 7 * rank)
    above = j.layers - round(first * j.layers)
    per_row = 2 * j.width * 4 + size * 3 * j.intermediate + 4 * (7 * j.q + 2 * j.kv + 2 * j.heads * b.suffix)
    encoder, suffix = N * per_token * e.layers, rows * per_row * above
    if checkpoint:  # each layer's input, and one layer in full
        encoder, suffix = N * (size * e.width * e.layers + per_token), rows * (size * j.width * above + per_row)
    return {
        "weights": size * (e.parameters + (0 if e == j else j.parameters)),
        "LoRA and AdamW": 16 * rank * e.lora * e.layers,  # float32: weight, gradient, two moments
        "encoder activations": encoder,
        "documents' keys and values": size * 2 * j.kv * b.prefix * j.layers,
        "suffix activations": suffix,
        "injected heads": 4 * heads * rows * (b.prefix - b.introduction),  # the softmax of eq (3), in float32
        "vocabulary": b.questions * b.targets * j.vocabulary * (size + 2 * 4),  # logits, in float32, and their log-softmax
    }


def plan(batch=Batch(), utilisation=0.4, memory=80e9, peak=H100):
    """The cost of a step for the usual retrievers and judges -> lines for people, rows for results/."""
    lines = [f"{batch.questions} questions x {batch.documents} documents x {batch.document} tokens, bfloat16, {utilisation:.0%} of "
             f"{peak / 1e12:.0f} TFLOPS, {memory / 1e9:.0f} GB",
             f"{'retriever':14s}{'judge':14s}" + "".join(f"{h:>11s}" for h in (
                 "enc fw", "enc bw", "prefill", "suffix fw", "suffix bw", "/ InfoNCE", "weights", "LoRA", "encoder", "K and V", "suffix",
                 "all GB", "examples/h"))]
    rows = []
    for retriever in ("Qwen2-0.5B", "Llama-3.2-1B", "Llama-3.2-3B"):
        for judge in ("Qwen2-0.5B", "Llama-3.2-1B", "Qwen2.5-1.5B", "Llama-3.2-3B", "Qwen2.5-7B"):
            pair = SHAPES[retriever], SHAPES[judge]
            for checkpoint in (False, True):
                flops, held = count_flops(*pair, batch, checkpoint=checkpoint), count_bytes(*pair, batch, checkpoint=checkpoint)
                if sum(held.values()) < memory:
                    break
            encoder, all_of_it = flops["encoder forward"] + flops["encoder backward"], sum(flops.values())
            hour = 3600 * utilisation * peak / all_of_it * batch.questions
            fits = sum(held.values()) < memory
            rows.append({"retriever": retriever, "judge": judge, "checkpoint": checkpoint, "fits": fits, "flops": flops, "bytes": held,
                         "ratio": all_of_it / encoder, "examples_per_hour": hour})
            suffix = sum(held[part] for part in ("suffix activations", "injected heads", "vocabulary"))
            gigabytes = (held["weights"], held["LoRA and AdamW"], held["encoder activations"], held["documents' keys and values"], suffix)
            cells = [*(f"{f / 1e12:.1f}" for f in flops.values()), f"{all_of_it / encoder:.2f}", *(f"{g / 1e9:.1f}" for g in gigabytes),
                     f"{sum(held.values()) / 1e9:.1f}", f"{hour:,.0f}" if fits else "too large"]
            lines.append(f"{retriever:14s}{judge:14s}" + "".join(f"{c:>11s}" for c in cells) + (" *" if checkpoint else ""))
    return "\n".join([*lines, "operations in TFLOP a step, memory in GB; *: with --checkpoint"]), rows


def random_model(shape, layers=None, dtype=torch.float32, device="cpu", **changes):
    """A frozen causal LM of a shape with random weights; on "meta" it takes no memory."""
    config = replace(shape, layers=layers or shape.layers).config(**changes)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()
