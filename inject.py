"""The method: a retriever's document weights decide which document a few heads of a frozen LLM read.

DREAM (arXiv 2606.24667). The LLM reads K documents once; then B questions, each with its target, continue from that
shared reading. In the injected heads a row no longer chooses *which* document to read: the retriever's weights w_bk
do. *Which tokens inside a document* stays the frozen head's own choice. The loss on the target therefore reaches the
retriever through these heads, and through nothing else.

    (3)  r_k(t) = sum_{j in d_k} softmax_{j in d_k}( q_t . k_j / sqrt(d) ) v_j     the head's reading of document k
    (4)  o(t) = sum_k w_bk r_k(t)                                                 the head's output at row t
         budget="keep":  o(t) = sum_{j outside documents} p_tj v_j + m(t) sum_k w_bk r_k(t)     m: mass of the head's own p on documents
    (5)  L_b = - 1/|y| sum_i log p( y_i | d_1..d_K, q_b, y_<i ; w_b )
    (6)  score(h) = the attention mass that head h puts on the source document, from the rows that predict the target

Two facts make a step cheap, and both are exact. Documents come before every question, so their rows never see the
weights: they are read once, without gradients (`prefill`). And the questions need not be padded or batched: they are
packed into one sequence behind the documents, each seeing the documents and itself.

Nothing of the LLM is copied or patched: in one pass, `forward`, a `Reading` takes the place of each layer's attention
(attention.py). As the documents are shared, it reads in two parts: read_prefix, the documents with their introduction, and
read_own, the question's own past, each with lse, the log of the sum of exp(logit); read_both joins them into the one softmax
that the LLM itself would compute. What attention.py leaves out is refused by name. Symbols: see model.py.
"""
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attention import KeepTexts, Packing, Reading, forward, obstacle, read_both, read_own, read_prefix, wide
from files import BadInput


@dataclass
class Prefix:
    """The documents as the frozen LLM has read them: keys and values of every layer, shared by all questions."""

    document_of: torch.Tensor  # (L,) long: k for a token of document k, -1 for the prompt's own tokens
    token_at: torch.Tensor  # (K, M) long: position of document k's i-th token; 0 where it has fewer
    present: torch.Tensor  # (K, M) bool: does document k have an i-th token
    keys: list  # per layer (H_kv, L, d)
    values: list

    def __len__(self):
        return self.document_of.numel()


@dataclass
class Suffixes:
    """B questions with their targets, packed into one sequence of N tokens: no padding, no token after the last target."""

    input_ids: torch.Tensor  # (N,)
    question_of: torch.Tensor  # (N,) long: b for a token of question b
    positions: torch.Tensor  # (N,) long: each question continues right behind the documents
    packing: Packing  # of the N tokens into B questions
    predicts: torch.Tensor  # (R,) long: the rows whose next token is a target token
    targets: torch.Tensor  # (R,) long: those target tokens


def check_llm(llm, length):
    """Raise BadInput, naming the architecture, unless eqs (3)-(5) are exact on `llm` for `length` tokens."""
    if reason := obstacle(llm, length):
        raise BadInput(reason)


# ------------------------------------------------------------------------------------------ reading the documents


@torch.no_grad()
def prefill(llm, input_ids, document_of):
    """Read the documents once; their rows never see the weights, so no graph is needed (exact, by causality).

    input_ids: (1, L) long; document_of: (L,) long, k for tokens of document k, -1 elsewhere; documents are 0..K-1,
    each with at least one token. Raises BadInput if the LLM is not supported or its context too short.
    """
    assert input_ids.shape == (1, document_of.numel()), "input_ids must be (1, L) and document_of (L,)"
    check_llm(llm, document_of.numel())
    where = document_of.cpu()  # a GPU would be waited for once for each document
    K = int(where.max()) + 1
    positions = [(where == k).nonzero().flatten() for k in range(K)]
    assert K > 0 and all(len(p) for p in positions), "every document needs at least one token"
    token_at = torch.nn.utils.rnn.pad_sequence(positions, batch_first=True)
    lengths = torch.tensor([len(p) for p in positions], device=where.device)
    present = torch.arange(token_at.shape[1], device=where.device) < lengths[:, None]
    reading = KeepTexts(Packing(torch.tensor([document_of.numel()], device=input_ids.device)))  # all documents are one text
    forward(llm, reading, input_ids[0], reading.packing.positions)
    return Prefix(document_of, token_at.to(document_of.device), present.to(document_of.device), reading.keys, reading.values)


