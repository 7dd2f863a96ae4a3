"""Embeddings on disk: the same numbers, never another model's. What kill -9 leaves: test_faults.py."""
import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, RobertaForMaskedLM

import cache
import evaluate
from cache import Cache, digest, identity
from conftest import ROOT, tiny_llm, tiny_tokenizer
from data import BadInput, Collection
from model import Retriever

TEXTS = [f"text {i} " + "and more " * (i % 7) for i in range(50)]


def retriever(**changes):
    return Retriever("tiny", tiny_tokenizer(), tiny_llm(), **changes)


def counting(made):
    """A retriever that notes how many texts it encodes."""
    encode, made.encoded = made.encode, 0

    def count(texts, *args, **options):
        made.encoded += len(texts)
        return encode(texts, *args, **options)

    made.encode = count
    return made


def test_the_second_time_embeddings_are_read_and_the_same(tmp_path):
    plain = retriever()
    first, second = counting(retriever()), counting(retriever())
    for made, found in ((first, 0), (second, 50)):
        cached = Cache(made, tmp_path / "cache")
        assert torch.equal(cached.encode(TEXTS, "document"), plain.encode(TEXTS, "document"))
        assert cached.found == found and made.encoded == 50 - found
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("change", [
    {"prompts": {"query": "query: ", "document": "text: "}}, {"suffix": ""}, {"suffix": " in a word:"}, {"max_tokens": 40}, {"pooling": "mean"}, {"normalize": False}])
def test_other_settings_are_other_embeddings_and_said_so(tmp_path, change, capsys):
    Cache(retriever(), tmp_path).encode(TEXTS, "document")
    other = retriever(**change)
    cached = Cache(other, tmp_path)
    assert torch.equal(cached.encode(TEXTS, "document"), other.encode(TEXTS, "document")) and cached.found == 0
    assert "made anew" in capsys.readouterr().err


def test_other_weights_other_tokens_and_other_kinds_have_other_keys():
    keys = {identity(retriever(), "document"), identity(retriever(), "query")}
    one_weight, trained, retokenized = retriever(), retriever(), retriever()
    one_weight.llm.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3
    trained.add_lora(4, 8)
    retokenized.tokenizer.add_tokens(["text"])
    cut_in_front = retriever()
    cut_in_front.tokenizer.truncation_side = "left"
    keys |= {identity(made, "document") for made in (one_weight, trained, retokenized, cut_in_front)}
    assert len(keys) == 6 and identity(retriever(), "document") in keys
    for alpha in (8, 64):  # the same tensors, scaled otherwise
        scaled = retriever()
        scaled.add_lora(4, alpha)
        keys.add(identity(scaled, "document"))
    with scaled.adapters_off():
        keys.add(identity(scaled, "document"))
    assert len(keys) == 8
    moved = retriever()
    moved.llm.config._name_or_path = "elsewhere"
    assert identity(moved, "document") in keys


def test_other_code_has_other_keys(tmp_path, monkeypatch):
    before = identity(retriever(), "document")
    for path in ROOT.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    assert identity(retriever(), "document") == before
    for name, matters in (("model.py", True), ("attention.py", True), ("adapters.py", True), ("train.py", False)):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() + b"\n# changed")
        assert (identity(retriever(), "document") != before) == matters
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())


def test_texts_are_told_apart_wherever_they_are_cut():
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("ab", "c", "")}) == 4
    assert digest("ab", "c", "") == digest("ab", more=iter(["c", ""]))


@pytest.mark.parametrize("kind", [BertForMaskedLM, RobertaForMaskedLM])
def test_an_encoder_whose_files_lack_the_pooler_is_the_same_each_time(kind, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 257}
    kind(kind.config_class(**sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(1)
    one = Retriever.load(tmp_path, device="cpu")
    torch.manual_seed(2)
    assert "pooler.dense.weight" in one.llm.state_dict() and identity(one, "query") == identity(Retriever.load(tmp_path, device="cpu"), "query")


@pytest.mark.parametrize("damage", ["cut", "empty", "rows", "text", "header", "zip"])
def test_a_damaged_file_is_made_anew_with_a_word(tmp_path, damage, capsys):
    expected = Cache(retriever(), tmp_path).encode(TEXTS, "document")
    [path] = tmp_path.rglob("*.npy")
    whole = path.read_bytes()
    if damage == "rows":
        np.save(path, np.zeros((3, 32), np.float32))
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not an array" * 99,
                          "header": whole[:64] + bytes(64) + whole[128:], "zip": b"PK\3\4" + b"x" * 99}[damage])
    assert torch.equal(Cache(retriever(), tmp_path).encode(TEXTS, "document"), expected)
    assert "damaged" in capsys.readouterr().err and path.read_bytes() == whole


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--cache"):
        Cache(retriever(), tmp_path / "file").encode(TEXTS)


def test_a_full_disk_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(BadInput, match="No space left"):
        Cache(retriever(), tmp_path).encode(TEXTS)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["about.json"]


def test_what_is_not_a_number_is_not_kept(tmp_path):
    broken = retriever()
    broken.encode = lambda texts, kind, **_: torch.full((len(texts), 32), torch.nan)
    assert Cache(broken, tmp_path).encode(TEXTS).isnan().all() and not list(tmp_path.rglob("*.npy"))


def collection():
    corpus = {f"d{i}": text for i, text in enumerate(TEXTS * 4)}
    return Collection(corpus, {"q": "text 3", "r": "more"}, {"q": {"d3": 1}, "r": {"d9": 1}})


def test_the_cache_is_what_the_evaluator_uses(collection_folder, tiny_folder, tmp_path, capsys):
    arguments = ["--model", tiny_folder, "--data", str(collection_folder), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    evaluate.main(arguments)
    first = capsys.readouterr()
    evaluate.main(arguments)
    second = capsys.readouterr()
    assert first.out == second.out and "nDCG@10" in first.out
    assert "0 of 16 embeddings were read" in first.err and "16 of 16 embeddings were read" in second.err
    assert "is not known" in second.err and "is not known" not in first.err  # how many were cut
