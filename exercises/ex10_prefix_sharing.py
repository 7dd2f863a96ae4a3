"""Exercise 10: read the documents once, not once per question. The same numbers, faster.

Question
    `slow_nll` below is right and wasteful: it reads all documents again for every question. Split it in two: `prefill` reads
    the L tokens of the documents once and returns whatever you want to keep of them; `target_nll` reads the questions behind
    that, and returns the same numbers. The checker counts rows, that is tokens that pass through the LLM, and uses no clock.
    (weights, heads and budget are not needed, and the checker uses heads=None.)

Why it matters
    In a step of 16 questions and 16 documents nearly all of the work is reading documents. In a causal LM a document's rows
    do not see what follows, so that they are the same for every question: sharing them is exact. This is what brings a
    DREAM step down to about two InfoNCE steps.

Hint
    llm(input_ids=..., use_cache=True).past_key_values holds the keys and values of what was read, and
    llm(input_ids=row, past_key_values=cache) goes on behind it; places are counted on from there by themselves. But a cache
    grows with what is read: the second question would see the first. Give each question a copy (copy.deepcopy).

Expected number
    python exercises/ex10_prefix_sharing.py prints rows of slow_nll: 51, yours: 24
    (or 27: 12 rows of documents and 3 questions of 5; the reference does not read a question's last token, as nobody asks
    what follows it)

Minutes
    20
"""
import torch
import torch.nn.functional as F

from given import VOCABULARY, count_rows, tiny_llm


@torch.no_grad()
def slow_nll(llm, documents, input_ids, target_mask):
    """(B,): each question's mean loss on its targets, the documents (1, L) read anew each time."""
    losses = []
    for row, mask in zip(input_ids, target_mask):
        logits = llm(input_ids=torch.cat([documents, row[None]], 1), use_cache=False).logits[0]  # (L + T, vocabulary)
        at = documents.shape[1] + mask.nonzero().flatten()  # the places of targets; each is predicted one place before
        losses.append(F.cross_entropy(logits[at - 1], row[mask]))
    return torch.stack(losses)


def prefill(llm, input_ids, document_of):
    """Read the documents once: input_ids (1, L) long -> what target_nll needs of them. document_of, (L,), is not needed here."""
    raise NotImplementedError("exercise 10 is not written yet: exercises/ex10_prefix_sharing.py")


def target_nll(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    """(B,) float32, each question's mean loss on its target tokens. prefix: what prefill returned;
    input_ids, target_mask: (B, T), right-padded, True on target tokens."""
    raise NotImplementedError("exercise 10 is not written yet: exercises/ex10_prefix_sharing.py")


if __name__ == "__main__":
    llm, generator = tiny_llm(), torch.Generator().manual_seed(0)
    documents, questions = (torch.randint(1, VOCABULARY, shape, generator=generator) for shape in ((1, 12), (3, 5)))
    target_mask = torch.tensor([[False, False, False, True, True]] * 3)
    with count_rows(llm) as slow:
        slow_nll(llm, documents, questions, target_mask)
    with count_rows(llm) as yours:
        target_nll(llm, prefill(llm, documents, torch.tensor([0] * 6 + [1] * 6)), questions, target_mask)
    print(f"rows of slow_nll: {sum(slow)}, yours: {sum(yours)}")