def pack(input_ids, target_mask, start=0):
    """(B, T) right-padded questions with targets, behind `start` tokens -> Suffixes. What follows a question's last target is padding."""
    assert input_ids.shape == target_mask.shape, "input_ids and target_mask must both be (B, T)"
    assert target_mask[:, 1:].any(1).all() and not target_mask[:, 0].any(), "every question needs targets, after at least one token"
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = torch.where(target_mask, column, -1).amax(1, keepdim=True)  # (B, 1): the last target is never an input
    inputs = column < last  # (B, T): the tokens that are read
    packing = Packing(last[:, 0])
    return Suffixes(input_ids[inputs], inputs.nonzero()[:, 0], start + packing.positions, packing,
                    target_mask.roll(-1, dims=1)[inputs].nonzero().flatten(), input_ids[target_mask])


# ------------------------------------------------------------------------------- which heads look at the document


class ScoreHeads(Reading):
    """Untouched attention that notes, per layer and head, the mass on each question's source document."""

    def __init__(self, prefix, suffixes, source, rows):
        self.prefix, self.suffixes, self.rows = prefix, suffixes, suffixes.predicts
        if rows == "question":  # all before the first that predicts a target
            other = torch.ones_like(suffixes.question_of, dtype=torch.bool).index_fill(0, suffixes.predicts, False)
            self.rows = other.nonzero().flatten()
        question = suffixes.question_of[self.rows]  # (R,): of the rows that are scored
        self.on_source = prefix.document_of[None, :] == source[question][:, None]  # (R, L)
        rows_of = torch.bincount(question)
        self.per_row = 1.0 / (rows_of[question] * len(source))  # (R,): mean over an example's rows, then over examples
        self.scores = []

    def __call__(self, layer, query, key, value, scaling):
        query = wide(query[0]) * scaling
        keys, values = self.prefix.keys[layer], self.prefix.values[layer]
        own = read_own(query, key[0], value[0], self.suffixes.packing)
        output, lse = read_both(read_prefix(query, keys, values), own)  # as the LLM does it; lse: (H, N, 1), over all that a row sees
        rows = query[:, self.rows].view(len(keys), -1, keys.shape[-1])  # (H_kv, H / H_kv R, d): heads that share keys, stacked
        logits = (rows @ wide(keys).transpose(1, 2)).view(len(query), -1, len(self.prefix))  # (H, R, L)
        mass = ((logits - lse[:, self.rows]).exp() * self.on_source).sum(-1)  # (H, R)
        self.scores.append(mass @ self.per_row.to(mass))  # eq (6)
        return output[None].to(value)


@torch.no_grad()
def score_heads(llm, prefix, input_ids, target_mask, source, rows="target"):
    """Eq (6): (layers, heads) float32, the mean attention mass on the source document from rows that predict the target.

    rows: "question" scores from all other rows instead, those of the question's text (as QRHead does, Zhang et al. 2025);
    input_ids, target_mask: (B, T), right-padded; source: (B,) long, the index of each question's source document.
    Raises BadInput if the LLM's context is too short.
    """
    assert rows in ("target", "question"), f"rows is 'target' or 'question', not {rows!r}"
    suffixes = pack(input_ids, target_mask, len(prefix))
    check_llm(llm, int(suffixes.positions.max()) + 1)
    reading = ScoreHeads(prefix, suffixes, source, rows)
    forward(llm, reading, suffixes.input_ids, suffixes.positions, logits_to_keep=1)
    return torch.stack(reading.scores)


def select_heads(scores, n=16, choice="query", seed=0):
    """(layers, heads) scores -> [(layer, head)]: the n best ("query"), n at random ("random") or "all".

    >>> select_heads(torch.tensor([[.1, .9], [.8, .2]]), n=2)
    [(0, 1), (1, 0)]
    """
    assert choice in ("query", "random", "all"), f"choice is 'query', 'random' or 'all', not {choice!r}"
    heads = [(layer, head) for layer in range(scores.shape[0]) for head in range(scores.shape[1])]
    if choice == "random":
        return random.Random(seed).sample(heads, n)
    ranked = sorted(heads, key=lambda at: -scores[at].item())
    return ranked if choice == "all" else ranked[:n]


