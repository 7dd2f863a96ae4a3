"""How a stock transformers model is made to attend as the method needs, without a line of its code copied or patched.

`attend` is registered with transformers as the attention function "dream"; a keyword that every supported model hands
through (`reading=`) says what a pass does in place of each layer's attention. Three facts make passes cheap, and all
are exact:

- Texts need no padding: they are packed into one sequence, each token seeing its own text alone (`ReadTexts`). Only
  attention itself is done text by text; every other layer works on real tokens alone.
- Many questions share one prefix, the documents with their introduction, whose keys are never copied or masked. The prefix
  and a question's own past are read apart, each with the log-sum-exp of its logits, and put together:

    softmax over both = share * (softmax over the prefix) + (1 - share) * (softmax over the own past)
    share = sigmoid( log sum_prefix exp(logits) - log sum_own exp(logits) )

- All rows of all questions see the same prefix, so that reading it is one product of many rows, in which heads that share
  keys and values (grouped-query attention, Ainslie et al. 2023) are rows too.

Left out: sliding windows, LongRoPE beyond its original length, soft-capping, attention sinks and layers that are not softmax
attention. Symbols: see model.py.
"""
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from files import BadInput

READY = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # transformers hands a ready mask through; a reading masks by itself

TRY = "use Qwen2, Qwen3 or Llama"
AT_ONCE = defaultdict(lambda: 65536, cpu=4096)  # device -> tokens that a pass without gradients reads together


class Reading:
    """What replaces a layer's attention during one pass. __call__(layer, query, key, value, scaling) -> (1, H, N, d).

    query: (1, H, N, d); key, value: (1, H_kv, N, d); scaling: 1 / sqrt(d). forward() gives it layers_seen, and last, the last layer.
    """


class Enough(Exception):
    """Ends a forward pass: nobody reads what would follow."""


def attend(module, query, key, value, attention_mask, reading=None, **kwargs):
    """The attention function known to transformers as "dream"; plain SDPA unless a `reading` is handed through.

    query: (B, H, T, d); key, value: (B, H_kv, T, d) -> (B, T, H, d). Raises BadInput for attention that is more than
    a softmax over scaled dot products, or that masks otherwise than `reading` does.
    """
    if reading is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for extra, what in (("softcap", "caps its attention scores"), ("s_aux", "has attention sinks"),
                        ("position_bias", "adds a position bias")):
        if kwargs.get(extra) is not None:
            raise BadInput(f"{type(module).__name__} {what}: eq (3) does not hold there; {TRY}")
    if attention_mask is not READY:
        raise BadInput(f"{type(module).__name__} masks its attention its own way; {TRY}")
    if value.shape[-1] != key.shape[-1]:
        raise BadInput(f"{type(module).__name__} has values of another width than its keys; {TRY}")
    reading.layers_seen.append(module.layer_idx)
    return reading(module.layer_idx, query, key, value, kwargs["scaling"]).transpose(1, 2), None


AttentionInterface.register("dream", attend)
AttentionMaskInterface.register("dream", sdpa_mask)  # else padding would silently be ignored wherever reading is None


def obstacle(llm, length):
    """Why `length` tokens of `llm` cannot be read by plain causal softmax attention; None if they can."""
    config, kind = llm.config.get_text_config(), llm.config.model_type
    window = min(getattr(config, "sliding_window", None) or length, getattr(config, "attention_chunk_size", None) or length)
    types = set(getattr(config, "layer_types", None) or [])
    slides = types != {"full_attention"}  # also where the configuration does not say
    if getattr(config, "is_causal", True) is False or any(getattr(m, "is_causal", True) is False for m in llm.modules()):
        return f"{kind}: its tokens see what follows them; use a causal LM, such as Qwen2, Qwen3 or Llama"
    if types - {"full_attention", "sliding_attention", "chunked_attention"}:
        return f"{kind}: not every layer is plain attention; {TRY}"
    if not getattr(llm, "_supports_attention_backend", False):
        return f"{kind}: this architecture does not let its attention function be chosen; {TRY}"
    if any(getattr(config, f"{where}_logit_softcapping", None) for where in ("attn", "final")):
        return f"{kind}: soft-capped logits are not supported; {TRY}"
    if any(name.endswith("sinks") for name, _ in llm.named_parameters()):
        return f"{kind}: attention sinks are not supported; {TRY}"
    if slides and window < length:
        return f"{kind}: its sliding window of {window} tokens is shorter than the input of {length}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope" and length > rope["original_max_position_embeddings"]:  # a longer pass encodes all its positions otherwise
        return (f"{kind}: the input has {length} tokens, and its positions are encoded in two ways (LongRoPE), one of them up to "
                f"{rope['original_max_position_embeddings']}: use fewer or shorter documents")
    if length > config.max_position_embeddings:
        return (f"the input has {length} tokens, the LLM's context holds {config.max_position_embeddings}: "
                "use fewer or shorter documents")
    return None


