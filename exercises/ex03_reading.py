"""Exercise 3: what a head brings back from each document, eqs (3) and (4).

Question
    Write `read_documents`. A head has given every token of the prompt a logit (q_t . k_j / sqrt(d), done for you). For each
    document k: softmax over that document's tokens alone, then the mean of their values under it; this is r_k, eq (3). Then
    the sum of w_k r_k over the documents, eq (4). Tokens that belong to no document are not read at all.

Why it matters
    This is the whole trick of DREAM. *Which tokens inside a document* stays the frozen head's choice: its softmax. *Which
    document* is the retriever's: w. The softmax is done inside each document first and the weight comes after it. In one
    softmax over all documents the head would choose the document itself, and the retriever would learn little.

Hint
    Loop over k; the documents need not be done at once. `prefix.document_of == k` is a mask of the tokens of document k
    (prefix.token_at and prefix.present say the same as positions, and are not needed). Shapes: logits[:, :, mask] is
    (n, N, m), values[:, mask] is (n, m, d), so that their product is (n, N, d). Row i of the N rows has its own weights[i]:
    weights[:, k] is (N,), and weights[:, k, None] fits (n, N, d).

Expected number
    python exercises/ex03_reading.py prints 53.5
    (document 0: logits 0 and ln 3 make 1/4 and 3/4, so that its reading is 4/4 + 3/4 * 8 = 7; document 1: 100; half of each)

Minutes
    15
"""
import math

import torch

from given import read_prefix, tiny_llm


def read_documents(logits, values, prefix, weights):
    """Eqs (3) and (4) for n heads at N rows.

    logits: (n, N, L) over the L tokens of the prompt; values: (n, L, d); weights: (N, K) -> (n, N, d).
    prefix.document_of: (L,) long, k for a token of document k, -1 for tokens of none; documents are 0..K-1.
    """
    raise NotImplementedError("exercise 3 is not written yet: exercises/ex03_reading.py")


if __name__ == "__main__":
    prefix = read_prefix(tiny_llm(), [-1, 0, 0, 1])
    logits = torch.tensor([[[9.0, 0.0, math.log(3), 2.0]]])  # (1, 1, 4): one head, one row
    values = torch.tensor([[[50.0], [4.0], [8.0], [100.0]]])  # (1, 4, 1)
    print(round(read_documents(logits, values, prefix, torch.tensor([[0.5, 0.5]])).item(), 4))
