"""What a user gets wrong is told in one line that helps, with exit code 2, and nothing is written."""
import gzip
import json
import os
import runpy
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import ROOT, save_tiny, tiny_tokenizer, write_collection
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import data
import evaluate
import model
import train
from commands import COMMANDS
from data import BadInput, Prompts, load_corpus, load_examples
from model import BACKBONES

DOCUMENTS = "".join('{"_id": "d%d", "text": "Box %d."}\n' % (i, i) for i in range(8))
ROW = '{"query": "Which?", "target": "red", "document": "d0"}\n'
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def flags(tiny_folder, collection_folder):
    """A run of a second that works; a flag that is given again replaces the one here."""
    return ["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--steps", "1",
            "--pool", "4", "--heads", "4"]


@pytest.fixture(scope="module")
def short_folder(tmp_path_factory):
    """A backbone whose context holds 256 tokens."""
    return save_tiny(tmp_path_factory.mktemp("short"), max_position_embeddings=256)


def refused(main, out, *flags):
    """A command refuses its input in one line and writes nothing -> that line."""
    with pytest.raises(BadInput) as error:
        main([*map(str, flags), "--out", str(out)])
    message = str(error.value)
    assert message and len(message.splitlines()) == 1
    assert not list(out.parent.glob("out*"))
    return message


def test_good_input_works(flags, out, collection_folder):
    train.main([*flags, "--out", str(out)])
    assert (out / "result.json").is_file()
    evaluate.main(["--model", str(out), "--data", str(collection_folder), "--out", str(out / "again.json")])
    assert (out / "again.json").is_file()


@pytest.mark.parametrize("file, text, says", [
    ("corpus.jsonl", "", ["corpus.jsonl", "empty"]),
    ("corpus.jsonl", DOCUMENTS + '{"_id": "d8", "text": \n', ["corpus.jsonl:9:", "JSON"]),
    ("corpus.jsonl", DOCUMENTS + '{"_id": "d3", "text": "x"}\n', ["corpus.jsonl:9:", "'d3'", "twice"]),
    ("train.jsonl", ROW + "\n{query: 1}\n", ["train.jsonl:3:", "JSON"]),
    ("train.jsonl", ROW + ROW.replace("d0", "d77"), ["train.jsonl:2:", "'d77'", "corpus.jsonl"]),
    ("train.jsonl", ROW + ROW.replace("red", ""), ["train.jsonl:2:", "target", "empty"]),
    ("train.jsonl", "", ["train.jsonl"]),
    ("queries.jsonl", '{"_id": "q0"}\n', ["queries.jsonl:1:", "'text'"]),
    ("train.jsonl", '{"query": "Which?", "target": "red"}\n', ["train.jsonl:1:", "'document'"]),
    ("train.jsonl", ROW * 9, ["train.jsonl", "two different documents"]),
    ("qrels/test.tsv", HEADER + "q0\td0\t9223372036854775808\n", ["test.tsv:2:", "nine"]),
    ("qrels/test.tsv", HEADER + "q0\td0\t1_0\n", ["test.tsv:2:", "nine"]),
    ("qrels/test.tsv", HEADER + "q0\td0\tyes\n", ["test.tsv:2:", "number"])])
def test_broken_files(flags, out, collection_folder, file, text, says):
    (collection_folder / file).write_text(text)
    message = refused(train.main, out, *flags)
    assert all(part in message for part in says)
    if file != "train.jsonl":
        assert refused(evaluate.main, out, "--model", "bm25", "--data", collection_folder) == message


