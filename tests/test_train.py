"""The loop: what it may change, what it writes, and that it learns."""
import contextlib
import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, OPTConfig, OPTForCausalLM

import evaluate
import train
from checkpoints import Stop
from conftest import save_tiny, tiny_tokenizer
from data import BadInput, Pool, load_collection
from inject import score_heads, select_heads, target_nll
from layers import checkpoint_layers, compile_layers
from model import SUFFIX, Retriever
from train import Config, Run, learning_rate, parse


def tiny_run(backbone, folder, *flags):
    return Run(parse(["--backbone", backbone, "--data", str(folder), "--pool", "4", "--questions", "4", "--heads", "3",
                      "--steps", "3", "--device", "cpu", *flags]))


@pytest.mark.parametrize("objective", ["dream", "infonce", "replug", "emdr"])
def test_the_llm_stays_bit_identical_and_every_adapter_learns(tiny_folder, collection_folder, tmp_path, objective):
    run = tiny_run(tiny_folder, collection_folder, "--objective", objective)
    frozen = {n: p.clone() for n, p in run.retriever.llm.named_parameters() if not p.requires_grad}
    adapters = [p.clone() for p in run.retriever.parameters()]
    run.heads = [(0, 0), (1, 2), (2, 1)]
    train.train(run, lambda record: None)
    run.retriever.save(tmp_path / "saved")
    texts, fresh = list(run.corpus.values()), Retriever.load(tmp_path / "saved", device="cpu")
    assert torch.equal(run.retriever.encode(texts, "document"), fresh.encode(texts, "document"))
    after = dict(run.retriever.llm.named_parameters())
    assert len(frozen) > 20 and all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(not torch.equal(was, now) for was, now in zip(adapters, run.retriever.parameters()))


def test_a_source_that_stands_twice_in_a_shared_pool_counts_wherever_it_stands(tiny_folder, collection_folder):
    """Processes that share a pool (--gather) may be in two passes over the examples."""
    run = tiny_run(tiny_folder, collection_folder, "--objective", "infonce")
    pool = next(run.pools(0))
    twice = Pool(pool.documents * 2, pool.examples)
    assert pool.is_source.nonzero()[:, 1].tolist() == pool.source.tolist() and torch.equal(twice.is_source, pool.is_source.repeat(1, 2))
    once, both = run.step(pool), run.step(twice)
    assert both["source_weight"] == pytest.approx(once["source_weight"], rel=1e-5) and both["accuracy"] == once["accuracy"]
    assert both["largest_weight"] == pytest.approx(once["largest_weight"] / 2, rel=1e-5)


def test_the_spread_is_of_directions(tiny_folder, collection_folder):
    """A backbone whose files say "dot" does not normalise."""
    run, plain = (tiny_run(tiny_folder, collection_folder, "--objective", "infonce", "--temperature", "9") for _ in range(2))
    plain.retriever.normalize = False
    pool = next(run.pools(0))
    assert plain.step(pool)["spread"] == pytest.approx(run.step(pool)["spread"], abs=1e-5)


def test_gradients_reach_every_lora_tensor_and_nothing_else(tiny_folder, collection_folder):
    run = tiny_run(tiny_folder, collection_folder)
    run.choose_heads()
    for layer in run.retriever.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.01)  # with B at zero, A's gradient is zero: the first step moves B alone
    run.step(next(run.pools(0)))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.retriever.parameters())
    assert all(p.grad is None for p in run.retriever.llm.parameters() if not p.requires_grad)


