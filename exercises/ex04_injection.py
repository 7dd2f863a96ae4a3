"""Exercise 4: injection in one head, eq (4) with both budgets.

Question
    Write `inject`, the output of injected heads. With self.budget "documents" it is what `read_documents` (exercise 3)
    brings back, and nothing else. With "keep" the head keeps its own attention p for everything that is no document, and
    only the mass m that it had on documents is shared out by the weights:

        o = sum_{j outside documents} p_j v_j + m * sum_k w_k r_k

    p is one softmax over the prompt's L tokens and the row's own past (its question so far). The past comes summed up: `own`
    is the output of a softmax over the past alone, `own_lse` the log of the sum of exp(logit) over it.

Why it matters
    Here the loss of the LLM meets the retriever: the gradient of the weights goes through these lines and nothing else.
    "keep" has a property that a test can use: with a single document of weight 1 nothing has changed, the head is untouched.

Hint
    logits = query @ keys, transposed; query is scaled already. log Z, the log of the whole softmax's denominator, is
    torch.logaddexp(logits.logsumexp(-1, keepdim=True), own_lse). Then p over the prompt is (logits - log Z).exp(), and the
    past as a whole has the attention (own_lse - log Z).exp(). Exponentials of the logits themselves overflow.
    self.prefix.document_of says which tokens are of documents (>= 0).

Expected number
    python exercises/ex04_injection.py prints 10.0 11.0
    (all logits are 0: each of the prompt's three tokens and the past has p = 1/4;
    the documents alone: 3/4 * 8 + 1/4 * 16 = 10; keep: 4/4 + 20/4 + 2/4 * 10 = 11)

Minutes
    25
"""
from types import SimpleNamespace

import torch

from given import read_prefix, tiny_llm
from inject import read_documents  # or your own: from ex03_reading import read_documents


def inject(self, query, keys, values, own, own_lse):
    """Eq (4): what n injected heads of one layer put out at N rows.

    self: .prefix (exercise 3), .weights (N, K), .budget "documents" or "keep".
    query: (n, N, d), scaled; keys, values: (n, L, d); own: (n, N, d); own_lse: (n, N, 1) -> (n, N, d).
    """
    raise NotImplementedError("exercise 4 is not written yet: exercises/ex04_injection.py")


if __name__ == "__main__":
    reading = SimpleNamespace(prefix=read_prefix(tiny_llm(), [-1, 0, 1]), weights=torch.tensor([[0.75, 0.25]]), budget="documents")
    query, keys = torch.zeros(1, 1, 1), torch.ones(1, 3, 1)
    values, own, own_lse = torch.tensor([[[4.0], [8.0], [16.0]]]), torch.tensor([[[20.0]]]), torch.zeros(1, 1, 1)
    documents = inject(reading, query, keys, values, own, own_lse).item()
    reading.budget = "keep"
    print(round(documents, 4), round(inject(reading, query, keys, values, own, own_lse).item(), 4))
