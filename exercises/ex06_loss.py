"""Exercise 6: the loss on target tokens, eq (5).

Question
    Write `target_nll` for the untouched LLM (heads=None): the mean of -log p over a question's target tokens, one number for
    each question. `read_question(llm, prefix, row)`, for one question's row (T,), returns (attention, logits),
    logits (T, vocabulary); padding on the right changes nothing before it. Leave weights, heads and budget alone here.

Why it matters
    This is the only teacher that the retriever has. Two slips leave the loss plausible and the training worthless: reading
    the prediction of the wrong row, and counting the question's tokens (which no document explains) or padding.

Hint
    Row t predicts token t + 1: the target at place t is judged by logits[t - 1]. F.cross_entropy takes logits (R, vocabulary)
    and the R right tokens, and returns their mean. Each question has its own number of target tokens: loop over questions,
    then torch.stack.

Expected number
    python exercises/ex06_loss.py prints 5.549
    (a model of zeros takes each of the 257 tokens to be equally likely: ln 257)

Minutes
    10
"""
import torch
import torch.nn.functional as F

from given import read_prefix, read_question, tiny_llm


def target_nll(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    """Eq (5): (B,) float32, each question's mean loss on its target tokens.

    prefix: the documents as read by the LLM; input_ids, target_mask: (B, T), right-padded, True on target tokens.
    """
    raise NotImplementedError("exercise 6 is not written yet: exercises/ex06_loss.py")


if __name__ == "__main__":
    llm = tiny_llm(zero=True)
    question, target_mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[False, False, True, True]])
    print(round(target_nll(llm, read_prefix(llm, [-1, 0, 0, 1]), question, target_mask).item(), 3))
