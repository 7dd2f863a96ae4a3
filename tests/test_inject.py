"""The method against a naive forward pass: every question its own full sequence, loops over rows and documents."""
import copy
import math

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, BloomConfig, Gemma2Config, Gemma3TextConfig, MistralConfig, Phi3Config

from conftest import tiny_llm
from data import BadInput
from inject import prefill, score_heads, select_heads, target_nll

HEADS = [(0, 1), (1, 0), (1, 3), (2, 2)]


def pool(lengths, questions=3, dtype=torch.float32, seed=0):
    """Documents of unequal length between prompt tokens, questions of unequal length, right-padded; weights."""
    generator = torch.Generator().manual_seed(seed)
    document_of = torch.tensor([-1, -1] + [k for k, n in enumerate(lengths) for _ in range(n)] + [-1])
    input_ids = torch.randint(1, 257, (1, len(document_of)), generator=generator)
    T = 9
    questions_ids = torch.randint(1, 257, (questions, T), generator=generator)
    target_mask = torch.zeros(questions, T, dtype=torch.bool)
    for b in range(questions):
        start = 2 + b % 4
        target_mask[b, start : start + 1 + b % 3] = True
    weights = torch.rand(questions, len(lengths), generator=generator, dtype=dtype).softmax(-1)
    return input_ids, document_of, questions_ids, target_mask, weights