def forward(llm, reading, input_ids, positions, **kwargs):
    """One pass over N tokens with `reading` in place of every layer's attention; None if it had Enough.

    Leaves the model on "dream" attention, which without a `reading` is stock SDPA.
    """
    llm.set_attn_implementation("dream")
    layers = list(range(llm.config.get_text_config().num_hidden_layers))
    reading.layers_seen, reading.last = [], layers[-1]
    try:
        output = llm(input_ids=input_ids[None], position_ids=positions[None], attention_mask=READY, use_cache=False,
                     reading=reading, **kwargs)
    except Enough:
        output = None
    if reading.layers_seen != layers:
        raise BadInput(f"{llm.config.model_type}: not every layer is plain attention; {TRY}")
    return output


# ------------------------------------------------------------------------------------------------ texts, side by side


class Packing:
    """B texts of unequal length as one sequence of N tokens. token_at: (B, T) long, the place of text b's t-th token, 0 where
    it has fewer; place: (N,) long, b T + t for the t-th token of text b; lengths: (B,) long."""

    def __init__(self, lengths):
        self.lengths, T = lengths, int(lengths.max())
        inside = torch.arange(T, device=lengths.device) < lengths[:, None]  # (B, T)
        self.place = inside.flatten().nonzero().flatten()
        self.token_at = torch.zeros_like(inside, dtype=torch.long).masked_scatter(inside, torch.arange(len(self.place), device=inside.device))
        self.positions = self.place % T  # (N,): each token's place within its own text

    def apart(self, x):
        """(H, N, d) -> (H, B, T, d); what a shorter text lacks is filled with the first token of all."""
        return x.index_select(1, self.token_at.flatten()).view(len(x), *self.token_at.shape, x.shape[-1])

    def together(self, x):
        """(H, B, T, d) -> (H, N, d)."""
        return x.flatten(1, 2).index_select(1, self.place)


class ReadTexts(Reading):
    """Causal attention of packed texts. Padding stands behind a text's last token, where none of its rows looks."""

    def __init__(self, packing):
        self.packing = packing

    def __call__(self, layer, query, key, value, scaling):
        query, key, value = (self.packing.apart(x[0]).transpose(0, 1) for x in (query, key, value))  # (B, H, T, d)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return self.packing.together(output.transpose(0, 1))[None]


class KeepTexts(ReadTexts):
    """The same, which keeps every layer's keys and values, (H_kv, N, d); done once the last layer's are there."""

    def __init__(self, packing):
        super().__init__(packing)
        self.keys, self.values = [], []

    def __call__(self, layer, query, key, value, scaling):
        self.keys.append(key[0])
        self.values.append(value[0])
        if layer == self.last:
            raise Enough
        return super().__call__(layer, query, key, value, scaling)


# ------------------------------------------------------------------------------------------------- shared documents


def wide(x):
    """At least float32: softmax and loss are never computed in half precision (float64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunks(query, key):
    """query (H_kv, rows, d), key (H_kv, L, d) -> slices of rows, such that their logits fit a CPU's cache, or a small part of an accelerator's memory."""
    rows = max(1, (2**20 if key.device.type == "cpu" else 2**26) // (key.shape[0] * key.shape[1]))
    return [slice(start, start + rows) for start in range(0, query.shape[1], rows)]


def takes_half(x):
    """Whether a GPU's own kernels read these keys in half precision: NVIDIA's since Ampere, heads of a multiple of 8 up to 256."""
    fits = x.dtype.itemsize == 2 and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return x.is_cuda and fits and torch.cuda.get_device_capability(x.device) >= (8, 0)


def factors(*tensors):
    """Keys and values as products take them: in half precision where a GPU's matrix units sum it in float32; else at least float32."""
    return [x if takes_half(x) else wide(x) for x in tensors]