@pytest.mark.parametrize("pack", [bytes, lambda line: gzip.compress(line, 1)])
def test_a_line_of_100_mb_is_refused_without_reading_it_all(flags, out, collection_folder, pack):
    """Tokenizers would need a hundred times its length. SQuAD's file is one line, and may be as long as it is."""
    corpus = collection_folder / "corpus.jsonl"
    line = DOCUMENTS.encode() + b'{"_id": "x", "text": "' + b"word " * 20_000_000 + b'"}\n'
    corpus.unlink()
    (corpus if pack is bytes else corpus.with_name("corpus.jsonl.gz")).write_bytes(pack(line))
    tracemalloc.start()
    for main, more in ((train.main, flags), (evaluate.main, ["--model", "bm25", "--data", collection_folder])):
        tracemalloc.reset_peak()
        assert "corpus.jsonl" in (message := refused(main, out, *more)) and ":9: a line of more than 10,000,000 bytes" in message
        assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    with pytest.raises(BadInput, match="not JSON"):
        data.main(["squad", str(next(collection_folder.glob("corpus.*"))), str(out)])


@pytest.mark.parametrize("name", ["x y", "x\ty", "", "x\u2028y", "x ", "x\n"])
def test_ids_that_a_run_file_cannot_hold_are_refused_before_any_work(out, collection_folder, tmp_path, monkeypatch, name):
    """Everywhere else they are read as they are."""
    with open(collection_folder / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": name, "text": "text"}) + "\n")
    assert len(load_corpus(collection_folder)) == 9
    evaluation = ["--model", "bm25", "--data", str(collection_folder)]
    evaluate.main(evaluation)
    monkeypatch.setattr(evaluate, "retrieve", lambda *_, **__: pytest.fail("must be refused before any work is done"))
    assert repr(name) in refused(evaluate.main, out, *evaluation, "--run", tmp_path / "out.run")


@pytest.mark.parametrize("name", ["日本", "é", "../../x", "x'\"%{}", "x" * 500, "\u200b"])
def test_other_ids_are_kept_as_they_are(collection_folder, tmp_path, name):
    for file in (collection_folder / "corpus.jsonl", collection_folder / "qrels" / "test.tsv"):
        file.write_text(file.read_text().replace("d3", name if file.suffix == ".tsv" else json.dumps(name)[1:-1]))
    evaluate.main(["--model", "bm25", "--data", str(collection_folder), "--run", str(tmp_path / "run")])
    assert sum(line.split(" ")[2] == name for line in (tmp_path / "run").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["query", "target"])
def test_questions_and_targets_that_do_not_fit_the_llm_are_refused(flags, out, collection_folder, short_folder, name):
    row = {"query": "Which?", "target": "red", "document": "d0"}
    with open(collection_folder / "train.jsonl", "a") as file:
        file.write(json.dumps({**row, name: "very long " * 40}) + "\n")
    assert "context holds 256" in refused(train.main, out, *flags, "--backbone", short_folder, "--pool", "2")


def test_missing_folders_and_splits(flags, out, tmp_path, collection_folder):
    none, evaluation = tmp_path / "none", ["--model", "bm25", "--data"]
    both = f"{collection_folder},{none}"
    for message in (refused(train.main, out, *flags, "--data", none), refused(train.main, out, *flags, "--eval", both),
                    refused(evaluate.main, out, *evaluation, none), refused(evaluate.main, out, *evaluation, both)):
        assert message == f"{none}: no such folder"
    message = refused(evaluate.main, out, *evaluation, collection_folder, "--split", "dev")
    assert message == f"{collection_folder / 'qrels' / 'dev.tsv'}: no such split; there: test"
    write_collection(none)
    assert "--run" in refused(evaluate.main, out, *evaluation, both, "--run", tmp_path / "out.run")


def test_a_long_document_is_cut_and_reported_once(flags, out, collection_folder, capsys):
    lines = (collection_folder / "corpus.jsonl").read_text().splitlines()
    lines[3] = '{"_id": "d3", "text": "%s"}' % ("very long " * 30)
    (collection_folder / "corpus.jsonl").write_text("\n".join(lines))
    train.main([*flags, "--out", str(out), "--steps", "4", "--document-tokens", "100"])
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if "--document-tokens" in line]
    assert len(told) == 1 and told[0].startswith("1 of 8 documents") and "100 tokens" in told[0]
    assert (out / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("flag", ["--backbone", "--llm"])
@pytest.mark.parametrize("pool, more", [("8", ""), ("2", " and black" * 12)])  # too many; one that is too long
def test_a_pool_must_fit_the_context(flags, out, short_folder, collection_folder, monkeypatch, flag, pool, more):
    corpus = collection_folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("black", "black" + more))
    monkeypatch.setattr(train, "measured", lambda *_, **__: pytest.fail("must be refused before any work is done"))
    message = refused(train.main, out, *flags, flag, short_folder, "--pool", pool)
    assert "context holds 256" in message and "fewer or shorter documents" in message