def naive_attention(module, query, key, value, attention_mask, scaling=None, naive=None, **kwargs):
    """Eager attention of one full sequence, row by row, head by head; `naive` = (L, document_of, w, heads, budget)."""
    L, document_of, w, heads, budget = naive
    _, H, S, d = query.shape
    rows = []
    for h in range(H):
        k, v = (x[0, h * x.shape[1] // H] for x in (key, value))
        for t in range(S):
            logits = (k[: t + 1] @ query[0, h, t]) * scaling
            p = logits.softmax(0)
            out = p @ v[: t + 1]
            if heads is not None and t >= L and (module.layer_idx, h) in heads:
                readings = []
                for document in range(int(document_of.max()) + 1):
                    inside = (document_of == document).nonzero().flatten()
                    readings.append(logits[inside].softmax(0) @ v[inside])  # eq (3)
                out = sum(w[i] * r for i, r in enumerate(readings))  # eq (4)
                if budget == "keep":
                    on_documents = torch.zeros(t + 1, dtype=torch.bool)
                    on_documents[:L] = document_of >= 0
                    out = p[~on_documents] @ v[: t + 1][~on_documents] + p[on_documents].sum() * out
            rows.append(out)
    return torch.stack(rows).view(1, H, S, d).transpose(1, 2), None


AttentionInterface.register("naive", naive_attention)


def naive_nll(llm, input_ids, document_of, questions, target_mask, weights, heads, budget="documents"):
    """Eq (5) with every question read behind its own copy of the documents; (B,)."""
    llm = copy.deepcopy(llm)
    llm.set_attn_implementation("naive")
    L, losses = input_ids.shape[1], []
    for b in range(len(questions)):
        end = int(target_mask[b].nonzero().max()) + 1
        row = torch.cat([input_ids[0], questions[b, :end]])[None]
        w = None if weights is None else weights[b]
        logits = llm(row, use_cache=False, naive=(L, document_of, w, heads, budget)).logits[0]
        at = L + target_mask[b].nonzero().flatten()
        losses.append(-logits[at - 1].log_softmax(-1).gather(1, row[0, at][:, None]).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("budget", ["documents", "keep"])
@pytest.mark.parametrize("lengths", [[5], [3, 7], [4, 1, 6, 2, 5]])
def test_prefix_sharing_equals_a_naive_full_sequence(kind, lengths, budget):
    llm = tiny_llm(kind)
    input_ids, document_of, questions, target_mask, weights = pool(lengths)
    ours, naive = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    prefix = prefill(llm, input_ids, document_of)
    loss = target_nll(llm, prefix, questions, target_mask, ours, HEADS, budget)
    expected = naive_nll(llm, input_ids, document_of, questions, target_mask, naive, HEADS, budget)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    scale = torch.tensor([1.0, -2.0, 0.5])  # a different pull on every question
    (loss @ scale).backward()
    (expected @ scale).backward()
    assert (ours.grad - naive.grad).abs().max() <= 1e-4 * naive.grad.abs().max()
    assert ours.grad.abs().min() > 0


def test_without_heads_it_is_the_untouched_llm(kind):
    llm = tiny_llm(kind)
    input_ids, document_of, questions, target_mask, _ = pool([4, 6])
    loss = target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask)
    llm.set_attn_implementation("sdpa")
    for b in range(len(questions)):
        row = torch.cat([input_ids[0], questions[b]])[None]
        labels = torch.where(target_mask[b], questions[b], -100)
        labels = torch.cat([torch.full_like(input_ids[0], -100), labels])[None]
        torch.testing.assert_close(loss[b], llm(row, labels=labels).loss, atol=1e-5, rtol=0)


def test_one_document_with_budget_keep_is_the_untouched_llm(kind):
    llm = tiny_llm(kind)
    input_ids, document_of, questions, target_mask, _ = pool([7])
    prefix = prefill(llm, input_ids, document_of)
    kept = target_nll(llm, prefix, questions, target_mask, torch.ones(3, 1), HEADS, "keep")
    torch.testing.assert_close(kept, target_nll(llm, prefix, questions, target_mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", ["documents", "keep"])
def test_gradients_of_equations_2_to_5_are_finite_differences(kind, budget):
    llm = tiny_llm(kind, torch.float64)
    for name, norm in [(n, m) for n, m in llm.named_modules() if n.endswith("norm")]:  # transformers' round to float32
        double = torch.nn.RMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon, dtype=torch.float64)
        setattr(llm.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], double.requires_grad_(False))
    input_ids, document_of, questions, target_mask, _ = pool([3, 5, 2])
    prefix = prefill(llm, input_ids, document_of)
    scores = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 10

    def loss(scores):
        return target_nll(llm, prefix, questions, target_mask, (scores / 0.3).softmax(-1), HEADS, budget).sum()

    assert torch.autograd.gradcheck(loss, scores.requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-5)


def test_a_document_without_weight_has_no_influence_through_the_heads():
    """With every head of the only layer injected, what a weightless document says can't be seen."""
    llm = tiny_llm(num_hidden_layers=1)
    heads = [(0, h) for h in range(4)]
    input_ids, document_of, questions, target_mask, _ = pool([4, 6, 3])
    rewritten = torch.where(document_of == 1, (input_ids + 7) % 257, input_ids)
    prefixes = [prefill(llm, ids, document_of) for ids in (input_ids, rewritten)]
    for weight in (0.0, 0.2):
        weights = torch.tensor([[0.3, weight, 0.7 - weight]] * 3)
        one, two = (target_nll(llm, prefix, questions, target_mask, weights, heads) for prefix in prefixes)
        assert torch.equal(one, two) == (weight == 0)


def test_permuting_documents_with_their_weights_changes_nothing():
    """Eq (4) is a sum over documents: the same keys and values, numbered otherwise, give the same output."""
    llm = tiny_llm()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6, 3])
    order = torch.tensor([2, 0, 1])  # document k is now called order[k]
    renamed = torch.where(document_of >= 0, order[document_of.clamp(min=0)], -1)
    moved = torch.empty_like(weights)
    moved[:, order] = weights
    one = target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights, HEADS)
    two = target_nll(llm, prefill(llm, input_ids, renamed), questions, target_mask, moved, HEADS)
    torch.testing.assert_close(one, two, atol=0, rtol=1e-6)


def test_padding_and_other_questions_are_never_seen():
    llm = tiny_llm()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6, 3])
    prefix = prefill(llm, input_ids, document_of)
    together = target_nll(llm, prefix, questions, target_mask, weights, HEADS)
    for b in range(3):
        end = int(target_mask[b].nonzero().max()) + 1
        alone = target_nll(llm, prefix, questions[b : b + 1, :end], target_mask[b : b + 1, :end], weights[b : b + 1], HEADS)
        torch.testing.assert_close(alone[0], together[b], atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["target", "question"])