# ----------------------------------------------------------------------------------------- injecting the weights


def read_documents(logits, values, prefix, weights):
    """What heads bring back when `weights` say which document counts: eqs (3) and (4).

    logits: (n, N, L) of n heads at N rows over the prefix, float32; values: (n, L, d); weights: (N, K) -> (n, N, d).
    """
    inside = logits[:, :, prefix.token_at].masked_fill(~prefix.present, -torch.inf).softmax(-1)  # (n, N, K, M)  # eq (3)
    attention = inside * weights[:, :, None]  # eq (4): each document's attention sums to its weight
    return attention.flatten(2).to(values) @ values[:, prefix.token_at.flatten()]  # absent tokens have no attention


class Inject(Reading):
    """Untouched attention in most heads; in the chosen ones the document weights decide, eqs (3) and (4)."""

    def __init__(self, prefix, suffixes, weights, heads, budget):
        self.prefix, self.suffixes, self.budget = prefix, suffixes, budget
        self.weights = None if heads is None else wide(weights)[suffixes.question_of]  # (B, K) -> (N, K)
        self.heads_of = {}  # layer -> its injected heads
        for layer, head in heads or []:
            self.heads_of.setdefault(layer, []).append(head)

    def __call__(self, layer, query, key, value, scaling):
        query, keys, values = wide(query[0]) * scaling, self.prefix.keys[layer], self.prefix.values[layer]
        own = read_own(query, key[0], value[0], self.suffixes.packing)
        output, _ = read_both(read_prefix(query, keys, values), own)
        if layer in self.heads_of:
            heads = torch.tensor(self.heads_of[layer], device=query.device)
            shared = heads * len(keys) // len(query)  # (n,): head h uses key-value head h H_kv // H
            injected = self.inject(query[heads], wide(keys[shared]), wide(values[shared]), *(x[heads] for x in own))
            output = output.index_copy(0, heads, injected)
        return output[None].to(value)

    def inject(self, query, keys, values, own, own_lse):
        """query, own: (n, N, d); keys, values: (n, L, d); own_lse: (n, N, 1) -> (n, N, d).

        own: what a softmax over the question's own past reads; own_lse: the log of its denominator."""
        logits = query @ keys.transpose(1, 2)  # (n, N, L)
        documents = read_documents(logits, values, self.prefix, self.weights)
        if self.budget == "documents":
            return documents
        lse = torch.logaddexp(logits.logsumexp(-1, keepdim=True), own_lse)
        p = (logits - lse).exp()  # (n, N, L): the head's own attention to the documents' prompt
        outside = p.masked_fill(self.prefix.document_of >= 0, 0)
        mass = (p - outside).sum(-1, keepdim=True)  # (n, N, 1): m(t)
        return outside @ values + (own_lse - lse).exp() * own + mass * documents  # eq (4), budget="keep"


def target_nll(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    """Eqs (3)-(5): (B,) float32 (or the LLM's own float64), each question's mean loss on its target tokens, differentiable in `weights`.

    input_ids, target_mask: (B, T), right-padded, mask True on target tokens; weights: (B, K), rows sum to 1;
    heads: [(layer, head)], None for the untouched LLM; budget: "documents" or "keep". Raises BadInput if the LLM's context is too short.
    """
    assert budget in ("documents", "keep"), f"budget is 'documents' or 'keep', not {budget!r}"
    assert heads is None or weights.shape == (input_ids.shape[0], prefix.token_at.shape[0]), "weights must be (B, K)"
    suffixes = pack(input_ids, target_mask, len(prefix))
    check_llm(llm, int(suffixes.positions.max()) + 1)
    reading = Inject(prefix, suffixes, weights, heads, budget)
    logits = forward(llm, reading, suffixes.input_ids, suffixes.positions,
                     logits_to_keep=suffixes.predicts).logits[0]  # (R, vocabulary)
    nll = F.cross_entropy(wide(logits), suffixes.targets, reduction="none")
    question = suffixes.question_of[suffixes.predicts]
    total = nll.new_zeros(len(input_ids)).index_add(0, question, nll)
    return total / target_mask.sum(1)  # eq (5)