def test_a_step_is_the_equations_in_a_row(tiny_folder, collection_folder):
    """Loss and record of Run.step against the same quantities written out."""
    run = tiny_run(tiny_folder, collection_folder, "--temperature", "0.3")
    run.choose_heads()
    pool = next(run.pools(5))
    record = run.step(pool)
    queries = run.retriever.encode([e.query for e in pool.examples], "query")
    documents = run.retriever.encode([run.corpus[d] for d in pool.documents], "document")
    weights = torch.tensor([[math.exp(float(q @ d) / 0.3) for d in documents] for q in queries])
    weights /= weights.sum(1, keepdim=True)
    with run.judge() as llm:
        losses = [target_nll(llm, *run.read(llm, pool.documents, [e]), weights[i : i + 1], run.heads)
                  for i, e in enumerate(pool.examples)]
    source = [pool.documents.index(e.document) for e in pool.examples]
    assert record["loss"] == pytest.approx(float(sum(losses)) / len(losses), abs=1e-4)
    assert record["source_weight"] == pytest.approx(float(sum(w[s] for w, s in zip(weights, source))) / 4, abs=1e-5)
    assert record["largest_weight"] == pytest.approx(float(weights.amax(1).mean()), abs=1e-5)
    assert record["accuracy"] == pytest.approx(sum(int(w.argmax()) == s for w, s in zip(weights, source)) / 4)
    pairs = documents @ documents.T
    assert record["spread"] == pytest.approx(1 - float(pairs.mean()), abs=1e-5)  # mean cosine distance of all pairs
    labelled = tiny_run(tiny_folder, collection_folder, "--objective", "infonce")
    assert labelled.step(pool)["agreement"] == 1  # a label always asks for its document