def test_scores_of_heads_equal_the_attention_of_the_full_sequence(kind, which):
    llm = tiny_llm(kind)
    input_ids, document_of, questions, target_mask, _ = pool([4, 1, 6])
    source = torch.tensor([2, 0, 1])
    scores = score_heads(llm, prefill(llm, input_ids, document_of), questions, target_mask, source, which)
    llm.set_attn_implementation("eager")
    expected = torch.zeros(3, 4)
    for b in range(3):
        row = torch.cat([input_ids[0], questions[b]])[None]
        rows = len(document_of) + target_mask[b].nonzero().flatten() - 1
        if which == "question":
            rows = torch.arange(len(document_of), rows[0])
        columns = (document_of == source[b]).nonzero().flatten()
        for layer, p in enumerate(llm(row, output_attentions=True).attentions):
            expected[layer] += p[0][:, rows][:, :, columns].sum(-1).mean(1) / 3
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_select_heads():
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.3, 0.7]])
    assert select_heads(scores, 3) == [(0, 1), (1, 0), (1, 2)]
    assert sorted(select_heads(scores, 2, "all")) == [(layer, head) for layer in range(2) for head in range(3)]
    drawn = select_heads(scores, 4, "random", seed=5)
    assert len(set(drawn)) == 4 and drawn == select_heads(scores, 4, "random", seed=5)
    assert any(drawn != select_heads(scores, 4, "random", seed=s) for s in range(9))
    many = torch.arange(20.0).view(4, 5)
    assert select_heads(many) == [(layer, head) for layer in (3, 2, 1, 0) for head in (4, 3, 2, 1, 0)][:16]  # the paper's number
    assert select_heads(many, choice="random") == select_heads(many, 16, "random", seed=0)


def test_an_llm_that_is_not_frozen_keeps_no_graph_where_none_is_needed():
    llm = tiny_llm().requires_grad_()
    input_ids, document_of, questions, target_mask, _ = pool([4, 6])
    prefix = prefill(llm, input_ids, document_of)
    assert not any(t.requires_grad for t in prefix.keys + prefix.values)
    assert not score_heads(llm, prefix, questions, target_mask, torch.tensor([0, 1, 0])).requires_grad


def test_no_more_is_computed_than_is_needed():
    """Documents are read as far as the last layer's keys; vocabulary logits are made for rows that predict a target alone."""
    llm, ran, logits = tiny_llm(), [], []
    hooks = [llm.model.layers[-1].mlp.register_forward_hook(lambda *_: ran.append(True)),
             llm.lm_head.register_forward_hook(lambda module, args, out: logits.append(out.shape[1]))]
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    prefix = prefill(llm, input_ids, document_of)
    assert not ran and not logits
    score_heads(llm, prefix, questions, target_mask, torch.tensor([0, 1, 0]))
    target_nll(llm, prefix, questions, target_mask, weights, HEADS)
    assert logits == [1, int(target_mask.sum())]
    [hook.remove() for hook in hooks]


def test_tensors_are_made_where_the_inputs_are():
    """A default device without data stands for every other device: what is made there can't meet the inputs."""
    llm = tiny_llm()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    source, results = torch.tensor([0, 1, 0]), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            prefix = prefill(llm, input_ids, document_of)
            results.append([score_heads(llm, prefix, questions, target_mask, source),
                            target_nll(llm, prefix, questions, target_mask, weights, HEADS, "keep")])
    assert all(map(torch.equal, *results))


def test_the_graph_starts_at_the_first_injected_layer():
    """Documents carry no graph, and neither do the layers below the injection."""
    llm = tiny_llm()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    prefix = prefill(llm, input_ids, document_of)
    assert not any(t.requires_grad for t in prefix.keys + prefix.values)
    carries = []
    hooks = [layer.register_forward_hook(lambda m, args, out: carries.append(out.requires_grad)) for layer in llm.model.layers]
    target_nll(llm, prefix, questions, target_mask, weights.requires_grad_(), [(1, 2)])
    [hook.remove() for hook in hooks]
    assert carries == [False, True, True]