@pytest.mark.parametrize("room, fits", [(0, True), (-1, False)])
def test_the_context_check_is_exact(flags, out, tmp_path, collection_folder, room, fits):
    prompts, corpus = Prompts(tiny_tokenizer(), 128), load_corpus(collection_folder)
    longest = prompts.context(corpus.values())[0].shape[1] + prompts.suffixes(load_examples(collection_folder))[0].shape[1] - 1
    again = [*flags, "--backbone", save_tiny(tmp_path / "llm", max_position_embeddings=longest + room), "--pool", "8"]
    if fits:
        train.main([*again, "--out", str(out)])
        assert (out / "result.json").is_file()
    else:
        assert f"the input has {longest} tokens" in refused(train.main, out, *again)


def test_what_cannot_be_written_is_refused_before_any_work(flags, out, tmp_path, collection_folder, monkeypatch):
    for module in (train, evaluate):
        monkeypatch.setattr(module, "load_collections", lambda *_: pytest.fail("must be refused before any work is done"))
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(BadInput, match="is not a folder that can be written to"):
            train.main([*flags, "--out", str(tmp_path / place)])
    for flag in ("--out", "--run"):
        with pytest.raises(BadInput, match="cannot be written"):
            evaluate.main(["--model", "bm25", "--data", str(collection_folder), flag, str(tmp_path / "none" / "x")])
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for all but root
    with pytest.raises(BadInput, match="is not a folder that can be written to"):
        train.main([*flags, "--out", str(tmp_path / "new")])


def test_where_the_system_lets_nobody_write(flags, collection_folder):
    """Even root can make no folder in /proc; others are told before they try."""
    of_training = "cannot be written" if os.access("/proc", os.W_OK) else "is not a folder that can be written to"
    for main, more in ((train.main, [*flags, "--out", "/proc/none"]), (data.main, ["split", str(collection_folder), "/proc/none", "--share", ".3"]),
                       (evaluate.main, ["--model", flags[1], "--data", str(collection_folder), "--device", "cpu", "--cache", "/proc/none"]),
                       (evaluate.main, ["--model", "bm25", "--data", str(collection_folder), "--out", "/dev/full"])):
        with pytest.raises(BadInput, match=of_training if main is train.main else "cannot be written|No space left") as error:
            main(more)
        assert len(str(error.value).splitlines()) == 1


def test_no_collection(out):
    assert "names no folder" in refused(evaluate.main, out, "--model", "bm25", "--data", ",")


def test_two_collections_of_one_name(flags, out, tmp_path):
    both = f"{write_collection(tmp_path / 'a' / 'same')},{write_collection(tmp_path / 'b' / 'same')}"
    assert "two collections are called 'same'" in refused(train.main, out, *flags, "--eval", both)


