"""The checkers: each takes a function and asserts one property after the other; a message names the property that is broken.

`check_NAME(function)` runs on a student's file (test_ladder.py), on the reference itself and on wrong answers (tests/). What
is compared with is worked by hand, or by a slow loop, or by transformers itself.
"""
import math
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from given import VOCABULARY, count_rows, read_prefix, tiny_llm
from inject import Inject, prefill, read_documents, target_nll


def same(found, expected, broken, atol=1e-4):
    """Assert that two tensors are equal up to rounding; `broken` says what is wrong where they are not."""
    assert isinstance(found, torch.Tensor), f"a tensor is expected, not {type(found).__name__}"
    assert found.shape == expected.shape, f"the shape: {tuple(found.shape)} came back, {tuple(expected.shape)} is expected"
    if not torch.allclose(found.detach().to(expected.dtype), expected, atol=atol, rtol=1e-4):
        found, expected = ([round(x, 4) for x in t.flatten()[:6].tolist()] for t in (found, expected))
        raise AssertionError(f"{broken}\n  found    {found}\n  expected {expected}")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, seed=0):
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- 1, 2: embeddings


def check_pooling(pool):
    hidden, lengths = torch.tensor([[[2.0], [99.0], [99.0]], [[5.0], [6.0], [7.0]]]), torch.tensor([1, 3])
    found = pool(hidden, lengths)
    assert found.shape == (2, 1), f"the shape: one vector for each text is (N, D) = (2, 1), not {tuple(found.shape)}"
    assert 99.0 not in found, "padding was pooled: a text's last token stands at lengths - 1, not in the batch's last column"
    same(found, torch.tensor([[2.0], [7.0]]), "not the last token: of a text of n tokens it is hidden[n - 1]")
    hidden, lengths = random(5, 4, 3), torch.tensor([4, 2, 3, 1, 2])
    same(pool(hidden, lengths), torch.stack([row[n - 1] for row, n in zip(hidden, lengths.tolist())]),
         "the vectors are not those of the last tokens")
    assert pool(hidden.bfloat16(), lengths).dtype == torch.float32, \
        "not float32: embeddings are compared in float32, whatever the model's own type is"


def check_weights(document_weights):
    scores = torch.tensor([[0.0, 0.02 * math.log(3)]])
    found = document_weights(scores, 0.02)
    assert not torch.allclose(found.sum(0), torch.ones(2)), \
        "the weights sum to 1 over questions: each row is a softmax over its documents (dim -1)"
    assert torch.allclose(found.sum(-1), torch.ones(1)), f"the weights of a question do not sum to 1: {found.tolist()}"
    same(found, torch.tensor([[0.25, 0.75]]), "the temperature: scores are divided by tau before the softmax")
    scores = random(3, 4)
    expected = [[math.exp(s / 0.5) for s in row] for row in scores.tolist()]
    same(document_weights(scores, 0.5), torch.tensor([[e / sum(row) for e in row] for row in expected]),
         "not a softmax of scores / tau over each question's documents")
    found = document_weights(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]), 0.005)
    assert found.isfinite().all(), "overflow: exp(1 / 0.005) is no float32; subtract each row's largest score first"
    document_weights(scores.requires_grad_(), 0.5)[0, 0].backward()
    assert scores.grad is not None and scores.grad[0].abs().min() > 0, "no gradient reaches the scores: the retriever could not learn"


# -------------------------------------------------------------------------------------------- 3, 4: what heads read


def slow_reading(logits, values, document_of, weights):
    """Eqs (3) and (4) with a loop over heads, rows, documents and tokens."""
    output = torch.zeros(*logits.shape[:2], values.shape[-1])
    for h, t in ((h, t) for h in range(logits.shape[0]) for t in range(logits.shape[1])):
        for k in range(weights.shape[1]):
            inside = [j for j, document in enumerate(document_of) if document == k]
            total = sum(math.exp(logits[h, t, j]) for j in inside)
            for j in inside:
                output[h, t] += weights[t, k] * math.exp(logits[h, t, j]) / total * values[h, j]
    return output


