"""The exercises: each checker passes on the reference, fails on wrong answers by name, and runs on a student's file."""
import ast
import importlib
import inspect
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import ROOT, save_tiny

FOLDER = ROOT / "exercises"
sys.path.insert(0, str(FOLDER))

import evaluate  # noqa: E402
import inject  # noqa: E402
import model  # noqa: E402
import objectives  # noqa: E402
import plot  # noqa: E402
import search as searching  # noqa: E402
import train  # noqa: E402
import unfrozen_llm  # noqa: E402
import wrong_labels  # noqa: E402
from checkers import LADDER  # noqa: E402
from config import parse  # noqa: E402
from files import BadInput  # noqa: E402
from given import read_question  # noqa: E402
from train import Run  # noqa: E402

REFERENCES = {
    1: (model.pool,), 2: (objectives.document_weights,), 3: (inject.read_documents,), 4: (inject.Inject.inject,), 5: (inject.score_heads,),
    6: (inject.target_nll,), 7: (evaluate.compute_metrics,), 8: (searching.search,), 9: (model.LoRALinear,),
    10: (inject.prefill, inject.target_nll)}
WRONG = []  # (exercise, the wrong functions, words of the message)


def wrong(number, words, *others):
    """Enter a wrong answer to an exercise: the message must have `words` in it; others: functions that go with it."""
    def enter(function):
        WRONG.append(pytest.param(number, (*others, function), words, id=f"ex{number}-{function.__name__}"))
        return function
    return enter


# ------------------------------------------------------------------------------------------------------ wrong answers


@wrong(1, "padding was pooled")
def last_column(hidden, lengths, pooling="lasttoken"):
    return hidden[:, -1].float()


@wrong(1, "not the last token")
def first_column(hidden, lengths, pooling="lasttoken"):
    return hidden[:, 0].float()


@wrong(1, "not float32")
def as_the_model_has_it(hidden, lengths, pooling="lasttoken"):
    return hidden[torch.arange(len(hidden)), lengths - 1]


@wrong(2, "sum to 1 over questions")
def over_questions(scores, temperature):
    return (scores / temperature).softmax(0)


@wrong(2, "the temperature")
def multiplied(scores, temperature):
    return (scores * temperature).softmax(-1)