@pytest.mark.parametrize("device", ["cuda", "abacus", "meta"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there(flags, out, device):
    assert f"the device {device!r} is not there" in refused(train.main, out, *flags, "--device", device)


def test_a_run_that_diverges_stops_and_saves_no_retriever(flags, out):
    train.main([*flags, "--out", str(out)])  # an earlier run in the same folder is not mixed with this one
    with pytest.raises(BadInput, match="step [2-9]: the loss or its gradient is not a number"):
        train.main([*flags, "--out", str(out), "--lr", "1e9", "--steps", "9"])
    assert not (out / "adapter_model.safetensors").exists() and not (out / "result.json").exists()


@pytest.mark.parametrize("name", ["SmolLM3-135M", "./none", "a/b/c", "none.gguf"])
def test_an_unknown_backbone_lists_the_choices(flags, out, collection_folder, name):
    for message in (refused(train.main, out, *flags, "--backbone", name),
                    refused(train.main, out, *flags, "--llm", name),
                    refused(evaluate.main, out, "--model", name, "--data", collection_folder)):
        assert repr(name) in message and all(choice in message for choice in BACKBONES)


@pytest.mark.parametrize("files", [{}, {"config.json": "{"}, {"config.json": "{}"}, {"README.md": "# Notes"}])
def test_a_folder_that_is_not_a_backbone(flags, out, tmp_path, collection_folder, files):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    for message in (refused(train.main, out, *flags, "--backbone", folder),
                    refused(evaluate.main, out, "--model", folder, "--data", collection_folder)):
        assert message.startswith(f"cannot load the backbone {str(folder)!r}: ") and "be reached" not in message


def change(folder, file, **values):
    """Other values in a JSON file of a model; None takes a key away."""
    content = {**json.loads((folder / file).read_text()), **values}
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def weights(folder, at=None, **tensors):
    """Cut a model's weight file, or replace some of its tensors."""
    path = folder / "model.safetensors"
    if at is not None:
        path.write_bytes(path.read_bytes()[:at])
    else:
        save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage, says", [
    (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda f: weights(f, -1000), "deserializing"), (lambda f: weights(f, 0), "deserializing"), (lambda f: weights(f, 5), "deserializing"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4000), "header too large"),
    (lambda f: weights(f, **{"model.norm.weight": torch.full((32,), torch.nan)}), "model.norm.weight has values that are no numbers"),
    (lambda f: change(f, "config.json", num_hidden_layers=99), "weights are not in its files"),
    (lambda f: change(f, "config.json", hidden_size="wide"), "hidden_size"), (lambda f: (f / "config.json").write_bytes(b"\xff{"), "config"),
    (lambda f: (f / "tokenizer.json").write_text('{"half'), "cannot load"), (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    (lambda f: change(f, "tokenizer_config.json", eos_token=None, pad_token=None), "eos_token"),
    (lambda f: change(f, "config.json", model_type="t5"), "t5")])
def test_a_damaged_or_unsuitable_backbone_is_refused(flags, out, tiny_folder, tmp_path, collection_folder, damage, says):
    """As retriever, as judge and where it is measured."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    damage(folder)
    for main, more in ((train.main, [*flags, "--backbone", folder]), (train.main, [*flags, "--llm", folder]),
                       (evaluate.main, ["--model", folder, "--data", collection_folder, "--device", "cpu"])):
        assert says in refused(main, out, *more)


def test_a_tokenizer_of_another_model_is_refused(flags, out, tmp_path, collection_folder):
    """Its tokens would be rows that the embedding does not have."""
    small = save_tiny(tmp_path / "small", vocab_size=100)
    for main, more in ((train.main, [*flags, "--backbone", small]), (train.main, [*flags, "--llm", small]),
                       (evaluate.main, ["--model", small, "--data", collection_folder, "--device", "cpu"])):
        assert "its tokenizer has 257 tokens, the model knows 100" in refused(main, out, *more)


def test_a_tokenizer_without_pad_is_as_good_as_any(flags, out, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for name, backbone in (("with", tiny_folder), ("without", folder)):
        train.main([*flags, "--backbone", str(backbone), "--out", str(tmp_path / name)])
        change(folder, "tokenizer_config.json", pad_token=None)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == two


def test_a_model_that_predicts_no_next_token_cannot_judge(flags, out, tmp_path):
    BertModel(BertConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    assert "predicts no next token" in refused(train.main, out, *flags, "--backbone", tmp_path / "bert")
    assert "cannot load the backbone" in refused(train.main, out, *flags, "--llm", tmp_path / "bert")


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json", "adapter_config.json"])
def test_a_model_s_folder_is_no_place_for_a_run(flags, tmp_path, name):
    """Its files would be read with the run's: an exported tokenizer, for one, appends the suffix once more."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match=f"a model is there \\({name}\\)"):
        train.main([*flags, "--out", str(tmp_path)])
    assert (tmp_path / name).read_text() == "{}" and not (tmp_path / "retriever.json").exists()


