"""Experiment E6: InfoNCE whose labels are all wrong. The pools, questions and steps are train.py's; the label is another document.

    python exercises/wrong_labels.py                        # InfoNCE; a label is the next document of the pool
    python exercises/wrong_labels.py --objective dream      # the same pools, whose labels DREAM's loss never reads

Only `Pool.source` is changed, which is what InfoNCE calls the positive; the right document is a negative then. Questions and
targets stay whole. DREAM's heads are chosen with the right sources here, once, before training: from then on nothing of it
depends on a label, and its losses are those of train.py to the last bit.
"""
from variant import run_variant  # first: it puts the repository's modules within reach

from data import Pool
from files import command
from train import Run


class WrongPool(Pool):
    """A pool whose `source` is never the source: of K documents the next one, the first after the last."""

    @property
    def source(self):
        return (super().source + 1) % len(self.documents)


class WrongLabels(Run):
    choosing = False

    def __init__(self, config):
        super().__init__(config)
        self.sources_of = dict.fromkeys(self.sources_of, ())  # or infonce would spare the right document

    def choose_heads(self):
        self.choosing = True
        scores = super().choose_heads()
        self.choosing = False
        return scores

    def pools(self, seed):
        for pool in super().pools(seed):
            yield pool if self.choosing else WrongPool(pool.documents, pool.examples)


def main(argv=None):
    run_variant(WrongLabels, "exercises/wrong_labels.py", ["--objective", "infonce", "--out", "runs/wrong-labels"], argv)


if __name__ == "__main__":
    command(main)