@wrong(2, "overflow")
def written_out(scores, temperature):
    powers = (scores / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


@wrong(2, "overflow")
def largest_of_all_rows(scores, temperature):
    powers = ((scores - scores.max()) / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


@wrong(2, "no gradient")
def detached(scores, temperature):
    return (scores.detach() / temperature).softmax(-1).requires_grad_(scores.requires_grad)


def read(logits, values, prefix, weights, within=True, everywhere=False):
    K, output = weights.shape[1], 0
    logits = logits if everywhere else logits.masked_fill(prefix.document_of < 0, -torch.inf)
    attention = logits.softmax(-1)
    for k in range(K):
        mask = prefix.document_of == k
        inside = logits[:, :, mask].softmax(-1) if within else attention[:, :, mask]
        output = output + inside @ values[:, mask] * weights[:, k, None]
    return output + everywhere * attention[:, :, prefix.document_of < 0] @ values[:, prefix.document_of < 0]


@wrong(3, "one softmax over all documents")
def one_softmax(logits, values, prefix, weights):
    return read(logits, values, prefix, weights, within=False)


@wrong(3, "outside all documents was read")
def prompt_too(logits, values, prefix, weights):
    return read(logits, values, prefix, weights, everywhere=True)


@wrong(3, "weights of its own")
def first_rows_weights(logits, values, prefix, weights):
    return read(logits, values, prefix, weights[:1].expand_as(weights))


@wrong(3, "the sum over documents, eq (4)")
def squared_weights(logits, values, prefix, weights):
    return read(logits, values, prefix, weights**2)


def injected(self, query, keys, values, own, own_lse, past=True, share=True, stable=True):
    logits, documents = query @ keys.transpose(1, 2), self.prefix.document_of >= 0
    reading = inject.read_documents(logits, values, self.prefix, self.weights)
    if self.budget == "documents":
        return reading
    powers, own_power = (logits.exp(), own_lse.exp()) if not stable else (
        (logits - logits.amax(-1, keepdim=True)).exp(), (own_lse - logits.amax(-1, keepdim=True)).exp())
    total = powers.sum(-1, keepdim=True) + own_power * past
    p, mass = powers / total, powers[:, :, documents].sum(-1, keepdim=True) / total
    return p[:, :, ~documents] @ values[:, ~documents] + past * own_power / total * own + (mass if share else 1) * reading


@wrong(4, "documents alone")
def budget_forgotten(self, *tensors):
    return injected(SimpleNamespace(**{**vars(self), "budget": "keep"}), *tensors)


@wrong(4, "keeps its own attention")
def past_forgotten(self, *tensors):
    return injected(self, *tensors, past=False)


@wrong(4, "does not add up to 1")
def mass_forgotten(self, *tensors):
    return injected(self, *tensors, share=False)


@wrong(4, "overflow")
def powers_of_logits(self, *tensors):
    return injected(self, *tensors, stable=False)


@wrong(4, "no gradient reaches the weights")
def weights_detached(self, *tensors):
    return inject.Inject.inject(SimpleNamespace(**{**vars(self), "weights": self.weights.detach()}), *tensors)


@wrong(4, "no gradient: going back")
@torch.no_grad()
def without_gradients(self, *tensors):
    return inject.Inject.inject(self, *tensors)


@wrong(4, "inplace")
def attention_overwritten(self, query, keys, values, own, own_lse):
    logits, documents = query @ keys.transpose(1, 2), self.prefix.document_of >= 0
    reading = inject.read_documents(logits, values, self.prefix, self.weights)
    if self.budget == "documents":
        return reading
    lse = torch.logaddexp(logits.logsumexp(-1, keepdim=True), own_lse)
    p = (logits - lse).exp()
    mass = p[:, :, documents].sum(-1, keepdim=True)
    p[:, :, documents] = 0
    return p @ values + (own_lse - lse).exp() * own + mass * reading


def scored(llm, prefix, input_ids, target_mask, source, shift=1, all_documents=False, together=False):
    found = []
    for row, mask, k in zip(input_ids, target_mask, source):
        attention = read_question(llm, prefix, row)[0][:, :, mask.nonzero().flatten() - shift, : len(prefix)]
        columns = prefix.document_of >= 0 if all_documents else prefix.document_of == k
        found.append(attention[..., columns].sum(-1))
    return torch.cat(found, -1).mean(-1) if together else torch.stack([x.mean(-1) for x in found]).mean(0)


@wrong(5, "the wrong row")
def targets_rows(llm, prefix, input_ids, target_mask, source, rows="target"):
    return scored(llm, prefix, input_ids, target_mask, source, shift=0)


@wrong(5, "the mass on all documents")
def any_document(llm, prefix, input_ids, target_mask, source, rows="target"):
    return scored(llm, prefix, input_ids, target_mask, source, all_documents=True)


@wrong(5, "the mean over all rows together")
def rows_together(llm, prefix, input_ids, target_mask, source, rows="target"):
    return scored(llm, prefix, input_ids, target_mask, source, together=True)


@wrong(5, "mixed up")
def heads_averaged(llm, prefix, input_ids, target_mask, source, rows="target"):
    return scored(llm, prefix, input_ids, target_mask, source).mean(1, keepdim=True).expand(-1, 4)


def lost(llm, prefix, input_ids, target_mask, shift=1, mean=True):
    losses = []
    for row, mask in zip(input_ids, target_mask):
        nll = F.cross_entropy(read_question(llm, prefix, row)[1][mask.nonzero().flatten() - shift], row[mask], reduction="none")
        losses.append(nll.mean() if mean else nll.sum())
    return torch.stack(losses)


@wrong(6, "the wrong row")
def own_rows(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return lost(llm, prefix, input_ids, target_mask, shift=0)


@wrong(6, "not the mean over target tokens")
def summed(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return lost(llm, prefix, input_ids, target_mask, mean=False)


@wrong(6, "one loss for each question")
def one_number(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return lost(llm, prefix, input_ids, target_mask).mean()


@wrong(6, "all tokens count")
def every_token(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return lost(llm, prefix, input_ids, F.pad(torch.ones_like(target_mask[:, 1:]), (1, 0)))


def ranked(run, qrels, ks, gain=float, found_only=False, ascending=False, runs_queries=False, first=1):
    result = {}
    for k in ks:
        values = []
        for query in run if runs_queries else qrels:
            judged = {d: max(r, 0) for d, r in qrels.get(query, {}).items()}
            order = sorted(run.get(query, {}).items(), key=lambda item: item[0], reverse=not ascending)
            order = [d for d, _ in sorted(order, key=lambda item: -item[1])]
            pool = [r for d, r in judged.items() if d in order or not found_only]
            dcg, best = (sum(gain(r) / math.log2(i + 1) for i, r in enumerate(grades[:k], first))
                         for grades in ([judged.get(d, 0) for d in order], sorted(pool, reverse=True)))
            values.append(dcg / best if best else 0.0)
        result[f"ndcg@{k}"] = sum(values) / len(values)
    return result


def plant_ndcg(words, name, **changes):
    def planted(run, qrels, ks=(1, 3, 5, 10, 100)):
        return ranked(run, qrels, ks, **changes)
    planted.__name__ = name
    wrong(7, words)(planted)


plant_ndcg("ranks from 1", "ranks_from_2", first=2)
plant_ndcg("the gain is linear", "exponential_gain", gain=lambda r: 2**r - 1)
plant_ndcg("over all judged documents", "best_of_what_was_found", found_only=True)
plant_ndcg("ties", "smaller_id_first", ascending=True)
plant_ndcg("the run lacks counts 0", "mean_over_the_runs_queries", runs_queries=True)


def streamed(queries, documents, k, chunk=None, found=None, offset=0, shift=True, late=False):
    scores, indices = found or (torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long))
    chunk = chunk or 100
    for start in range(0, len(documents), chunk):
        new = queries.float() @ documents[start : start + chunk].float().T
        place = (torch.arange(new.shape[1]) + (start + offset) * shift).expand(len(queries), -1)
        parts = [(scores, indices), (new, place)][:: -1 if late else 1]
        scores, order = torch.cat([s for s, _ in parts], 1).sort(dim=1, descending=True, stable=True)
        scores, indices = scores[:, :k], torch.cat([i for _, i in parts], 1).gather(1, order)[:, :k]
    return scores, indices


@wrong(8, "not in its chunk")
def places_in_the_chunk(queries, documents, k, chunk=None, found=None, offset=0):
    return streamed(queries, documents, k, chunk, found, offset, shift=False)


@wrong(8, "ties")
def later_first(queries, documents, k, chunk=None, found=None, offset=0):
    return streamed(queries, documents, k, chunk, found, offset, late=True)


@wrong(8, "the full score matrix was held")
def all_at_once(queries, documents, k, chunk=None, found=None, offset=0):
    return streamed(queries, documents, k, len(documents), found, offset)


@wrong(8, "found was forgotten")
def anew(queries, documents, k, chunk=None, found=None, offset=0):
    return streamed(queries, documents, k, chunk, None, offset)


@wrong(8, "offset: it is added")
def no_offset(queries, documents, k, chunk=None, found=None, offset=0):
    return streamed(queries, documents, k, chunk, found)


@wrong(8, "half precision")
def in_half_precision(queries, documents, k, chunk=None, found=None, offset=0):
    rounded = streamed(queries, documents, k, chunk, found, offset)
    return (rounded[0] if queries.dtype == torch.float32 else rounded[0].bfloat16().float()), rounded[1]


@wrong(9, "the scaling is missing")
class Unscaled(model.LoRALinear):
    def forward(self, x):
        return self.base(x) + self.enabled * F.linear(F.linear(x, self.lora_A), self.lora_B)


@wrong(9, "B must start at zero")
class RandomB(model.LoRALinear):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        nn.init.ones_(self.lora_B)


@wrong(9, "enabled = False")
class AlwaysOn(model.LoRALinear):
    def forward(self, x):
        return self.base(x) + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)


@wrong(9, "A and B alone learn")
class WeightLearns(model.LoRALinear):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        base.weight.requires_grad_()


def keep_ids(llm, input_ids, document_of):
    return input_ids


def keep_cache(llm, input_ids, document_of):
    return llm(input_ids=input_ids, use_cache=True).past_key_values


def behind(llm, cache, input_ids, target_mask):
    losses = []
    for row, mask in zip(input_ids, target_mask):
        logits = llm(input_ids=row[None], past_key_values=cache()).logits[0]
        losses.append(F.cross_entropy(logits[mask.nonzero().flatten() - 1], row[mask]))
    return torch.stack(losses)


@wrong(10, "documents were read more than once", keep_ids)
def once_per_question(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return behind(llm, lambda: keep_cache(llm, prefix, None), input_ids, target_mask)


@wrong(10, "a question sees another one", keep_cache)
def growing_cache(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return behind(llm, lambda: prefix, input_ids, target_mask)


@wrong(10, "the documents were not read", keep_ids)
def questions_alone(llm, prefix, input_ids, target_mask, weights=None, heads=None, budget="documents"):
    return behind(llm, lambda: None, input_ids, target_mask)


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("number", LADDER)
def test_a_checker_passes_on_the_reference_itself(number):
    _, names, checker = LADDER[number]
    assert tuple(f.__name__ for f in REFERENCES[number]) == names
    assert checker(*REFERENCES[number]) is None


@pytest.mark.parametrize("number, functions, words", WRONG)
def test_a_wrong_answer_fails_with_the_broken_property_named(number, functions, words):
    with pytest.raises(AssertionError, match=re.escape(words)):
        LADDER[number][2](*functions)


def test_every_exercise_has_two_wrong_answers_at_least():
    planted = [p.values[0] for p in WRONG]
    assert all(planted.count(number) >= 2 for number in LADDER) and list(LADDER) == list(range(1, 11))


@pytest.mark.parametrize("number", LADDER)
def test_a_stub_has_the_reference_s_signature_and_is_not_written_yet(number):
    file, names, _ = LADDER[number]
    stub = importlib.import_module(file)
    for name, reference in zip(names, REFERENCES[number]):
        mine = getattr(stub, name)
        pairs = [(mine, reference)]
        if inspect.isclass(mine):
            pairs = [(mine.__init__, reference.__init__), (mine.forward, reference.forward)]
        for ours, theirs in pairs:
            parameters = inspect.signature(ours).parameters
            assert parameters == inspect.signature(theirs).parameters, name
            with pytest.raises(NotImplementedError, match=rf"^exercise {number} is not written yet: exercises/{file}\.py$"):
                ours(*[None] * sum(p.default is p.empty for p in parameters.values()))
        assert mine.__doc__, name


@pytest.mark.parametrize("number", LADDER)
def test_a_stub_s_text_has_its_five_parts_in_order(number):
    text = inspect.getdoc(importlib.import_module(LADDER[number][0]))
    assert text.startswith(f"Exercise {number}: ")
    parts = re.findall(r"^(Question|Why it matters|Hint|Expected number|Minutes)$", text, re.MULTILINE)
    assert parts == ["Question", "Why it matters", "Hint", "Expected number", "Minutes"]
    assert 1 <= int(text.rpartition("Minutes")[2]) <= 60 and text.isascii()


def solved(number):
    """The text of a student's file with the reference in the place of the stub."""
    file, names, _ = LADDER[number]
    tree, kept = ast.parse((FOLDER / f"{file}.py").read_text()), []
    for node in tree.body:
        if getattr(node, "name", None) in names:
            reference = REFERENCES[number][names.index(node.name)]
            node = ast.parse(f"import {reference.__module__}\n{node.name} = {reference.__module__}.{reference.__qualname__}")
        kept.append(node)
    return "\n".join(map(ast.unparse, kept))


@pytest.mark.parametrize("number", LADDER)
def test_the_expected_number_is_what_a_right_answer_prints(number, capsys):
    file = LADDER[number][0]
    exec(compile(solved(number), file, "exec"), {"__name__": "__main__"})
    assert f"python exercises/{file}.py prints {capsys.readouterr().out.strip()}" in importlib.import_module(file).__doc__


def test_pytest_checks_the_student_s_own_file(tmp_path):
    """As a student runs it: red with one clear line before, green after, and nothing but the exercise that was asked for."""
    shutil.copytree(FOLDER, tmp_path / "exercises", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pytest.ini", tmp_path)

    def check(expression):
        command = [sys.executable, "-m", "pytest", "exercises", "-q", "-p", "no:cacheprovider", "-m", expression]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return done.returncode, done.stdout

    code, output = check("ex1 or ex3")
    assert code == 1 and "2 failed, 8 deselected" in output and "Traceback" not in output
    assert re.search(r"^exercise 1 is not written yet: exercises/ex01_pooling.py$", output, re.MULTILINE)
    (tmp_path / "exercises" / "ex03_reading.py").write_text(solved(3))
    (tmp_path / "exercises" / "ex01_pooling.py").write_text(re.sub(r"raise NotImplementedError.*", "raise NotImplementedError",
                                                                   (FOLDER / "ex01_pooling.py").read_text()))  # as a student may write it
    (tmp_path / "exercises" / "ex02_weights.py").write_text("def broken(:\n")  # concerns no other exercise
    code, output = check("ex1 or ex3")
    assert code == 1 and "1 failed, 1 passed, 8 deselected" in output
    assert re.search(r"^NotImplementedError\(\)$", output, re.MULTILINE)


def test_the_page_for_students_lists_every_exercise():
    rows = re.findall(r"^\| (\d+) \| `(\w+)\.py` \|.*\| (\d+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    minutes = {n: re.search(r"^Minutes\n +(\d+)$", importlib.import_module(LADDER[n][0]).__doc__, re.MULTILINE)[1] for n in LADDER}
    assert rows == [(str(n), LADDER[n][0], minutes[n]) for n in LADDER]


# ------------------------------------------------------------------------------------- experiments that have no flag


def flags(backbone, folder, out):
    return ["--backbone", backbone, "--data", str(folder), "--out", str(out), "--pool", "4", "--questions", "4", "--heads", "3",
            "--steps", "3", "--device", "cpu"]


def records(out):
    return json.loads((out / "result.json").read_text())["curve"]


def test_wrong_labels_are_never_the_source_and_change_nothing_else(tiny_folder, collection_folder, tmp_path):
    own = flags(tiny_folder, collection_folder, tmp_path)
    right, mislabelled = Run(parse(own)), wrong_labels.WrongLabels(parse(own))
    for one, two in itertools.islice(zip(right.pools(0), mislabelled.pools(0)), 5):
        assert one.documents == two.documents and one.examples == two.examples
        assert ((two.source != one.source) & (two.source >= 0) & (two.source < 4)).all()
        indifferent = objectives.infonce_loss(mislabelled, None, two, torch.zeros(len(two.examples), 4))
        assert indifferent.item() == pytest.approx(math.log(4))  # over all documents, the right one among them


def test_dream_does_not_read_the_labels_that_mislead_infonce(tiny_folder, collection_folder, tmp_path, capsys):
    losses = {}
    for objective in ("dream", "infonce"):
        own = [*flags(tiny_folder, collection_folder, tmp_path / objective), "--objective", objective]
        plain = Run(parse(own))
        if objective == "dream":
            plain.choose_heads()
        train.train(plain, (curve := []).append)
        wrong_labels.main(own)
        losses[objective] = [r["loss"] for r in curve], [r["loss"] for r in records(tmp_path / objective)]
    assert losses["dream"][0] == losses["dream"][1]
    assert losses["infonce"][0] != losses["infonce"][1]
    assert "collection before" in capsys.readouterr().out
    result = json.loads((tmp_path / "dream" / "result.json").read_text())  # BM25 is not measured, and not drawn
    assert plot.read_bars(plot.read_results([tmp_path / "dream"])) == {
        label: {"collection": [result[when]["collection"]["ndcg@10"]]} for label, when in (("untrained", "before"), ("dream", "after"))}


def test_the_unfrozen_judge_learns_in_its_attention_alone_and_the_frozen_one_does_not(tiny_folder, collection_folder, tmp_path):
    run = unfrozen_llm.UnfrozenLLM(parse(flags(tiny_folder, collection_folder, tmp_path)))
    base = {name: p.clone() for name, p in run.retriever.llm.named_parameters() if not p.requires_grad}
    judge = {name: p.clone() for name, p in run.own_llm.named_parameters()}
    assert all(torch.equal(judge[name.replace(".base.", ".")], p) for name, p in base.items()), "both start from the same weights"
    run.choose_heads()
    train.train(run)
    changed = {name for name, p in run.own_llm.named_parameters() if not torch.equal(p, judge[name])}
    assert changed == {name for name in judge if "self_attn" in name}
    assert all(torch.equal(p, base[name]) for name, p in run.retriever.llm.named_parameters() if name in base)
    assert all(layer.lora_B.abs().sum() > 0 for layer in run.retriever.adapters().values())


def test_the_unfrozen_judge_s_loss_differs_from_the_second_step_on(tiny_folder, collection_folder, tmp_path):
    frozen, out = Run(parse(flags(tiny_folder, collection_folder, tmp_path))), tmp_path / "out"
    frozen.choose_heads()
    train.train(frozen, (curve := []).append)
    unfrozen_llm.main(flags(tiny_folder, collection_folder, out))
    ours = records(out)
    assert ours[0]["loss"] == pytest.approx(curve[0]["loss"], rel=1e-5) and ours[1]["loss"] != curve[1]["loss"]
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "result.json").read_text())["command"].startswith("python exercises/unfrozen_llm.py --backbone")


def test_the_unfrozen_judge_with_activation_checkpointing_learns_the_same(tiny_folder, collection_folder, tmp_path):
    curves = {}
    for name in ("plain", "--checkpoint"):
        unfrozen_llm.main([*flags(tiny_folder, collection_folder, tmp_path / name), *[name] * name.startswith("--")])
        curves[name] = [r["loss"] for r in records(tmp_path / name)]
    assert curves["plain"] == pytest.approx(curves["--checkpoint"], rel=1e-5) and len(set(curves["plain"])) == 3


def test_another_llm_learns_in_float32(tiny_folder, collection_folder, tmp_path):
    """In half precision most of an optimiser's small steps would round away."""
    other = save_tiny(tmp_path / "other", seed=3)
    run = unfrozen_llm.UnfrozenLLM(parse([*flags(tiny_folder, collection_folder, tmp_path / "out"), "--llm", other, "--dtype", "bfloat16"]))
    assert {p.dtype for p in run.own_llm.parameters()} == {torch.float32} and run.retriever.llm.dtype == torch.bfloat16
    run.choose_heads()
    before = [p.clone() for p in run.learning]
    train.train(run)
    changed = [(a != b).float().mean().item() for a, b in zip(before, run.learning)]
    assert sum(changed) > 0.8 * len(changed), changed  # keys of injected heads alone have no gradient


def test_a_variant_s_folder_is_of_one_run(tiny_folder, collection_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights.png").write_text("of another run")
    wrong_labels.main([*flags(tiny_folder, collection_folder, out), "--objective", "dream"])
    assert not (out / "weights.png").exists()
    written, plain = json.loads((out / "heads.json").read_text()), Run(parse(flags(tiny_folder, collection_folder, out)))
    assert torch.allclose(torch.tensor(written["scores"]), plain.choose_heads()) and list(map(tuple, written["heads"])) == plain.heads
    wrong_labels.main(flags(tiny_folder, collection_folder, out))  # infonce
    assert not (out / "heads.json").exists()


def test_an_unfrozen_judge_is_for_dream_alone(tiny_folder, collection_folder, tmp_path):
    with pytest.raises(BadInput, match="about --objective dream"):
        unfrozen_llm.main([*flags(tiny_folder, collection_folder, tmp_path), "--objective", "infonce"])


@pytest.mark.parametrize("flag", ["--resume", "--gather", "--plot"])
def test_what_a_variant_cannot_do_is_refused(tiny_folder, collection_folder, tmp_path, flag):
    with pytest.raises(BadInput, match=f"exercises/wrong_labels.py has no {flag}"):
        wrong_labels.main([*flags(tiny_folder, collection_folder, tmp_path), flag])


def test_the_commands_of_the_pages_are_understood():
    """Every train.py flag, script and marker that the pages for students and instructors name."""
    pages = "".join((FOLDER / name).read_text() for name in ("README.md", "INSTRUCTOR.md"))
    commands = re.findall(r"python ((?:train|exercises/wrong_labels|exercises/unfrozen_llm)\.py[^`\n#]*)", pages)
    assert len(commands) >= 6
    for command in commands:
        script, *words = shlex.split(command)
        assert (ROOT / script).is_file() and parse(words)
    assert {int(n) for n in re.findall(r"pytest exercises -m ex(\d+)", pages)} <= set(LADDER)