@pytest.mark.parametrize("files", [{"retriever.json": "{}"}, {"retriever.json": "{", "adapter_config.json": "{}"}])
def test_half_a_retriever(out, tmp_path, collection_folder, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    message = refused(evaluate.main, out, "--model", tmp_path, "--data", collection_folder)
    assert message.startswith(f"{tmp_path}: not a whole retriever folder")


@pytest.mark.parametrize("module, function, says", [
    (model, "write_adapter", "not a whole retriever folder (lacks adapter_config.json)"), (model, "write_json", "training has not ended there"),
    (train, "score_heads", "training has not ended there")])
def test_a_run_that_has_not_ended_is_no_model(flags, tmp_path, collection_folder, monkeypatch, module, function, says):
    run = tmp_path / "run"

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, function, interrupted)
        train.main([*flags, "--out", str(run)])
    assert run.is_dir() and not (run / "adapter_config.json").exists()
    assert says in refused(evaluate.main, tmp_path / "out", "--model", run, "--data", collection_folder)


def test_a_model_that_has_no_linear_layers_is_refused_by_that_name(out, flags, tmp_path):
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=2048, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    assert "--backbone: gpt2 has no torch.nn.Linear layers" in refused(train.main, out, *flags, "--backbone", tmp_path / "gpt2")


def test_flags_that_exclude_each_other(flags, out):
    assert "--checkpoint and --compile do not go together" in refused(train.main, out, *flags, "--checkpoint", "--compile")


POSITIVE = ["--heads", "--temperature", "--questions", "--neighbours", "--document-tokens",
            "--steps", "--lr", "--clip", "--lora-rank", "--accumulate"]


@pytest.mark.parametrize("flag, value", [
    *((flag, value) for flag in POSITIVE for value in ("0", "-1")), ("--heads", "13"), ("--pool", "1"), ("--embed-chunk", "-1"), ("--save-every", "-1"),
    *((flag, "9" * 20) for flag in ("--seed", "--lora-rank", "--document-tokens", "--embed-chunk", "--questions", "--steps", "--pool")), ("--lora-rank", "33"),
    ("--seed", "-99999999999"), ("--lr", "1e300"), ("--temperature", "1e300"), ("--lora-targets", "q_proj,k_prjo"), ("--backbone", ""), ("--data", " "), ("--prompt", "{text} {text}"),
    ("--pool", "-4"), ("--final-temperature", "-.1"), ("--prompt", "no place for it"), ("--query-prompt", "query: "),
    ("--query-prompt", "query: {text}"), ("--lora-targets", "q_prjo"), ("--lr", "inf"), ("--temperature", "inf"),
    *((flag, "nan") for flag in ("--temperature", "--lr", "--clip", "--final-temperature"))])
def test_impossible_hyperparameters(flags, out, flag, value):
    assert flag in refused(train.main, out, *flags, f"{flag}={value}")


@pytest.mark.parametrize("main, wrong, says", [
    (train.main, ["--temprature", ".02"], "--temprature"), (train.main, ["--temp", ".02"], "--temp"),
    (train.main, ["--steps", "ten"], "--steps"), (train.main, ["--heads", "nan"], "--heads"),
    (train.main, ["--objective", "none"], "'infonce'"), (train.main, ["more"], "more"),
    (evaluate.main, ["--splits", "test"], "--splits"), (evaluate.main, ["--spl", "test"], "--spl")])
def test_wrong_flags_are_never_guessed(flags, out, capsys, collection_folder, main, wrong, says):
    right = flags if main is train.main else ["--model", "bm25", "--data", str(collection_folder)]
    with pytest.raises(SystemExit) as stop:
        main([*right, *wrong, "--out", str(out)])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "error: " in told and says in told and not out.exists()


@pytest.mark.parametrize("script, wrong, says", [
    ("evaluate.py", ["--model", "bm25", "--data", "broken", "--out", "out"], "corpus.jsonl:9:"),
    ("data.py", ["split", "broken", "out"], "corpus.jsonl:9:"), ("export.py", ["none", "out"], "none: no such folder")])