def test_padding_is_respected_where_nothing_is_injected():
    """The registered function alone is stock SDPA, masks included: the encoder runs through it."""
    llm = tiny_llm()
    ids = torch.randint(1, 257, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    outputs = []
    for name in ("dream", "eager"):
        llm.set_attn_implementation(name)
        outputs.append(llm(ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, vocab_size=257)


@pytest.mark.parametrize("config, reason", [
    (Gemma2Config(**SMALL), "gemma2: soft-capped"),
    (MistralConfig(**SMALL, sliding_window=8), "mistral: its sliding window of 8 tokens is shorter than the input of"),
    (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=257), "bloom: .* does not let its attention function"),
])
def test_other_architectures_are_refused_by_name(config, reason):
    input_ids, document_of, *_ = pool([9, 9])
    with pytest.raises(BadInput, match=reason):
        prefill(model_of(config), input_ids, document_of)


def test_attention_sinks_and_linear_attention_are_refused_by_name():
    from transformers import GptOssConfig, Qwen3NextConfig

    input_ids, document_of, *_ = pool([9, 9])
    sinks = model_of(GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1))
    with pytest.raises(BadInput, match="gpt_oss: attention sinks"):
        prefill(sinks, input_ids, document_of)
    linear = model_of(Qwen3NextConfig(**{**SMALL, "num_hidden_layers": 4}, num_experts=2, num_experts_per_tok=1,
                                      moe_intermediate_size=16, shared_expert_intermediate_size=16))
    with pytest.raises(BadInput, match="qwen3_next"):
        prefill(linear, input_ids, document_of)


def test_a_sliding_window_that_covers_the_input_changes_nothing():
    wide = tiny_llm("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1)
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    loss = target_nll(wide, prefill(wide, input_ids, document_of), questions, target_mask, weights, HEADS)
    expected = naive_nll(wide, input_ids, document_of, questions, target_mask, weights, HEADS)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    with pytest.raises(BadInput, match="sliding window of 64"):
        prefill(wide, input_ids.repeat(1, 8), document_of.repeat(8))


def test_a_layer_with_a_mask_of_its_own_is_refused():
    """An architecture that narrows the mask inside a layer (sparse attention) would otherwise be read densely."""
    llm = tiny_llm()
    layer, plain = llm.model.layers[1].self_attn, llm.model.layers[1].self_attn.forward
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    prefix = prefill(llm, input_ids, document_of)
    layer.forward = lambda *args, attention_mask=None, **kwargs: plain(*args, attention_mask=attention_mask + 0, **kwargs)
    with pytest.raises(BadInput, match="LlamaAttention masks its attention its own way"):
        target_nll(llm, prefix, questions, target_mask, weights, HEADS)


def test_half_precision_is_close_to_float32():
    wide, half = tiny_llm(), tiny_llm(dtype=torch.bfloat16)
    input_ids, document_of, questions, target_mask, weights = pool([4, 6, 3])
    one, two = (target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights, HEADS) for llm in (wide, half))
    assert two.dtype == torch.float32 and (one - two).abs().max() < 0.1 * one.abs().max()


def test_gemma3_within_its_window():
    llm = model_of(Gemma3TextConfig(**SMALL, initializer_range=0.3, sliding_window=64)).requires_grad_(False)
    input_ids, document_of, questions, target_mask, weights = pool([4, 1, 6])
    heads, grads = [(0, 1), (1, 3)], []
    for nll in (target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights.requires_grad_(), heads),
                naive_nll(llm, input_ids, document_of, questions, target_mask, weights, heads)):
        grads.append(torch.autograd.grad(nll.sum(), weights)[0])
    assert (grads[0] - grads[1]).abs().max() <= 1e-4 * grads[1].abs().max()


def test_longrope_within_its_original_length():
    """Behind it a pass encodes all its positions otherwise: documents, read before, and questions would not fit together."""
    how = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    llm = model_of(Phi3Config(**SMALL, initializer_range=0.3, pad_token_id=0, eos_token_id=1, max_position_embeddings=160,
                              original_max_position_embeddings=32, rope_parameters=how)).requires_grad_(False)
    input_ids, document_of, questions, target_mask, weights = pool([4, 1, 6])
    heads = [(0, 1), (1, 3)]
    ours = target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights, heads)
    torch.testing.assert_close(ours, naive_nll(llm, input_ids, document_of, questions, target_mask, weights, heads), atol=1e-5, rtol=0)
    input_ids, document_of, questions, target_mask, weights = pool([9, 9, 9])
    prefix = prefill(llm, input_ids, document_of)
    assert len(prefix) <= 32
    with pytest.raises(BadInput, match="phi3: the input has .* tokens, and its positions are encoded in two ways .* up to 32:"):
        target_nll(llm, prefix, questions, target_mask, weights, heads)


