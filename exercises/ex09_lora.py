"""Exercise 9: LoRA, a layer that learns without changing its weights.

Question
    Write `LoRALinear`: it holds a frozen linear layer and adds a learned product of two thin matrices,
    y = W x + (alpha / r) B A x. With `enabled` False it is the frozen layer.

Why it matters
    A retriever of 135 million weights learns through 4.9 million new ones; the rest needs no gradient and no optimiser state.
    And since W never changes, adapters off is the frozen LLM: retriever and judge are one model in memory.

Hint
    nn.Parameter makes a tensor learnable. A is (r, in) and may hold anything at first (the reference lets `add_lora` fill it with
    random numbers); B is (out, r) and starts at zero, so that the layer is unchanged at first. Apply A before B: the product
    B A is as large as W. F.linear(x, A) works for every shape (..., in). Call super().__init__() first.

Expected number
    python exercises/ex09_lora.py prints 9.0
    (W x = 3; A x = 1; B A x = 3; alpha / r = 2)

Minutes
    10
"""
import torch
from torch import nn


class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x with W frozen, lora_A (r, in), lora_B (out, r) zero: at first the layer is unchanged.

    base: an nn.Linear with in_features and out_features; rank: r. Has .base, .lora_A, .lora_B and .enabled (True at first).
    """

    def __init__(self, base, rank, alpha):
        raise NotImplementedError("exercise 9 is not written yet: exercises/ex09_lora.py")

    def forward(self, x):
        raise NotImplementedError("exercise 9 is not written yet: exercises/ex09_lora.py")


if __name__ == "__main__":
    base = nn.Linear(2, 1, bias=False).requires_grad_(False)
    base.weight.data = torch.tensor([[1.0, 2.0]])
    layer = LoRALinear(base, rank=1, alpha=2)
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]])
    print(layer(torch.ones(1, 2)).item())