def check_reading(read_documents):
    prefix = read_prefix(tiny_llm(), [-1, 0, 0, 1])
    logits, values = torch.tensor([[[9.0, 0.0, math.log(3), 2.0]]]), torch.tensor([[[50.0], [4.0], [8.0], [100.0]]])
    first, half = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    elsewhere = values.clone()
    elsewhere[0, 0] = 1000
    same(read_documents(logits, elsewhere, prefix, half), read_documents(logits, values, prefix, half),
         "a token outside all documents was read (document_of is -1 there)")
    louder = logits + torch.tensor([0.0, 0, 0, 5])
    same(read_documents(louder, values, prefix, half), read_documents(logits, values, prefix, half),
         "one softmax over all documents: larger logits in document 1 took attention from document 0, eq (3)")
    same(read_documents(logits, values, prefix, first), torch.tensor([[[7.0]]]),
         "the reading of one document, eq (3): logits 0 and ln 3, values 4 and 8, weight 1")
    same(read_documents(logits, values, prefix, half), torch.tensor([[[53.5]]]),
         "the sum over documents, eq (4): readings 7 and 100, weights 1/2 and 1/2")
    document_of = [-1, 0, 0, 0, 1, -1, 2, 2, 2, 2, -1]
    prefix, weights = read_prefix(tiny_llm(), document_of), random(3, 3, seed=2).softmax(-1)
    logits, values = 2 * random(2, 3, 11), random(2, 11, 5, seed=1)
    expected = slow_reading(logits, values, document_of, weights)
    same(read_documents(logits, values, prefix, weights[[0, 0, 0]])[:, :1], expected[:, :1],
         "eqs (3) and (4) with two heads and documents of unequal length")
    same(read_documents(logits, values, prefix, weights), expected, "each row has weights of its own: row t is weighed by weights[t]")
    read_documents(logits, values, prefix, weights.requires_grad_()).sum().backward()
    assert weights.grad is not None and weights.grad.abs().min() > 0, "no gradient reaches the weights"


def check_injection(inject):
    def run(budget, query, keys, values, own, own_lse, document_of, weights):
        reading = SimpleNamespace(prefix=read_prefix(tiny_llm(), document_of), weights=weights, budget=budget)
        return inject(reading, query, keys, values, own, own_lse)

    zero, weights = (torch.zeros(1, 1, 1), torch.ones(1, 3, 1)), torch.tensor([[0.75, 0.25]])
    values, own, lse = torch.tensor([[[4.0], [8.0], [16.0]]]), torch.tensor([[[20.0]]]), torch.zeros(1, 1, 1)
    found = run("documents", *zero, values, own, lse, [-1, 0, 1], weights)
    same(found, torch.tensor([[[10.0]]]), 'budget "documents": the head reads documents alone, 3/4 * 8 + 1/4 * 16')
    found = run("keep", *zero, torch.ones_like(values), torch.ones_like(own), lse, [-1, 0, 1], weights)
    same(found, torch.tensor([[[1.0]]]), 'budget "keep": the attention of a row does not add up to 1 (with all values 1 the output is 1)')
    found = run("keep", *zero, values, own, lse, [-1, 0, 1], weights)
    same(found, torch.tensor([[[11.0]]]), 'budget "keep": outside documents the head keeps its own attention: 4/4 + 20/4 + 2/4 * 10')
    # one document of weight 1: a plain softmax over the prompt and a past of three tokens, written out
    query, keys, values, past = random(2, 3, 4), random(2, 5, 4, seed=1), random(2, 5, 4, seed=2), random(2, 3, 3, seed=3)
    past_values, logits = random(2, 3, 4, seed=4), query @ keys.transpose(1, 2)
    expected = torch.cat([logits, past], -1).softmax(-1) @ torch.cat([values, past_values], 1)
    own, lse = past.softmax(-1) @ past_values, past.logsumexp(-1, keepdim=True)
    found = run("keep", query, keys, values, own, lse, [-1, 0, 0, 0, -1], torch.ones(3, 1))
    same(found, expected,
         'budget "keep": with one document of weight 1 the head must be as it was, a softmax over the prompt and its own past')
    found = run("keep", 100 * query, keys, values, own, 100 * lse, [-1, 0, 0, 0, -1], torch.ones(3, 1))
    assert found.isfinite().all(), "overflow: take the exponential of differences (logits - log Z), never of logits"
    query, weights = query.requires_grad_(), random(3, 2, seed=5).softmax(-1).requires_grad_()
    try:
        (run("keep", query, keys, values, own, lse, [-1, 0, 0, 1, -1], weights) * random(2, 3, 4, seed=6)).sum().backward()
    except RuntimeError as error:
        raise AssertionError(f"no gradient: going back through these lines ends with\n  {error}") from None
    for name, tensor in (("weights", weights), ("query", query)):
        assert tensor.grad is not None and tensor.grad.abs().min() > 0, f"no gradient reaches the {name}: the retriever could not learn"
    llm, document_of = tiny_llm(), torch.tensor([-1, 0, 0, 0, -1])
    documents, question = prefill(llm, tokens(1, 5), document_of), tokens(2, 4, seed=1)
    mask = torch.tensor([[False, False, True, True]] * 2)
    with patch.object(Inject, "inject", inject):
        found = target_nll(llm, documents, question, mask, torch.ones(2, 1), [(1, 2)], "keep")
    same(found, target_nll(llm, documents, question, mask),
         "in one head of a whole LLM, a single document and budget \"keep\" change its loss")


