"""Four objectives on the same pools: each against its definition, written out with full-sequence passes of the LLM."""
import math

import pytest
import torch

import likelihoods
import objectives
from attention import forward
from data import Example, Pool, sources
from test_train import tiny_run


def log_likelihood(run, document, example):
    """log p(target | document, query), by one plain forward pass over the whole prompt, token by token."""
    context, _ = run.prompts.context([run.corpus[document]])
    suffix, target_mask = run.prompts.suffixes([example])
    row, first = torch.cat([context[0], suffix[0]]), context.shape[1]
    with run.judge() as llm, torch.no_grad():
        logits = llm(row[None]).logits[0].double().log_softmax(-1)
    return sum(logits[first + t - 1, row[first + t]].item() for t in range(len(suffix[0])) if target_mask[0, t])


@pytest.fixture
def pooled(tiny_folder, collection_folder):
    run = tiny_run(tiny_folder, collection_folder, "--temperature", "0.5")
    run.examples[1].target, run.examples[2].target = "a rather long answer", "no"  # targets of unequal length
    pool = next(run.pools(3))
    expected = [[log_likelihood(run, d, e) for d in pool.documents] for e in pool.examples]
    return run, pool, torch.randn(len(pool.examples), len(pool.documents), generator=torch.Generator().manual_seed(1)), expected


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def test_a_long_question_is_counted_as_what_all_are_padded_to(pooled, monkeypatch):
    """Four questions of one token and one of 40, behind two documents: attention to the own past is (H, 5, 40, 40) for each document."""
    run, seen = pooled[0], []
    input_ids, target_mask = torch.ones(5, 41, dtype=torch.long), torch.zeros(5, 41, dtype=torch.bool)
    target_mask[:4, 1] = target_mask[4, 40] = True
    monkeypatch.setattr(likelihoods, "forward", lambda *given, **more: seen.append(given) or forward(*given, **more))
    with run.judge() as llm:
        square = llm.config.num_attention_heads * 5 * 40**2
        assert square > 5 * llm.config.vocab_size  # the logits at the end are fewer
        for room in (2 * square, 2 * square - 1):
            monkeypatch.setattr(likelihoods, "LOGITS", room)
            likelihoods.log_likelihoods(llm, [[1, 2], [1, 2, 3]], input_ids, target_mask)
    assert len(seen) == 2 + 3  # both documents at once, then one after the other


@pytest.mark.parametrize("tokens, logits, passes", [(4096, 2**28, 2), (1, 2**28, 5), (4096, 1, 5)])  # all documents together, or one after the other
def test_likelihoods_are_of_whole_targets_after_one_document_each(pooled, monkeypatch, tokens, logits, passes):
    monkeypatch.setitem(likelihoods.AT_ONCE, "cpu", tokens)
    monkeypatch.setattr(likelihoods, "LOGITS", logits)
    monkeypatch.setattr(likelihoods, "forward", lambda *given, **more: seen.append(given) or forward(*given, **more))
    (run, pool, _, expected), seen = pooled, []
    with run.judge() as llm:
        found = objectives.document_likelihoods(run, llm, pool)
    assert len(seen) == passes
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-4)
    assert not found.requires_grad


def test_replug_is_the_divergence_of_the_retriever_from_the_llm(pooled, monkeypatch):
    monkeypatch.setattr(objectives, "BETA", 3)
    run, pool, scores, expected = pooled
    losses = []
    for row, likelihoods in zip(scores.tolist(), expected):
        p, q = softmax([s / 0.5 for s in row]), softmax([x / 3 for x in likelihoods])
        losses.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q)))
    with run.judge() as llm:
        loss = objectives.replug_loss(run, llm, pool, scores).item()
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_emdr_is_the_marginal_likelihood(pooled):
    run, pool, scores, expected = pooled
    losses = []
    for row, likelihoods in zip(scores.tolist(), expected):
        best = max(likelihoods)  # e to such powers is 0: the largest is taken out of the sum
        p = softmax([s / 0.5 for s in row])
        losses.append(-best - math.log(sum(a * math.exp(x - best) for a, x in zip(p, likelihoods))))
    with run.judge() as llm:
        loss = objectives.emdr_loss(run, llm, pool, scores).item()
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("name", ["replug", "emdr"])
def test_the_gradient_asks_for_the_document_that_makes_the_target_likely(pooled, name):
    """At equal scores each step down the loss moves the most likely document up and the least likely one down."""
    run, pool, scores, expected = pooled
    scores = torch.zeros_like(scores, requires_grad=True)
    with run.judge() as llm:
        objectives.OBJECTIVES[name](run, llm, pool, scores).backward()
    for gradient, likelihoods in zip(scores.grad, torch.tensor(expected)):
        assert gradient[likelihoods.argmax()] < 0 < gradient[likelihoods.argmin()]


def test_infonce_is_cross_entropy_on_the_source_document(pooled):
    run, pool, scores, _ = pooled
    expected = [-math.log(softmax([s / 0.5 for s in row])[pool.documents.index(e.document)]) for row, e in zip(scores.tolist(), pool.examples)]
    assert objectives.infonce_loss(run, None, pool, scores).item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.parametrize("how", ["copy", "answers the same question"])
def test_infonce_does_not_push_away_what_answers_too(pooled, how):
    """A pool with a document twice, once under another id, or with two documents that rows name for one question: for that
    question it is as if the second were not there."""
    run = pooled[0]
    first, other = (next(e for e in run.examples if e.document == d) for d in ("d1", "d0"))
    run.corpus["copy"] = run.corpus["d1"] if how == "copy" else "Another text."
    if how != "copy":
        run.sources_of = sources(run.corpus, [*run.examples, Example(first.query, "another target", "copy"), first])
    scores = torch.tensor([[.1, .2, .3, .4], [.4, .1, .2, .3]])
    loss = objectives.infonce_loss(run, None, Pool(["d0", "d1", "d2", "copy"], [first, other]), scores).item()
    logits = scores.double() / 0.5
    expected = -(logits[0, :3].log_softmax(0)[1] + logits[1].log_softmax(0)[0]) / 2
    assert loss == pytest.approx(expected.item(), rel=1e-4)
