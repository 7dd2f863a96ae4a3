"""The frozen LLM's own attention when many questions share the same documents, whose keys are never copied or masked.

A question's row sees the documents and its own question's past. The two are read apart, each with the log-sum-exp of
its logits, and put together exactly:

    softmax over both = share * (softmax over documents) + (1 - share) * (softmax over the own past)
    share = sigmoid( log sum_documents exp(logits) - log sum_own exp(logits) )

All rows of all questions see the same documents, so that reading them is one product of many rows, in which heads that
share keys and values (grouped-query attention, Ainslie et al. 2023) are rows too. Symbols: see model.py.
"""
import torch
from torch.autograd.function import once_differentiable


def wide(x):
    """At least float32: softmax and loss are never computed in half precision (float64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunks(query, key):
    """Slices of rows, such that their logits fit a CPU's cache, or a small part of an accelerator's memory."""
    rows = max(1, (2**20 if key.device.type == "cpu" else 2**26) // (key.shape[0] * key.shape[1]))
    return [slice(start, start + rows) for start in range(0, query.shape[1], rows)]


def read_chunked(query, key, value):
    """Softmax attention and its log-sum-exp, a chunk of rows at a time; shapes as in SharedAttention."""
    output, lse = torch.empty_like(query), query.new_empty(*query.shape[:2], 1)
    for rows in chunks(query, key):
        logits = query[:, rows] @ key.transpose(1, 2)  # (H_kv, rows, L)
        lse[:, rows] = logits.logsumexp(-1, keepdim=True)
        output[:, rows] = logits.sub_(lse[:, rows]).exp_() @ value
    return output, lse


def read_fused(query, key, value):
    """The same by torch's fused kernel for CPUs, the one behind scaled_dot_product_attention: twice as fast."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = fused(query[None], key[None], value[None], scale=1.0)
    return output[0], lse[0, ..., None]


class SharedAttention(torch.autograd.Function):
    """Rows attend to keys and values that all of them share and that need no gradient: only the rows get one.

    query: (H_kv, R, d), scaled; key, value: (H_kv, L, d) -> output (H_kv, R, d), log-sum-exp (H_kv, R, 1).
    As FlashAttention does (Dao et al. 2022, arXiv 2205.14135), it keeps of each row's softmax the log-sum-exp alone,
    from which the backward pass makes the attention again.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        read = read_fused if query.device.type == "cpu" else read_chunked
        output, lse = read(query, wide(key), wide(value))
        ctx.save_for_backward(query, key, value, output, lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output, d_lse):
        query, key, value, output, lse = ctx.saved_tensors
        key, value, d_query = wide(key), wide(value), torch.empty_like(query)
        mean = (d_output * output).sum(-1, keepdim=True) - d_lse  # (H_kv, R, 1): the mean of d_p under p, less d_lse
        for rows in chunks(query, key):
            p = torch.baddbmm(lse[:, rows], query[:, rows], key.transpose(1, 2), beta=-1).exp_()
            d_p = torch.baddbmm(mean[:, rows], d_output[:, rows], value.transpose(1, 2), beta=-1)
            d_query[:, rows] = p.mul_(d_p) @ key
        return d_query, None, None


def read_prefix(query, key, value):
    """The documents as rows read them: query (H, N, d), scaled -> output (H, N, d), log-sum-exp (H, N, 1)."""
    output, lse = SharedAttention.apply(query.reshape(key.shape[0], -1, query.shape[-1]), key, value)
    return output.reshape(query.shape), lse.reshape(*query.shape[:2], 1)


def read_own(query, key, value, suffixes):
    """Their own question's past as rows read it: query (H, N, d), scaled; key, value (H_kv, N, d) -> as read_prefix."""
    B, T = suffixes.token_at.shape
    q, k, v = (wide(x).index_select(1, suffixes.token_at.flatten()).view(key.shape[0], -1, B, T, x.shape[-1])
               for x in (query, key, value))  # (H_kv, heads that share keys, B, T, d)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)  # also hides padding from every row that counts
    logits = (q @ k.transpose(-1, -2)).masked_fill(future, -torch.inf)
    lse = logits.logsumexp(-1, keepdim=True)
    output = (logits - lse).exp() @ v
    return tuple(x.reshape(len(query), B * T, -1).index_select(1, suffixes.place) for x in (output, lse))


def read_both(documents, own):
    """Two readings (output, log-sum-exp) -> the same of one softmax over what both have read."""
    share = (documents[1] - own[1]).sigmoid()  # (H, N, 1): the attention's mass on the documents' prompt
    return torch.lerp(own[0], documents[0], share), torch.logaddexp(documents[1], own[1])