# ----------------------------------------------------------------------------------------- 5, 6: the frozen LLM itself


def full_sequence(llm, documents, question):
    """The documents' prompt and one question in one plain pass by transformers: attention (layers, heads, S, S), logits (S, V)."""
    llm.set_attn_implementation("eager")
    output = llm(input_ids=torch.cat([documents[0], question])[None], output_attentions=True, use_cache=False)
    return torch.stack(output.attentions)[:, 0], output.logits[0]


def check_heads(score_heads):
    llm, L = tiny_llm(zero=True), 8
    prefix = read_prefix(llm, [-1, 0, 0, 0, 0, 1, 1, 1])
    question = tokens(2, 5)
    mask = torch.tensor([[False, False, True, False, False], [False, False, True, True, True]])
    found = score_heads(llm, prefix, question[:1, :3], mask[:1, :3], torch.tensor([0]))
    assert found.shape == (2, 4), f"the shape: one score for each head is (layers, heads) = (2, 4), not {tuple(found.shape)}"
    even = torch.ones(2, 4)
    assert not torch.allclose(found, 4 / 11 * even), "the wrong row: the token at place t is predicted by row t - 1, not by its own row"
    assert not torch.allclose(found, 7 / 10 * even), "the mass on all documents: only tokens of the source document count"
    same(found, 4 / 10 * even, "even attention over 10 tokens, 4 of them the source's")
    found, rows = score_heads(llm, prefix, question, mask, torch.tensor([0, 1])), [3 / (L + n) for n in (2, 3, 4)]
    assert not torch.allclose(found, (4 / 10 + sum(rows)) / 4 * even), \
        "the mean over all rows together: a question with many target tokens counts more; first the mean of each question"
    same(found, (4 / 10 + sum(rows) / 3) / 2 * even, "the mean over a question's rows, then over questions")
    llm, document_of = tiny_llm(), torch.tensor([-1, 0, 0, 0, 1, 1, -1])
    documents, source, expected = tokens(1, 7, seed=1), torch.tensor([1, 0]), 0
    for row, targets, k in zip(question, mask, source):
        attention = full_sequence(llm, documents, row)[0][:, :, 7 + targets.nonzero().flatten() - 1, :7]
        expected = expected + attention[..., document_of == k].sum(-1).mean(-1) / 2
    same(score_heads(llm, prefill(llm, documents, document_of), question, mask, source), expected,
         "the attention of an LLM with random weights: layers, heads or questions are mixed up")


def check_loss(target_nll):
    llm, prefix_of = tiny_llm(zero=True), [-1, 0, 0, 1]
    question, mask = tokens(2, 5), torch.tensor([[False, False, True, True, False], [False, False, True, True, True]])
    found = target_nll(llm, read_prefix(llm, prefix_of), question, mask)
    assert found.shape == (2,), f"the shape: one loss for each question is (B,) = (2,), not {tuple(found.shape)}"
    same(found, torch.full((2,), math.log(VOCABULARY)),
         "not the mean over target tokens: a model of zeros loses ln 257 = 5.549 on each, however many there are")
    llm, documents = tiny_llm(), tokens(1, 4, seed=1)
    found = target_nll(llm, prefill(llm, documents, torch.tensor(prefix_of)), question, mask)
    expected, own_row, everything = [], [], []
    for row, targets in zip(question, mask):
        log_p, at = full_sequence(llm, documents, row)[1].log_softmax(-1), targets.nonzero().flatten()
        expected.append(-log_p[4 + at - 1, row[at]].mean())
        own_row.append(-log_p[4 + at, row[at]].mean())
        everything.append(-log_p[4:-1].gather(1, row[1:, None]).mean())
    expected, own_row, everything = map(torch.stack, (expected, own_row, everything))
    assert not torch.allclose(found, own_row, atol=1e-3), \
        "the wrong row: the token at place t is predicted by row t - 1, not by its own row"
    assert not torch.isclose(found, everything, atol=1e-3).any(), "all tokens count: the question's own tokens and padding are no targets"
    same(found, expected, "the loss of each question on its target tokens, as transformers computes it")
    padded, longer = (F.pad(x, (0, 3)) for x in (question, mask))
    same(target_nll(llm, prefill(llm, documents, torch.tensor(prefix_of)), padded, longer), expected,
         "padding on the right changes the loss")


