"""The count on paper against torch's own counter, transformers' own weights, and what autograd really keeps."""
import pytest
import torch

from measure import counted, kept, part_by_part
from conftest import tiny_tokenizer
from cost import SHAPES, Batch, Shape, count_bytes, count_flops, plan, random_model
from model import Retriever

TINY = Shape(layers=4, width=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocabulary=300)
BATCH = Batch(questions=6, documents=5, document=40, query=40, suffix=11, targets=3, header=4, introduction=7)
HEADS = [(1, 0), (2, 1), (3, 3)]


def tiny_retriever(dtype=torch.float32):
    retriever = Retriever("tiny", tiny_tokenizer(), random_model(TINY, dtype=dtype))
    retriever.add_lora(rank=4, alpha=8)
    return retriever


@pytest.mark.parametrize("checkpoint", [False, True])
def test_operations_are_what_torch_counts(checkpoint):
    retriever = tiny_retriever()
    if checkpoint:
        from layers import checkpoint_layers

        checkpoint_layers(retriever.llm)
    seen = part_by_part(retriever, BATCH, HEADS, counted)
    expected = count_flops(TINY, TINY, BATCH, rank=4, heads=len(HEADS), first=0.25, checkpoint=checkpoint)
    assert set(seen) == set(expected)
    for part, flops in expected.items():
        assert seen[part] == pytest.approx(flops, rel=0.03), part


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_are_what_autograd_keeps(dtype, size):
    seen = part_by_part(tiny_retriever(dtype), BATCH, HEADS, kept)
    expected = count_bytes(TINY, TINY, BATCH, rank=4, heads=len(HEADS), size=size)
    assert seen["encoder forward"] == pytest.approx(expected["encoder activations"], rel=0.05)
    loss = 4 * BATCH.questions * BATCH.targets * TINY.vocabulary  # of the vocabulary's part, what outlives the forward pass
    assert seen["suffix forward"] == pytest.approx(expected["suffix activations"] + expected["injected heads"] + loss, rel=0.08)
    assert expected["vocabulary"] > loss
    assert seen["prefill"] == 0


@pytest.mark.parametrize("name, parameters", [
    ("SmolLM2-135M", 134515008), ("Qwen2-0.5B", 494032768), ("Llama-3.2-1B", 1235814400), ("Qwen2.5-1.5B", 1543714304),
    ("Llama-3.2-3B", 3212749824), ("Qwen2.5-7B", 7615616512)])
def test_shapes_have_the_published_numbers_of_weights(name, parameters):
    """Against the numbers that the hub's pages state, and against transformers' model of that shape."""
    shape, llm = SHAPES[name], random_model(SHAPES[name], device="meta")
    assert shape.parameters == parameters == sum(p.numel() for p in llm.parameters())
    assert Shape.of(llm.config) == shape


def test_the_plan_marks_what_does_not_fit():
    text, rows = plan(Batch(questions=4, documents=4))
    assert len(rows) == 15 and all(row["fits"] and not row["checkpoint"] for row in rows) and "too large" not in text
    text, rows = plan(Batch(questions=64, documents=64, document=512))
    small, large = rows[0], rows[-1]
    assert small["fits"] and large["checkpoint"] and "*" in text
    assert not small["checkpoint"] and large["bytes"]["encoder activations"] < small["bytes"]["encoder activations"]
    assert small["examples_per_hour"] == pytest.approx(3600 * 0.4 * 989e12 / sum(small["flops"].values()) * 64)
    assert all(sum(row["bytes"].values()) < 80e9 for row in rows if row["fits"])