def test_a_gradient_is_recorded_before_it_is_clipped(tiny_folder, collection_folder):
    norms, used = [], []
    for clip in ("1e9", "1e-3"):
        training = train.Training(tiny_run(tiny_folder, collection_folder, "--objective", "infonce", "--clip", clip))
        training.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(math.sqrt(sum(
            float(p.grad.square().sum()) for p in optimizer.param_groups[0]["params"]))))
        with Stop() as stop:
            norms.append(training.step([next(training.run.shares())], stop)["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) == pytest.approx(used[0], rel=1e-4)
    assert used[1] == pytest.approx(1e-3, rel=1e-2) and norms[0] > 0.01


def test_a_run_s_temperature_moves_to_the_final_one(tiny_folder, collection_folder):
    run, seen = tiny_run(tiny_folder, collection_folder, "--objective", "infonce", "--temperature", ".08", "--final-temperature", ".02"), []
    train.train(run, lambda record: seen.append(run.temperature))
    assert seen == pytest.approx([0.08, 0.04, 0.02])


def test_lora_stands_where_it_is_asked_for(tiny_folder, collection_folder):
    run = tiny_run(tiny_folder, collection_folder, "--lora-targets", "q_proj,v_proj")
    assert {name.rpartition(".")[2] for name in run.retriever.adapters()} == {"q_proj", "v_proj"} and len(run.retriever.adapters()) == 6


def test_heads_are_scored_from_the_rows_that_are_asked_for(tiny_folder, collection_folder, monkeypatch):
    monkeypatch.setattr(train, "HEAD_EXAMPLES", 4)  # one pool
    scores = []
    for rows in ("question", "target"):
        run = tiny_run(tiny_folder, collection_folder, "--head-rows", rows)
        scores.append(run.choose_heads())
        pool = next(run.pools(run.config.seed + 1))
        with run.judge() as llm:
            torch.testing.assert_close(scores[-1], score_heads(llm, *run.read(llm, pool.documents, pool.examples), pool.source, rows))
    assert not torch.allclose(*scores, atol=1e-3)


def test_all_processes_inject_the_heads_that_the_first_has_chosen(tiny_folder, collection_folder, monkeypatch):
    run = tiny_run(tiny_folder, collection_folder)
    first = -run.choose_heads()  # as another machine may see them, only more so
    monkeypatch.setattr(train, "everyone", lambda rows: torch.cat([first[None], rows]))
    own = run.heads
    assert run.choose_heads() is not None and run.heads == select_heads(first, 3) and not set(own) & set(run.heads)


def saved_bytes(run, pool):
    """The bytes that autograd keeps while a step runs, as its own hooks see them."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.step(pool)
    return sum(seen.values())


@pytest.mark.parametrize("objective", ["dream", "infonce"])
@pytest.mark.parametrize("flags", [["--embed-chunk", "3"], ["--checkpoint"], ["--checkpoint", "--embed-chunk", "1"]])
def test_saving_memory_changes_no_gradient(tiny_folder, collection_folder, objective, flags):
    gradients = []
    for more in ([], flags):
        run = tiny_run(tiny_folder, collection_folder, "--objective", objective, *more)
        run.retriever.llm.double()  # so that rounding, which depends on what is computed together, hides nothing
        run.choose_heads()
        for p in run.retriever.parameters()[1::2]:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
        record = run.step(next(run.pools(0)))
        gradients.append([p.grad for p in run.retriever.parameters()])
    assert record["loss"] > 0 and all(g.abs().max() > 0 for g in gradients[0])
    for plain, saving in zip(*gradients):
        assert (plain - saving).abs().max() <= 1e-5 * plain.abs().max()


def test_a_step_s_gradient_is_that_of_one_plain_graph(tiny_folder, collection_folder):
    """Embeddings, softmax and the LLM's loss in one graph, where a step goes backward in two parts."""
    run = tiny_run(tiny_folder, collection_folder, "--temperature", ".3")
    run.retriever.llm.double()
    run.choose_heads()
    for p in run.retriever.parameters()[1::2]:
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    pool, parameters = next(run.pools(0)), run.retriever.parameters()
    run.step(pool)
    found = [p.grad.clone() for p in parameters]
    queries = run.retriever.embed(run.tokenize([e.query for e in pool.examples], "query"))
    documents = run.retriever.embed(run.tokenize([run.corpus[d] for d in pool.documents], "document"))
    weights = torch.exp(queries @ documents.T / 0.3)
    with run.judge() as llm:
        loss = target_nll(llm, *run.read(llm, pool.documents, pool.examples), weights / weights.sum(1, keepdim=True), run.heads).mean()
    for ours, plain in zip(found, torch.autograd.grad(loss, parameters)):
        assert plain.abs().max() > 0 and (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_checkpointing_keeps_less_and_leaves_the_prefix_alone(tiny_folder, collection_folder):
    plain, saving = (tiny_run(tiny_folder, collection_folder, "--document-tokens", "64", *more) for more in ([], ["--checkpoint"]))
    pool, prefixes = next(plain.pools(0)), []
    for run in (plain, saving):
        run.choose_heads()
        with run.judge() as llm:
            prefixes.append(run.read(llm, pool.documents, pool.examples)[0])
    assert len(prefixes[1].keys) == 3 and all(map(torch.equal, prefixes[0].keys, prefixes[1].keys))
    assert saved_bytes(saving, pool) < 0.5 * saved_bytes(plain, pool)


def test_checkpointing_drops_nothing_out(collection_folder, tmp_path):
    """OPT's layers drop out by themselves when they train. This one's vectors are, as OPT-350M's, narrower than its layers."""
    config = OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=257, max_position_embeddings=2048,
                       word_embed_proj_dim=16, dropout=0.5, init_std=0.3)
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tiny_tokenizer().save_pretrained(tmp_path / "opt")
    records = []
    for more in ([], ["--checkpoint"]):
        run = tiny_run(str(tmp_path / "opt"), collection_folder, *more)
        run.choose_heads()
        records.append(run.step(next(run.pools(0))))
    assert records[0] == pytest.approx(records[1], rel=1e-4) and run.retriever.encode(["a text"]).shape == (1, 16)
    assert Retriever("opt", run.retriever.tokenizer, run.retriever.llm.base_model).encode(["a text"]).shape == (1, 16)  # without its head


def test_layers_that_cannot_be_compiled_or_checkpointed_are_refused(tiny_folder, monkeypatch):
    retriever = Retriever.load(tiny_folder, device="cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="no-such-compiler is not there"):
        compile_layers(retriever.llm)
    monkeypatch.setattr(shutil, "which", {"g++": "/usr/bin/g++"}.get)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BadInput, match="the compiler gcc or clang is not there"):  # which Triton calls
        compile_layers(SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(type(retriever.llm), "supports_gradient_checkpointing", False)
    with pytest.raises(BadInput, match="llama does not support activation checkpointing"):
        checkpoint_layers(retriever.llm)


def test_the_backbone_s_layers_can_be_compiled(tiny_folder, collection_folder):
    """All but attention, for every number of tokens; what compiles is torch's: here its own reference backend."""
    plain, compiled = (tiny_run(tiny_folder, collection_folder, *more) for more in ([], ["--compile"]))
    layers = [m for m in compiled.retriever.llm.modules() if m._compiled_call_impl is not None]
    assert len(layers) == 3 and not any(m._compiled_call_impl for m in plain.retriever.llm.modules())
    compile_layers(compiled.retriever.llm, backend="aot_eager")
    records = []
    for run in (plain, compiled):
        run.choose_heads()
        records.append(run.step(next(run.pools(0))))
    assert records[0] == pytest.approx(records[1], rel=1e-4)
    for a, b in zip(plain.retriever.parameters(), compiled.retriever.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_an_objective_that_injects_is_never_without_heads(tiny_folder, collection_folder):
    run = tiny_run(tiny_folder, collection_folder)
    with pytest.raises(AssertionError, match="INJECTS"):
        run.step(next(run.pools(0)))


def test_main_writes_what_the_design_says_and_evaluate_reads_it(tiny_folder, collection_folder, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--backbone", tiny_folder, "--data", str(collection_folder), "--pool", "4", "--questions", "4", "--heads", "3",
             "--steps", "3", "--device", "cpu", "--out", str(out)]
    train.main(flags)
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "retriever.json",
                                               "heads.json", "metrics.jsonl", "result.json", "embeddings"}
    result = json.loads((out / "result.json").read_text())
    assert {"before", "after", "config", "seconds", "versions", "hardware", "command", "commit"} <= set(result)
    assert result["config"]["steps"] == 3 and len(json.loads((out / "heads.json").read_text())["heads"]) == 3
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines == result["curve"]
    assert {"loss", "source_weight", "lr", "seconds", "spread", "gradient_norm"} <= set(lines[0])
    expected = evaluate.evaluate(Retriever.load(out, device="cpu"), load_collection(collection_folder))
    assert result["after"]["collection"] == pytest.approx(expected, abs=1e-6)
    for word in ("steps=3", "nDCG@10", "Recall@10", "MRR@10", "before", "after", "BM25", str(out)):
        assert word in printed
    train.main([*flags[:-1], str(tmp_path / "again")])
    assert (out / "adapter_model.safetensors").read_bytes() == (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    evaluate.main(["--model", str(out), "--data", str(collection_folder)])
    assert f"{expected['ndcg@10']:.3f}" in capsys.readouterr().out


def test_a_question_shows_before_and_after_side_by_side_from_what_the_run_kept(tiny_folder, collection_folder, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    train.main(["--backbone", tiny_folder, "--data", str(collection_folder), "--pool", "4", "--questions", "4", "--heads", "3",
                "--steps", "3", "--lr", ".05", "--device", "cpu", "--out", out])
    train.main(["--backbone", tiny_folder, "--data", str(collection_folder), "--pool", "4", "--questions", "4", "--heads", "3",
                "--steps", "2", "--lr", ".05", "--device", "cpu", "--out", out])
    assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 4  # queries and documents, before and after; of the last run
    capsys.readouterr()
    retriever, corpus = Retriever.load(out, device="cpu"), list(load_collection(collection_folder).corpus.values())
    best = {}
    for name, state in (("after", contextlib.nullcontext()), ("before", retriever.adapters_off())):
        with state:
            scores = retriever.encode(["What is 3?"], "query") @ retriever.encode(corpus, "document").T
        best[name] = scores[0].topk(5)
    real = Retriever.encode

    def encode(self, texts, kind="query", **more):
        assert kind == "query", "documents are read from the run's folder"
        return real(self, texts, kind, **more)

    monkeypatch.setattr(Retriever, "encode", encode)
    evaluate.main(["--model", out, "--data", str(collection_folder), "--device", "cpu", "--ask", "What is 3?"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["before", "training", "after", "training"]
    for place in range(5):
        line = next(line for line in printed.splitlines() if line.startswith(f"{place + 1} "))
        for name in best:
            assert f"{best[name].values[place]:.3f} d{best[name].indices[place]}:" in line


def test_an_encoder_can_be_trained_if_another_model_judges(tiny_folder, collection_folder, tmp_path):
    config = BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=257, max_position_embeddings=24)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(BadInput, match="predicts no next token.*--llm"):
        tiny_run(str(tmp_path / "bert"), collection_folder)
    run = tiny_run(str(tmp_path / "bert"), collection_folder, "--llm", tiny_folder)
    assert max(len(run.prompts.tokenize(text)) for text in run.corpus.values()) > 24  # what the LLM reads, the encoder has no positions for
    assert run.retriever.pooling == "mean" and run.retriever.suffix == ""
    run.choose_heads()
    before = run.retriever.encode(["a text"], "query")
    records = train.train(run).curve
    assert len(records) == 3 and not torch.equal(before, run.retriever.encode(["a text"], "query"))
    run.retriever.save(tmp_path / "saved")
    again = Retriever.load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(run.retriever.encode(["a text"], "query"), again.encode(["a text"], "query"), atol=1e-5, rtol=0)


def test_the_last_line_is_a_command_that_works(tiny_folder, collection_folder, tmp_path, capsys):
    """Also where training and measuring have folders of their own."""
    data = shutil.copytree(collection_folder, tmp_path / "rows")
    shutil.rmtree(data / "qrels")
    train.main(["--backbone", tiny_folder, "--data", str(data), "--eval", str(collection_folder), "--pool", "4", "--heads", "3", "--steps", "1",
                "--device", "cpu", "--out", str(tmp_path / "my run")])
    said = capsys.readouterr().out.strip().split("\n")[-1]
    evaluate.main([*shlex.split(said.partition("evaluate.py ")[2]), "--device", "cpu"])
    assert "nDCG@10" in capsys.readouterr().out


def test_an_interrupted_loop_says_to_go_on_only_where_something_was_kept(tiny_folder, collection_folder, capsys):
    for save, said in ((None, "stopped after step 2\n"), (lambda training: None, "stopped after step 2; --resume goes on\n")):
        run = tiny_run(tiny_folder, collection_folder, "--objective", "infonce")
        with pytest.raises(KeyboardInterrupt):
            train.train(run, lambda record: os.kill(os.getpid(), signal.SIGINT), save)
        assert said in capsys.readouterr().err.replace("\r", "\n")


def test_the_prompt_of_a_run_stands_around_every_text(tiny_folder, collection_folder, tmp_path):
    run = tiny_run(tiny_folder, collection_folder, "--prompt", "say: {text} now")
    ids = sum((run.retriever.tokenizer(part, add_special_tokens=False).input_ids for part in ("say: a box", " now")), [])
    assert run.tokenize(["a box"], "query") == run.tokenize(["a box"], "document") == [ids]
    run.retriever.save(tmp_path / "saved")
    assert Retriever.load(tmp_path / "saved", device="cpu").tokenize(["a box"], "query") == [ids]


def test_queries_may_have_a_prompt_of_their_own(tiny_folder, collection_folder, tmp_path):
    def ids(*parts):
        return sum((run.retriever.tokenizer(part, add_special_tokens=False).input_ids for part in parts), [])

    run = tiny_run(tiny_folder, collection_folder, "--query-prompt", 'An answer to : "{text}" means in one word: "')
    run.retriever.save(tmp_path / "saved")
    for made in (run.retriever, Retriever.load(tmp_path / "saved", device="cpu")):
        assert made.tokenize(["a box"], "query") == [ids('An answer to : "a box', SUFFIX)]
        assert made.tokenize(["a box"], "document") == [ids('This sentence : "a box', SUFFIX)]
    run = tiny_run(tiny_folder, collection_folder, "--prompt", "say: {text} now", "--query-prompt", "ask: {text} now")
    assert run.tokenize(["a box"], "query") == [ids("ask: a box", " now")] and run.tokenize(["a box"], "document") == [ids("say: a box", " now")]


def test_a_query_prompt_that_leaves_no_room_is_refused_at_once(tiny_folder, collection_folder):
    with pytest.raises(BadInput, match="512 tokens leave no room for a text"):
        tiny_run(tiny_folder, collection_folder, "--query-prompt", "x" * 600 + '{text}" means in one word: "')


def test_a_pool_shared_by_one_process_is_its_own(tiny_folder, collection_folder):
    curves = []
    for more in ([], ["--gather"]):
        run = tiny_run(tiny_folder, collection_folder, *more)
        run.choose_heads()
        curves.append([{name: value for name, value in record.items() if name != "seconds"} for record in train.train(run).curve])
    assert len(curves[0]) == 3 and curves[0] == curves[1]


def test_a_sign_that_nothing_is_learned_is_told_once(tiny_folder, collection_folder, monkeypatch, capsys):
    asked = []

    def symptom(curve, documents):
        asked.append((len(curve), documents))
        return "all alike" if len(curve) > 1 else None

    monkeypatch.setattr(train, "symptom", symptom)
    run = tiny_run(tiny_folder, collection_folder, "--objective", "infonce")
    train.train(run)
    assert asked == [(1, 4), (2, 4)] and capsys.readouterr().err.count("step 2: all alike") == 1


def test_a_trained_retriever_is_no_backbone(tiny_folder, collection_folder, tmp_path):
    tiny_run(tiny_folder, collection_folder).retriever.save(tmp_path / "saved")
    with pytest.raises(BadInput, match="a trained retriever"):
        tiny_run(str(tmp_path / "saved"), collection_folder)


def test_another_model_can_judge(tiny_folder, collection_folder, tmp_path):
    run = tiny_run(tiny_folder, collection_folder, "--llm", save_tiny(tmp_path, "qwen2", seed=3))
    run.choose_heads()
    with run.judge() as llm:
        assert llm.config.model_type == "qwen2"
    assert run.step(next(run.pools(0)))["loss"] > 0
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in run.retriever.parameters())


def test_the_judge_may_have_another_tokenizer_and_another_size(tiny_folder, collection_folder, tmp_path):
    judge = save_tiny(tmp_path / "judge", "qwen2", seed=3, vocab_size=300, num_hidden_layers=2, hidden_size=48)
    other = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    other["model"]["vocab"] = {token: i and 1 + (i + 49) % 256 for token, i in other["model"]["vocab"].items()}  # each byte another id
    (Path(judge) / "tokenizer.json").write_text(json.dumps(other))
    run = tiny_run(tiny_folder, collection_folder, "--llm", judge)
    text = "The box is red."
    assert run.prompts.tokenize(text) != run.retriever.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    scores = run.choose_heads()
    assert scores.shape == (2, 4)  # the judge's layers and heads, not the retriever's
    with run.judge() as llm:
        prefix, input_ids, _ = run.read(llm, list(run.corpus)[:2], run.examples[:1])
    assert llm.config.hidden_size == 48 and run.retriever.llm.config.hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(judge)
    assert tokenizer.decode(input_ids[0]).startswith("Question: Which colour has box 0?")
    assert run.step(next(run.pools(0)))["loss"] > 0
    assert all(p.grad is None for p in llm.parameters()) and any(p.grad is not None and p.grad.abs().max() > 0 for p in run.retriever.parameters())


@pytest.mark.parametrize("choice, count", [("query", 3), ("random", 3), ("all", 12)])
def test_head_choices(tiny_folder, collection_folder, choice, count):
    run = tiny_run(tiny_folder, collection_folder, "--head-choice", choice)
    scores = run.choose_heads()
    assert len(set(run.heads)) == count
    best = sorted((scores[at].item() for at in run.heads), reverse=True)
    if choice == "query":
        assert best == sorted(scores.flatten().tolist(), reverse=True)[:3]
    if choice == "random":
        other = tiny_run(tiny_folder, collection_folder, "--head-choice", choice, "--seed", "1")
        other.choose_heads()
        assert set(other.heads) != set(run.heads)


def test_the_optimiser_has_the_rate_and_the_loss_the_temperature_of_each_step(tiny_folder, collection_folder):
    run, seen = tiny_run(tiny_folder, collection_folder, "--objective", "infonce", "--steps", "6", "--final-temperature", ".1"), []
    training = train.Training(run)
    training.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append((optimizer.param_groups[0]["lr"], run.temperature)))
    train.train(run, training=training)
    assert seen == [(learning_rate(run.config, step), train.temperature(run.config, step)) for step in range(6)] and len(set(seen)) == 6


def test_learning_rate_warms_up_and_ends_near_zero():
    config = Config(steps=50, lr=1.0)
    rates = [learning_rate(config, step) for step in range(50)]
    assert rates[:5] == sorted(rates[:5]) and max(rates) == rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0 < rates[-1] < 0.02
    assert 0 < learning_rate(Config(steps=1), 0) < Config.lr


def test_the_temperature_moves_in_equal_ratios_to_the_final_one():
    config = Config(steps=5, temperature=0.08, final_temperature=0.005)
    assert [train.temperature(config, step) for step in range(5)] == pytest.approx([0.08, 0.04, 0.02, 0.01, 0.005])
    assert {train.temperature(Config(steps=5), step) for step in range(5)} == {Config.temperature}


def test_flags_are_the_fields_and_a_misspelt_one_is_refused(capsys):
    config = parse(["--temperature", "0.02", "--head-choice", "random"])
    assert config == dataclasses.replace(Config(), temperature=0.02, head_choice="random")
    with pytest.raises(SystemExit) as stop:
        parse(["--temprature", "0.02"])
    assert stop.value.code == 2 and "--temprature" in capsys.readouterr().err
    assert len(dataclasses.fields(Config)) <= 36
    with pytest.raises(BadInput, match="--temperature must be a positive number"):
        parse(["--temperature", "nan"])


PAIRS = [("In which city does the blue clown live?", "Turin", "The blue clown has lived in Turin since his childhood."),
         ("What does the old baker collect?", "stamps", "After work the old baker collects stamps from all over the world."),
         ("Who repaired the village clock?", "Agnes", "The clock of the village stood still until Agnes repaired it."),
         ("What was hidden in the well?", "a violin", "For forty years a violin lay hidden in the dry well.")]


@pytest.mark.real
def test_four_pairs_are_overfit_through_the_real_llm(real, tmp_path):
    """No label is given: the loss on the four targets alone moves the weight onto the source documents."""
    (tmp_path / "corpus.jsonl").write_text("".join(
        json.dumps({"_id": str(i), "text": text}) + "\n" for i, (_, _, text) in enumerate(PAIRS)))
    (tmp_path / "train.jsonl").write_text("".join(
        json.dumps({"query": q, "target": t, "document": str(i)}) + "\n" for i, (q, t, _) in enumerate(PAIRS)))
    run = Run(parse(["--data", str(tmp_path), "--pool", "4", "--questions", "4", "--steps", "16",
                     "--device", "cpu", "--prompt", "query: {text}"]))  # without PromptEOL there is something to learn
    run.choose_heads()
    records = []
    train.train(run, records.append)
    pool = next(run.pools(0))
    queries = run.retriever.encode([e.query for e in pool.examples], "query")
    documents = run.retriever.encode([run.corpus[d] for d in pool.documents], "document")
    weights = (queries @ documents.T / run.config.temperature).softmax(1)
    assert weights[range(4), pool.source].min() > 0.9
    assert records[-1]["loss"] < records[0]["loss"] - 1