# --------------------------------------------------------------------------------------------- 7, 8: finding documents


def check_ndcg(compute_metrics):
    def ndcg(run, qrels, k=10):
        found = compute_metrics(run, qrels, ks=(k,))
        assert f"ndcg@{k}" in found, f'a dict with "ndcg@{k}" is expected for ks=({k},), not {found!r}'
        return torch.tensor(float(found[f"ndcg@{k}"]))

    run, one = {"q": {"river": 0.9, "bridge": 0.8, "delta": 0.7}}, torch.tensor(1.0)
    same(ndcg(run, {"q": {"river": 1, "delta": 1}}), torch.tensor(1.5 / (1 + 1 / math.log2(3))),
         "relevant documents at ranks 1 and 3 count 1 / log2(rank + 1), ranks from 1")
    found, graded = ndcg(run, {"q": {"river": 1, "bridge": 3}}), (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    same(found, torch.tensor(graded), "the gain is linear, the relevance itself: not 2^relevance - 1, and not 1 for whatever is relevant")
    found = ndcg(run, {"q": {"river": 1, "ocean": 1}})
    same(found, torch.tensor(1 / (1 + 1 / math.log2(3))),
         "the best possible order is over all judged documents: a relevant one that was not found belongs to it")
    same(ndcg(run, {"q": {"delta": 1}}, k=2), 0 * one, "the cut-off: what stands below rank k does not count")
    same(ndcg(run, {"q": {"river": 1, "bridge": 1, "delta": 1}}, k=2), one, "the cut-off: the best possible order has k documents too")
    same(ndcg({"q": {"a": 0.5, "b": 0.5}}, {"q": {"b": 1}}), one, "ties: of equal scores the greater document id comes first")
    same(ndcg(run, {"q": {"river": 1}, "missing": {"river": 1}}), one / 2,
         "a query that the run lacks counts 0; the mean is over the queries of qrels")
    same(ndcg(run, {"q": {"river": 1}, "none": {"river": 0}}), one / 2, "a query without a relevant document counts 0")
    same(ndcg(run, {"q": {"river": -1, "bridge": 1}}), torch.tensor(1 / math.log2(3)), "a negative judgment is not relevant: its gain is 0")
    assert {"ndcg@1", "ndcg@3"} <= set(compute_metrics(run, {"q": {"river": 1}}, ks=(1, 3))), "one entry for each k of ks"


class Largest(TorchFunctionMode):
    """Notes how many elements the largest result of any torch function has."""

    most = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.most = max([self.most, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result


def check_search(search):
    documents = torch.tensor([[0.1], [0.9], [0.3], [0.5]])
    scores, indices = search(torch.ones(1, 1), documents, k=2, chunk=3)
    same(indices, torch.tensor([[1, 3]]), "the indices: a document's place in the corpus, not in its chunk; best first")
    same(scores, torch.tensor([[0.9, 0.5]]), "the scores: inner products, best first")
    assert indices.dtype == torch.long and scores.dtype == torch.float32, \
        f"the types: float32 and long, not {scores.dtype} and {indices.dtype}"
    same(search(torch.ones(1, 1), documents, k=9)[1], torch.tensor([[1, 3, 2, 0]]), "fewer than k documents: all of them, (N, min(k, M))")
    equal = torch.tensor([[1.0], [2.0], [1.0], [2.0], [1.0], [2.0]])
    same(search(torch.ones(1, 1), equal, k=4, chunk=2)[1], torch.tensor([[1, 3, 5, 0]]), "ties: equal scores keep corpus order")
    queries, documents = random(16, 4), random(1003, 4, seed=1)
    expected = (queries @ documents.T).sort(dim=1, descending=True, stable=True)
    with Largest() as largest:
        found = search(queries, documents, k=7, chunk=64)
    same(found[1], expected.indices[:, :7], "the best 7 of 1,003 documents in chunks of 64")
    same(found[0], expected.values[:, :7], "the scores of the best 7 of 1,003 documents")
    assert largest.most < 16 * 1003 // 2, \
        f"the full score matrix was held: a tensor had {largest.most} elements, with 16 queries, 1,003 documents and chunks of 64"
    half = search(queries, documents[:500], k=7, chunk=64)
    found = search(queries, documents[500:], k=7, chunk=64, found=half, offset=500)
    assert (found[1] < 500).any() or not (half[1][:, 0] == expected.indices[:, 0]).any(), \
        "found was forgotten: an earlier result has to be merged"
    same(found[1], expected.indices[:, :7], "offset: it is added to the indices of these documents, not to those of `found`")
    queries, documents = queries.bfloat16(), documents.bfloat16()
    expected = (queries.float() @ documents.float().T).sort(dim=1, descending=True).values[:, :7]
    same(search(queries, documents, k=7)[0], expected, "half precision: the scores of bfloat16 embeddings are computed in float32")


# ------------------------------------------------------------------------------------------- 9, 10: what makes it cheap


def check_lora(LoRALinear):
    base = nn.Linear(3, 2).requires_grad_(False)
    weight, x = base.weight.clone(), random(4, 5, 3)
    layer = LoRALinear(base, rank=2, alpha=8)
    assert layer.lora_A.shape == (2, 3) and layer.lora_B.shape == (2, 2), \
        f"the shapes: A (r, in) = (2, 3), B (out, r) = (2, 2), not {tuple(layer.lora_A.shape)}, {tuple(layer.lora_B.shape)}"
    layer.lora_A.data = random(2, 3, seed=1)
    same(layer(x), base(x), "at first the layer is changed: B must start at zero")
    layer.lora_B.data = random(2, 2, seed=2)
    update = x @ layer.lora_A.T @ layer.lora_B.T
    assert not torch.allclose(layer(x), base(x), atol=1e-3), "A and B have no influence: alpha / r times B A x is added"
    assert not torch.allclose(layer(x), base(x) + update, atol=1e-3), "the scaling is missing: the update counts alpha / r times, here 4"
    same(layer(x), base(x) + 4 * update, "y = W x + (alpha / r) B A x, with the base's own bias")
    layer(x).sum().backward()
    names = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert names == {"lora_A", "lora_B"}, f"A and B alone learn: a gradient reached {sorted(names) or 'nothing'}"
    assert torch.equal(base.weight, weight), "W was changed: it is frozen"
    layer.enabled = False
    same(layer(x), base(x), "enabled = False must be the frozen layer")


def check_prefix_sharing(prefill, target_nll):
    llm, documents = tiny_llm(), tokens(1, 12)
    question = tokens(3, 5, seed=1)
    mask = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    with count_rows(llm) as rows:
        prefix = prefill(llm, documents, torch.tensor([0] * 6 + [1] * 6))
        found = target_nll(llm, prefix, question, mask)
        again = target_nll(llm, prefix, question[:1], mask[:1])
    expected, alone = [], []
    for losses, before in ((expected, documents), (alone, documents[:, :0])):
        for row, targets in zip(question, mask):
            at = before.shape[1] + targets.nonzero().flatten()
            losses.append(F.cross_entropy(full_sequence(llm, before, row)[1][at - 1], row[targets]))
    expected, alone = torch.stack(expected), torch.stack(alone)
    assert found.shape == (3,), f"the shape: one loss for each question is (B,) = (3,), not {tuple(found.shape)}"
    assert not torch.allclose(found, alone, atol=1e-3), "the documents were not read: the questions stand alone"
    same(found[:1], expected[:1], "the numbers changed: the first question's loss is not that of documents and question in one sequence")
    same(found, expected, "a question sees another one: the numbers of later questions changed (a cache grows with what is read)")
    same(again, expected[:1], "the prefix was used up: a second call of target_nll with it gives other numbers")
    assert sum(rows) <= 12 + 3 * 5 + 5, \
        f"documents were read more than once: {sum(rows)} rows for 12 tokens of documents and 4 questions of 5, {12 + 4 * 5} are enough"


LADDER = {  # number -> the student's file, the names in it, the checker
    1: ("ex01_pooling", ("pool",), check_pooling), 2: ("ex02_weights", ("document_weights",), check_weights),
    3: ("ex03_reading", ("read_documents",), check_reading), 4: ("ex04_injection", ("inject",), check_injection),
    5: ("ex05_heads", ("score_heads",), check_heads), 6: ("ex06_loss", ("target_nll",), check_loss),
    7: ("ex07_ndcg", ("compute_metrics",), check_ndcg), 8: ("ex08_search", ("search",), check_search),
    9: ("ex09_lora", ("LoRALinear",), check_lora), 10: ("ex10_prefix_sharing", ("prefill", "target_nll"), check_prefix_sharing),
}
