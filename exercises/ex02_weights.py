"""Exercise 2: from scores to document weights, eq (2).

Question
    The score of question b and document k is the inner product of two unit vectors, eq (1); it is done for you in the last
    lines of this file. Write `document_weights`: each question's scores, divided by the temperature tau, become weights that
    sum to 1 over the documents: w_bk = exp(s_bk / tau) / sum_k exp(s_bk / tau).

Why it matters
    The weights are all that the frozen LLM ever hears of the retriever. Because they sum to 1, a document can only gain what
    others lose. Cosines of real texts differ by a few hundredths, and with tau = 1 the best of 16 documents would hardly
    get more weight than the worst: a small tau makes such differences count.

Hint
    torch has the whole formula as one function; say along which dimension. (B, K): b counts questions, k documents. Written
    out by hand, exp(1 / 0.01) is too large for float32: subtract each row's largest score first.

Expected number
    python exercises/ex02_weights.py prints [0.25, 0.75]

Minutes
    5
"""
import torch
import torch.nn.functional as F


def document_weights(scores, temperature):
    """Eq (2): scores (B, K) -> weights (B, K), each row a softmax of scores / temperature: the documents of a pool compete."""
    raise NotImplementedError("exercise 2 is not written yet: exercises/ex02_weights.py")


if __name__ == "__main__":
    query_emb = F.normalize(torch.tensor([[1.0, 0.0]]), dim=-1)  # (B, D)
    doc_emb = F.normalize(torch.tensor([[0.0, 1.0], [0.0219722, 1.0]]), dim=-1)  # (K, D): cosines 0 and .022, which is .02 ln 3
    scores = query_emb @ doc_emb.T  # (B, K)  eq (1)
    print([round(w, 3) for w in document_weights(scores, 0.02)[0].tolist()])