def test_a_context_that_is_too_long_is_refused():
    llm = tiny_llm(max_position_embeddings=16)
    input_ids, document_of, *_ = pool([9, 9])
    with pytest.raises(BadInput, match="the input has 21 tokens, the LLM's context holds 16"):
        prefill(llm, input_ids, document_of)


def test_the_context_must_hold_documents_and_the_longest_question():
    """The last target is never an input: 13 tokens of documents and the longest question's 6 are 19."""
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    assert document_of.numel() == 13 and target_mask.nonzero()[:, 1].max() == 6 > target_mask[0].nonzero().max()
    prefix = prefill(tiny_llm(), input_ids, document_of)
    for room in (19, 18):
        llm = tiny_llm(max_position_embeddings=room)
        for work in (lambda: target_nll(llm, prefix, questions, target_mask, weights, HEADS),
                     lambda: score_heads(llm, prefix, questions, target_mask, torch.tensor([0, 1, 0]))):
            if room == 19:
                assert work().isfinite().all()
            else:
                with pytest.raises(BadInput, match="the input has 19 tokens, the LLM's context holds 18"):
                    work()


def test_a_question_may_be_one_token():
    llm = tiny_llm()
    input_ids, document_of, questions, _, weights = pool([4, 6])
    target_mask = torch.zeros(3, 9, dtype=torch.bool).index_fill(1, torch.tensor([1]), True)
    loss = target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights, HEADS)
    torch.testing.assert_close(loss, naive_nll(llm, input_ids, document_of, questions, target_mask, weights, HEADS), atol=1e-5, rtol=0)


def test_shapes_and_masks_that_do_not_fit_are_refused():
    llm = tiny_llm()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    prefix = prefill(llm, input_ids, document_of)
    for ids, of in ((input_ids[0], document_of), (input_ids, document_of[1:]), (input_ids.repeat(2, 1), document_of)):
        with pytest.raises(AssertionError, match="input_ids must be"):
            prefill(llm, ids, of)
    for of in (torch.full_like(document_of, -1), document_of + (document_of >= 1).long(), document_of + 1 - (document_of < 0).long()):
        with pytest.raises(AssertionError, match="every document needs at least one token"):
            prefill(llm, input_ids, of)
    with pytest.raises(AssertionError, match="must both be"):
        target_nll(llm, prefix, questions[:, 1:], target_mask, weights, HEADS)
    for row, column, value in ((1, slice(None), False), (2, 0, True)):  # one question without a target; one that is all target
        wrong = target_mask.clone()
        wrong[row, column] = value
        with pytest.raises(AssertionError, match="every question needs targets"):
            target_nll(llm, prefix, questions, wrong, weights, HEADS)
    for wrong in (weights[:2], weights[:, :1], weights[0]):
        with pytest.raises(AssertionError, match="weights must be"):
            target_nll(llm, prefix, questions, target_mask, wrong, HEADS)
    with pytest.raises(AssertionError, match="rows is 'target' or 'question', not 'answer'"):
        score_heads(llm, prefix, questions, target_mask, torch.tensor([0, 1, 0]), rows="answer")
    with pytest.raises(AssertionError, match="choice is 'query', 'random' or 'all', not 'best'"):
        select_heads(torch.zeros(2, 2), 1, choice="best")
    with pytest.raises(AssertionError, match="budget is 'documents' or 'keep', not 'none'"):
        target_nll(llm, prefix, questions, target_mask, weights, HEADS, "none")


def test_loss_is_the_mean_over_target_tokens_alone():
    """A uniform model (zero weights) loses log(vocabulary) on every token, however many targets there are."""
    llm = tiny_llm()
    for parameter in llm.parameters():
        parameter.zero_()
    input_ids, document_of, questions, target_mask, weights = pool([4, 6])
    loss = target_nll(llm, prefill(llm, input_ids, document_of), questions, target_mask, weights, HEADS)
    torch.testing.assert_close(loss, torch.full((3,), math.log(257)))