def test_a_script_run_as_a_command_says_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys, script, wrong, says):
    with open(write_collection(tmp_path / "broken") / "corpus.jsonl", "a") as file:
        file.write("not JSON\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / script), *wrong])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    said = capsys.readouterr()
    told = [line for line in said.err.replace("\r", "\n").split("\n") if line.strip() and "%|" not in line]
    assert stop.value.code == 2 and len(told) == 1 and told[0].startswith(f"{script}: ") and says in told[0]
    assert not said.out and not (tmp_path / "out").exists()


def test_too_little_memory_is_one_line_and_another_error_is_not(monkeypatch, capsys):
    def fails(message, kind=RuntimeError):
        raise kind(message)

    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    for message in ("CUDA out of memory. Tried to allocate", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nto allocate 9 bytes"):
        with pytest.raises(SystemExit) as stop:
            data.command(lambda: fails(message))
        assert stop.value.code == 2 and capsys.readouterr().err == f"evaluate.py: not enough memory: {' '.join(message.split())}\n"
    with pytest.raises(SystemExit, match="2"):
        data.command(lambda: fails("Unable to allocate 9 GiB", MemoryError))
    with pytest.raises(RuntimeError, match="shapes"):
        data.command(lambda: fails("shapes"))


@pytest.mark.parametrize("flag, value, says", [("--eval", "x" * 300, "File name too long"), ("--data", "x" * 300, "File name too long"), ("--out", "x" * 300, "too long"),
                                               ("--out", os.fsdecode(b"\xff"), "not UTF-8")])
def test_what_the_system_refuses_is_one_line_too(flags, tmp_path, monkeypatch, capsys, flag, value, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py"), *flags, "--out", str(tmp_path / "out"), flag, value])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    told = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(told) == 1 and told[0].startswith("train.py: ") and says in told[0] and not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_are_refused_by_a_process(flags, tmp_path):
    run = subprocess.run([sys.executable, ROOT / "train.py", *flags, "--out", tmp_path / "out", "--prompt", b"\xff{text}"], capture_output=True, cwd=tmp_path)
    told = run.stderr.decode(errors="replace").splitlines()
    assert run.returncode == 2 and len(told) == 1 and told[0].startswith("train.py: ") and "not UTF-8" in told[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong, says", [
    (["squad", "broken/corpus.jsonl", "out"], "broken/corpus.jsonl:2: not JSON"),
    (["split", "broken", "out"], "broken/corpus.jsonl:9: not a line of JSON"), (["split", "none", "out"], "none: no such folder"),
    (["jsonl", "broken/train.jsonl", "broken", "out"], "broken/corpus.jsonl:9:"),
    (["qrels", "broken", "broken/train.jsonl", "out"], "broken/qrels/train.tsv: no such file; --split")])
def test_data_commands_refuse_what_is_broken(tmp_path, monkeypatch, wrong, says):
    with open(write_collection(tmp_path / "broken") / "corpus.jsonl", "a") as file:
        file.write("not JSON\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as error:
        data.main(wrong)
    assert str(error.value).startswith(says) and len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("wrong, says", [
    ([], "command"), (["squat", "a", "b"], "'squat'"), (["squad", "a"], "out"), (["split", "a", "b", "--shar", ".1"], "--shar"),
    (["split", "a", "b", "--share", "few"], "--share"), (["jsonl", "a", "b", "c", "--field", "x"], "--field"), (["beir", "x"], "out")])
def test_data_commands_never_guess(tmp_path, capsys, monkeypatch, wrong, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        data.main(wrong)
    told = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "error: " in told and says in told and not list(tmp_path.iterdir())


def test_every_data_command_is_listed_and_explains_itself(capsys):
    for arguments in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            data.main([*arguments, "--help"])
        told = capsys.readouterr().out
        assert stop.value.code == 0 and all(name in told for name in (arguments or COMMANDS))