def product(a, b, less=0):
    """a @ b - less in float32: a (H_kv, rows, i) float32, b (H_kv, i, j). Where b is in half precision, a is rounded to it."""
    if a.dtype == b.dtype:
        return torch.baddbmm(less, a, b, beta=-1) if torch.is_tensor(less) else a @ b
    return torch.bmm(a.to(b.dtype), b, out_dtype=torch.float32).sub_(less)


def read_chunked(query, key, value):
    """Softmax attention and its log-sum-exp, a chunk of rows at a time; shapes as in SharedAttention."""
    output, lse = torch.empty_like(query), query.new_empty(*query.shape[:2], 1)
    for rows in chunks(query, key):
        logits = product(query[:, rows], key.transpose(1, 2))  # (H_kv, rows, L)
        lse[:, rows] = logits.logsumexp(-1, keepdim=True)
        output[:, rows] = product(logits.sub_(lse[:, rows]).exp_(), value)
    return output, lse


def read_fused(query, key, value):
    """The same by torch's fused kernels, those behind scaled_dot_product_attention: on a CPU twice as fast, on a GPU in half precision alone."""
    aten, wanted = torch.ops.aten, query.dtype
    query, key, value = query.to(key.dtype)[None], key[None], value[None]  # a batch of one, as the kernels want it
    if key.device.type == "cpu":
        output, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=1.0)
    else:
        output, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value, scale=1.0)
    return output[0].to(wanted), lse[0, ..., None]


class SharedAttention(torch.autograd.Function):
    """Rows attend to keys and values that all of them share and that need no gradient: only the rows get one.

    query: (H_kv, rows, d), scaled; key, value: (H_kv, L, d) -> output (H_kv, rows, d), log-sum-exp (H_kv, rows, 1).
    As FlashAttention does (Dao et al. 2022, arXiv 2205.14135), it keeps of each row's softmax the log-sum-exp alone,
    from which the backward pass makes the attention again.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        keys, values = factors(key, value)
        read = read_chunked if keys.is_cuda and keys.dtype == query.dtype else read_fused
        output, lse = read(query, keys, values)
        ctx.save_for_backward(query, key, value, output, lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output, d_lse):
        query, key, value, output, lse = ctx.saved_tensors
        (key, value), d_query = factors(key, value), torch.empty_like(query)
        mean = (d_output * output).sum(-1, keepdim=True) - d_lse  # (H_kv, rows, 1): the mean of d_p under p, less d_lse
        for rows in chunks(query, key):
            p = product(query[:, rows], key.transpose(1, 2), lse[:, rows]).exp_()
            d_p = product(d_output[:, rows], value.transpose(1, 2), mean[:, rows])
            d_query[:, rows] = product(p.mul_(d_p), key)
        return d_query, None, None


def read_prefix(query, key, value):
    """The prefix as rows read it: query (H, N, d), scaled -> output (H, N, d), log-sum-exp (H, N, 1)."""
    output, lse = SharedAttention.apply(query.reshape(key.shape[0], -1, query.shape[-1]), key, value)
    return output.reshape(query.shape), lse.reshape(*query.shape[:2], 1)


def read_own(query, key, value, packing):
    """Their own question's past as rows read it: query (H, N, d), scaled; key, value (H_kv, N, d) -> as read_prefix."""
    q, k, v = (packing.apart(wide(x)) for x in (query, key, value))  # (heads, B, T, d)
    q, T = q.view(len(k), -1, *q.shape[1:]), q.shape[2]  # (H_kv, heads that share keys, B, T, d)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)  # also hides padding from every row that counts
    logits = (q @ k[:, None].transpose(-1, -2)).masked_fill(future, -torch.inf)
    lse = logits.logsumexp(-1, keepdim=True)
    output = (logits - lse).exp() @ v[:, None]
    return tuple(packing.together(x.flatten(0, 1)) for x in (output, lse))


def read_both(prefix, own):
    """Two readings (output, log-sum-exp) -> the same of one softmax over what both have read."""
    share = (prefix[1] - own[1]).sigmoid()  # (H, N, 1): the attention's mass on the prefix
    return torch.lerp(own[0], prefix[0], share), torch.logaddexp(prefix[1], own[1])
