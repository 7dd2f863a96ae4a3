"""Experiment E5: the LLM that judges learns too, so that its loss can fall without the retriever's help.

    python exercises/unfrozen_llm.py [--steps 12] ...       # train.py's flags; about 1 GB more memory, or more with large pools

In train.py judge and retriever are one set of weights, held once. Here the judge is loaded a second time (from --llm, or else
from --backbone), its attention layers get gradients, and an optimiser of its own follows the same loss. The retriever is
trained as ever. Two things to know:

- `prefill` reads documents without a graph, by design: the judge learns from its questions' and targets' rows alone. It
  still reads the documents with its new weights, anew in each step.
- The heads are chosen before training, on the untouched judge, as in train.py.
"""
from variant import run_variant  # first: it puts the repository's modules within reach

import torch

from backbones import load_backbone
from files import BadInput, command
from layers import checkpoint_layers, compile_layers
from train import Run

LEARNS = ("q_proj", "k_proj", "v_proj", "o_proj")  # with the MLPs too it takes four times the memory
LR = 1e-4  # of the judge; constant


class UnfrozenLLM(Run):
    """A Run whose judge has weights of its own, which every step changes."""

    def __init__(self, config):
        super().__init__(config)
        if config.objective != "dream" or config.accumulate != 1:
            raise BadInput("unfrozen_llm.py is about --objective dream, one pool a step")
        if self.own_llm is None:
            self.own_llm = load_backbone(config.backbone, config.device, "float32")[1]
            if config.checkpoint:
                checkpoint_layers(self.own_llm)
            if config.compile:
                compile_layers(self.own_llm)
        self.own_llm.float()  # an optimiser needs all digits
        self.learning = [p for name, p in self.own_llm.named_parameters() if name.split(".")[-2] in LEARNS]
        if not self.learning:
            raise BadInput(f"unfrozen_llm.py knows attention layers by the names {', '.join(LEARNS)}; this LLM has none")
        for weight in self.learning:
            weight.requires_grad_()
        self.optimizer = torch.optim.AdamW(self.learning, lr=LR, weight_decay=0.0)

    def step(self, pool, own=slice(None)):
        """A step as ever; its gradient has reached the judge as well, which takes its own step."""
        record = super().step(pool, own)
        torch.nn.utils.clip_grad_norm_(self.learning, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return record


def main(argv=None):
    run_variant(UnfrozenLLM, "exercises/unfrozen_llm.py", ["--out", "runs/unfrozen-llm"], argv)


if __name__ == "__main__":
    command(main)
