"""Exercise 5: which heads look at the document, eq (6).

Question
    Write `score_heads`: of every head the attention that it puts on the source document (the one that has the answer), from
    the rows that predict the target. The mean over a question's rows first, then over the questions. `read_question(llm, prefix, row)`
    returns (attention, logits) of one question, attention (layers, heads, T, L + T). (The reference's `rows="question"` is not asked for.)

Why it matters
    A few heads copy the answer out of the right document; most do something else. Put the weights into 16 random heads and
    the LLM hardly notices which document they point to: the loss says little, and what the retriever learns of it does not help
    retrieval. Eq (6) finds the right ones.

Hint
    The row that predicts token t is row t - 1. With target_mask[b] = [F, F, T, T] these are rows 1 and 2:
    target_mask[b].nonzero().flatten() - 1. The first L of the L + T columns are the prompt's: cut with [..., :L], L = len(prefix),
    before you pick those where prefix.document_of == source[b]. Sum over columns, mean over rows, mean over questions:
    (layers, heads) is left.

Expected number
    python exercises/ex05_heads.py prints 0.4, for every head
    (all weights are 0, so that attention is even: row 1 sees 8 tokens of the prompt and 2 of its own; 4 of the 10 are the source's)

Minutes
    20
"""
import torch

from given import read_prefix, read_question, tiny_llm


def score_heads(llm, prefix, input_ids, target_mask, source, rows="target"):
    """Eq (6): (layers, heads) float32, the mean attention mass on the source document from rows that predict the target.

    prefix: the documents as read by the LLM, with prefix.document_of (L,) long, k for a token of document k, -1 elsewhere;
    input_ids, target_mask: (B, T), right-padded, True on target tokens; source: (B,) long, each question's source document.
    """
    raise NotImplementedError("exercise 5 is not written yet: exercises/ex05_heads.py")


if __name__ == "__main__":
    llm = tiny_llm(zero=True)
    prefix = read_prefix(llm, [-1, 0, 0, 0, 0, 1, 1, 1])
    question, target_mask = torch.tensor([[5, 6, 7]]), torch.tensor([[False, False, True]])
    scores = score_heads(llm, prefix, question, target_mask, torch.tensor([0]))
    print(*{round(score, 4) for score in scores.flatten().tolist()})
