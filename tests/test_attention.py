"""Attention read in two parts against one softmax over everything; gradients against finite differences."""
from types import SimpleNamespace

import pytest
import torch

import attention
from attention import SharedAttention, read_both, read_chunked, read_fused, read_own, read_prefix
from files import BadInput
from inject import pack


def random(*shape, dtype=torch.float64, seed=0, **more):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, **more)


@pytest.mark.parametrize("read", [read_chunked, read_fused])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_both_ways_of_reading_are_softmax_attention(read, dtype, tolerance, monkeypatch):
    query, key, value = (random(2, n, 8, dtype=dtype, seed=seed) for seed, n in enumerate((13, 17, 17)))
    monkeypatch.setattr(attention, "chunks", lambda query, key: [slice(0, 5), slice(5, 10), slice(10, 15)])
    output, lse = read(query, key, value)
    logits = torch.einsum("hrd,hld->hrl", query.double(), key.double())
    assert torch.allclose(output.double(), logits.softmax(-1) @ value.double(), rtol=0, atol=tolerance)
    assert torch.allclose(lse.double(), logits.logsumexp(-1, keepdim=True), rtol=0, atol=10 * tolerance)
    assert output.dtype == lse.dtype == dtype


def test_large_logits_do_not_overflow():
    query, key, value = random(1, 4, 8) * 1e3, random(1, 6, 8, seed=1), random(1, 6, 8, seed=2)
    for read in (read_chunked, read_fused):
        assert all(x.isfinite().all() for x in read(query, key, value))


@pytest.mark.parametrize("read", ["read_chunked", "read_fused"])
def test_gradients_of_output_and_log_sum_exp_are_finite_differences(read, monkeypatch):
    monkeypatch.setattr(attention, "read_fused", getattr(attention, read))
    monkeypatch.setattr(attention, "chunks", lambda query, key: [slice(0, 2), slice(2, 9)])
    query, key, value = random(2, 5, 4, requires_grad=True), random(2, 6, 4, seed=1), random(2, 6, 4, seed=2)
    assert torch.autograd.gradcheck(lambda q: SharedAttention.apply(q, key, value), query)


def test_chunks_hold_every_row_once_whatever_the_size():
    for rows, columns in ((1, 1), (7, 2**21), (1000, 3000), (5, 2**10)):
        query, key = torch.empty(1, device="meta").expand(3, rows, 2), torch.empty(1, device="meta").expand(3, columns, 2)
        parts = [list(range(rows))[part] for part in attention.chunks(query, key)]
        assert sum(parts, []) == list(range(rows)) and all(parts)


def test_documents_and_own_past_together_are_one_masked_softmax():
    """Questions of unequal length, two heads to a key; the reference builds the whole mask and copies the keys."""
    H, H_kv, L, d = 4, 2, 6, 8
    target_mask = torch.tensor([[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]).bool()
    suffixes = pack(torch.arange(1, 16).view(3, 5), target_mask, L)
    N = len(suffixes.input_ids)
    assert N == 2 + 3 + 4 and suffixes.input_ids.tolist() == [1, 2, 6, 7, 8, 11, 12, 13, 14]
    query, key, value = random(H, N, d), random(H_kv, N, d, seed=1), random(H_kv, N, d, seed=2)
    documents_key, documents_value = random(H_kv, L, d, seed=3), random(H_kv, L, d, seed=4)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output, lse = read_both(read_prefix(query, documents_key, documents_value), read_own(query, key, value, suffixes.packing))

    question = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    seen = (question[:, None] == question) & torch.ones(N, N).tril().bool()
    seen = torch.cat([torch.ones(N, L).bool(), seen], 1)
    keys = torch.cat([documents_key, key], 1).repeat_interleave(H // H_kv, 0)
    values = torch.cat([documents_value, value], 1).repeat_interleave(H // H_kv, 0)
    logits = (query @ keys.transpose(1, 2)).masked_fill(~seen, -torch.inf)
    expected = logits.softmax(-1) @ values
    assert torch.allclose(output, expected, rtol=0, atol=1e-12)
    assert torch.allclose(lse, logits.logsumexp(-1, keepdim=True), rtol=0, atol=1e-12)
    weight = random(H, N, d, seed=5)
    ours, naive = (torch.autograd.grad((x * weight).sum(), inputs) for x in (output, expected))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, naive))


def test_half_precision_is_close_in_values_and_gradients(monkeypatch):
    """The products of a GPU's branch, rounded as its kernels round, and a CPU's fused reading, against float64."""
    monkeypatch.setattr(attention, "takes_half", lambda x: x.dtype.itemsize == 2)
    monkeypatch.setattr(attention.torch, "bmm", lambda a, b, out_dtype: (a.to(out_dtype) @ b.to(out_dtype)))
    query = random(2, 40, 16, dtype=torch.float32, requires_grad=True)
    key, value = (random(2, 30, 16, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    output, lse = SharedAttention.apply(query, key, value)
    wide = query.detach().double().requires_grad_()
    logits = wide @ key.double().transpose(1, 2)
    expected, sums = logits.softmax(-1) @ value.double(), logits.logsumexp(-1, keepdim=True)
    for found, right in ((output, expected), (lse, sums), *zip(*(torch.autograd.grad(x.mul(torch.arange(40.0)[:, None]).sum() + 3 * y.sum(), of)
                                                                for x, y, of in ((output, lse, query), (expected, sums, wide))))):
        assert found.dtype == torch.float32 and (found.double() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize("capability, dtype, width, half", [
    ((8, 0), torch.bfloat16, 64, True), ((9, 0), torch.float16, 256, True), ((7, 5), torch.bfloat16, 64, False),
    ((9, 0), torch.bfloat16, 100, False), ((9, 0), torch.bfloat16, 264, False), ((9, 0), torch.float32, 64, False)])
def test_only_what_a_gpu_s_kernels_take_is_read_in_half_precision(monkeypatch, capability, dtype, width, half):
    """FlashAttention 2's conditions; whatever else is read in float32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention.takes_half(SimpleNamespace(is_cuda=True, dtype=dtype, device="cuda:0", shape=(2, 5, width))) == half


def test_values_of_another_width_than_the_keys_are_refused():
    """As of multi-head latent attention."""
    query, key, value = torch.ones(1, 4, 3, 8), torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 6)
    with pytest.raises(BadInput, match="values of another width than its keys"):
        attention.attend(torch.nn.Linear(1, 1), query, key, value, attention.READY, reading=attention.Reading(), scaling=1.0)
