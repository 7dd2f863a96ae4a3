"""PEFT's format in both directions against peft itself, and adapters as the published cards lay them out."""
import json

import pytest
import torch
from conftest import save_tiny, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import adapters
from adapters import read_adapter
from backbones import Backbone
from data import BadInput
from model import Retriever

TEXTS = ["a", "two words", "Which of these texts is the longest of them all?", "long " * 200]
DOWN, FIRST = r".*layers\.[12].*down_proj", r"layers\.0\.self_attn\.q_proj"
LAYOUTS = {  # what LoraConfig is given
    "plain": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    "rank pattern": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2, FIRST: 6}),
    "alpha pattern": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], alpha_pattern={FIRST: 40, "up_proj": 1}),
    "both": dict(r=2, lora_alpha=3, target_modules=["k_proj", "up_proj"], rank_pattern={"k_proj": 5}, alpha_pattern={"k_proj": 30}),
    "rslora": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], use_rslora=True),
    "rslora with ranks": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], use_rslora=True, rank_pattern={"up_proj": 9}),
    "expression": dict(r=4, lora_alpha=8, target_modules=DOWN),
    "all but some": dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["o_proj", "layers.1.mlp.up_proj"]),
    "gaussian": dict(r=4, lora_alpha=8, target_modules=["v_proj"], init_lora_weights="gaussian", lora_dropout=0.5)}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="compares with peft; make test installs it")


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def base(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param, seed=3)


def train(peft, base, folder, build=AutoModelForCausalLM, task="CAUSAL_LM", **how):
    """An adapter that peft made, with random tensors, saved by peft -> peft's model."""
    torch.manual_seed(5)
    made = peft.get_peft_model(build.from_pretrained(base), peft.LoraConfig(task_type=task, **how))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    made.save_pretrained(folder)
    return made.eval()


@torch.no_grad()
def embed(model, rows):
    """The last hidden state of the last token, unit norm, by peft's model alone."""
    hidden = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1] for row in rows]
    return torch.nn.functional.normalize(torch.stack(hidden), dim=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_peft_saved_loads_here(peft, base, layout, tmp_path, measured):
    theirs = train(peft, base, tmp_path, **LAYOUTS[layout])
    ours = Retriever.load(tmp_path, device="cpu")
    expected = embed(theirs, tiny_tokenizer()(TEXTS, truncation=True, max_length=512).input_ids)  # no prompt, suffix or EOS
    for kind in ("query", "document"):
        measured("a LoRA trained by peft loads here (rank and alpha patterns, rsLoRA, expressions): embeddings", "peft", 1e-5,
                 (ours.encode(TEXTS, kind) - expected).abs().max())
    with ours.adapters_off():
        assert (ours.encode(TEXTS) - expected).abs().max() > 0.05
    assert (ours.pooling, ours.max_tokens, ours.normalize, ours.name) == ("lasttoken", 512, True, base)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_here_loads_in_peft_with_the_same_embeddings(peft, base, layout, tmp_path, measured):
    train(peft, base, tmp_path / "theirs", **LAYOUTS[layout])
    ours = Retriever.load(tmp_path / "theirs", device="cpu")
    ours.save(tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours").eval()
    found = embed(model, ours.tokenize(TEXTS, "query"))
    measured("a folder saved here opens in PeftModel.from_pretrained: embeddings", "peft", 1e-5, (found - ours.encode(TEXTS)).abs().max())
    again = Retriever.load(tmp_path / "ours", device="cpu")
    assert torch.equal(again.encode(TEXTS), ours.encode(TEXTS))
    for name, layer in again.adapters().items():
        assert (layer.rank, layer.alpha) == (ours.adapters()[name].rank, ours.adapters()[name].alpha)


def test_an_adapter_is_used_as_the_published_cards_use_theirs(peft, base, tmp_path, measured):
    """A batch padded on the right, cut at 512 tokens, without EOS; the last hidden state at the last token that is no padding."""
    theirs = train(peft, base, tmp_path, r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "right"
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    assert batch.input_ids.shape == (len(TEXTS), 512) and batch.attention_mask.sum(1).min() == 1
    with torch.no_grad():
        hidden = theirs(**batch, output_hidden_states=True).hidden_states[-1]
    last = hidden[torch.arange(len(TEXTS)), batch.attention_mask.sum(1) - 1]
    found = Retriever.load(tmp_path, device="cpu").encode(TEXTS, "document")
    measured("an adapter laid out like the published cards (last token, no EOS, 512 tokens): embeddings", "peft", 1e-5,
             (found - torch.nn.functional.normalize(last, dim=-1)).abs().max())


def test_layers_named_without_the_vocabulary_head_load_too(peft, base, tmp_path):
    theirs = train(peft, base, tmp_path, AutoModel, "FEATURE_EXTRACTION", **LAYOUTS["both"])
    assert "base_model.model.layers.0.mlp.up_proj.lora_A.weight" in load_file(tmp_path / "adapter_model.safetensors")
    ours = Retriever.load(tmp_path, device="cpu")
    torch.testing.assert_close(ours.encode(TEXTS), embed(theirs, ours.tokenize(TEXTS, "query")), atol=1e-5, rtol=0)


def test_half_precision_adapters_are_read_as_float32(peft, base, tmp_path):
    train(peft, base, tmp_path, **LAYOUTS["plain"])
    path = tmp_path / "adapter_model.safetensors"
    expected = Retriever.load(tmp_path, device="cpu").encode(TEXTS)
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    made = Retriever.load(tmp_path, device="cpu")
    assert all(p.dtype == torch.float32 for p in made.parameters())
    assert (made.encode(TEXTS) * expected).sum(1).min() > 0.99


def test_a_base_known_by_its_hub_id_is_found_by_its_short_name(peft, base, tmp_path, monkeypatch):
    """So that packaged weights serve an adapter that names the hub."""
    train(peft, base, tmp_path, **LAYOUTS["plain"])
    expected = Retriever.load(tmp_path, device="cpu").encode(TEXTS)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for hub, short in (("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"), ("meta-llama/Llama-3.2-3B", "Llama-3.2-3B"),
                       ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M"), ("someone/else", "someone/else"), (base, base)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": hub}))
        assert read_adapter(str(tmp_path)).base == short
    monkeypatch.setitem(adapters.BACKBONES, base, Backbone("owner/base", "0M", "none"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "owner/base"}))
    assert read_adapter(str(tmp_path)).base == base
    monkeypatch.setattr("backbones.find_backbone", lambda name: name)
    assert torch.equal(Retriever.load(tmp_path, device="cpu").encode(TEXTS), expected)


def test_an_adapter_with_a_tokenizer_of_its_own_keeps_it(peft, base, tmp_path):
    train(peft, base, tmp_path / "theirs", **LAYOUTS["plain"])
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["words"])
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(tmp_path / "theirs")
    ours = Retriever.load(tmp_path / "theirs", device="cpu")
    assert ours.tokenize(["two words"], "query")[0][-1] == 257
    ours.save(tmp_path / "ours")
    assert Retriever.load(tmp_path / "ours", device="cpu").tokenize(["two words"], "query") == ours.tokenize(["two words"], "query")


# --------------------------------------------------------------------------------------------------------- refused


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(4, 8, targets={"q_proj", "up_proj"})
    made.save(folder := tmp_path_factory.mktemp("saved"))
    (folder / "retriever.json").unlink()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refused(folder, message):
    with pytest.raises(BadInput, match=message) as error:
        Retriever.load(folder, device="cpu")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("changes, message", [
    ({"peft_type": "IA3"}, "peft_type = IA3; known here: LORA"), ({"peft_type": None}, "peft_type = None"),
    ({"use_dora": True}, "use_dora = true; not supported"), ({"bias": "all"}, 'bias = "all"'), ({"bias": "lora_only"}, 'bias = "lora_only"'),
    ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\]'), ({"layers_to_transform": [0]}, r"layers_to_transform = \[0\]"),
    ({"layers_pattern": "layers"}, "layers_pattern"), ({"fan_in_fan_out": True}, "fan_in_fan_out = true"), ({"lora_bias": True}, "lora_bias"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"), ({"use_qalora": True}, "use_qalora"), ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa, which changes the base"), ({"init_lora_weights": "olora"}, "olora"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"), ({"megatron_config": {"a": 1}}, "megatron_config"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"), ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    ({"target_parameters": ["mlp.up_proj"]}, "target_parameters"), ({"revision": "v2"}, 'revision = "v2"'),
    ({"something_new": 1}, "something_new = 1; not supported"), ({"base_model_name_or_path": None}, "base_model_name_or_path = None"),
    ({"r": "4"}, "r = '4', which is not as PEFT writes it"), ({"r": None}, "r = None"), ({"target_modules": None}, "target_modules = None"),
    ({"rank_pattern": ["q"]}, "rank_pattern"), ({"target_modules": "(q"}, "no regular expression: .q"), ({"alpha_pattern": {"(q": 2}}, "no regular expression"),
    ({"target_modules": ["q_proj", "up_proj", "k_proj"]}, "lacks base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"),
    ({"r": 5}, "q_proj.lora_A.weight, or has it in another shape"), ({"rank_pattern": {"up_proj": 2}}, "up_proj.lora_A.weight, or has it in another shape"),
    ({"target_modules": ["q_proj"]}, "tensors that fit nowhere: model.layers.0.mlp.up_proj"),
    ({"exclude_modules": ["q_proj"]}, "tensors that fit nowhere: model.layers.0.self_attn.q_proj"), ({"target_modules": []}, "tensors that fit nowhere"),
    ({"target_modules": [1]}, r"target_modules = \[1\]"), ({"r": 0}, "r = 0, which"), ({"r": -1}, "r = -1"), ({"r": True}, "r = True"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern = 0"), ({"rank_pattern": {"q_proj": 4.0}}, "rank_pattern = 4.0"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern = None"), ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern = 'x'"),
    ({"lora_alpha": float("nan")}, "lora_alpha = nan"), ({"use_rslora": "yes"}, "use_rslora = 'yes'"), ({"base_model_name_or_path": ""}, "names no base"),
    ({"base_model_name_or_path": "./nowhere"}, "unknown backbone './nowhere'")])
def test_what_is_not_supported_is_refused_by_name(folder, changes, message):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    refused(folder, message)


def test_every_field_of_peft_is_either_read_or_known_or_refused(peft, folder):
    """A default configuration of the installed peft passes, so that nobody is refused for a field that is off."""
    default = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM").to_dict()
    default = {key: sorted(value) if isinstance(value, set) else value for key, value in default.items()}
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**default, "base_model_name_or_path": config["base_model_name_or_path"]}, default=str))
    assert len(Retriever.load(folder, device="cpu").adapters()) == 6


@pytest.mark.parametrize("key, message", [
    ("base_model.model.lm_head.lora_A.weight", "fit nowhere: lm_head"), ("base_model.model.model.embed_tokens.lora_embedding_A", "fit nowhere: base_model"),
    ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", "fit nowhere: model.layers.9"),
    ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", "fit nowhere: base_model.*magnitude")])
def test_tensors_that_fit_nowhere_are_refused(folder, key, message):
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), key: torch.zeros(4, 32)}, path)
    refused(folder, message)


def test_a_pickled_adapter_is_not_read(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, "lacks adapter_model.safetensors; adapters in pickled files are not read")


def test_an_adapter_on_an_adapter_is_refused(folder, tmp_path):
    config = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (tmp_path / "second" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    refused(tmp_path / "second", "an adapter of PEFT, where whole weights are needed")


def test_an_adapter_on_a_model_that_is_not_causal_says_nothing_of_its_pooling(peft, tmp_path):
    from test_peers import save_plain

    save_plain(tmp_path / "bert", "bert")
    train(peft, tmp_path / "bert", tmp_path / "adapter", AutoModel, "FEATURE_EXTRACTION", r=2, lora_alpha=2, target_modules=["query"])
    refused(tmp_path / "adapter", "an adapter on bert, .* its pooling is not stated")


def test_a_backbone_on_the_command_line_is_no_adapter(tiny_folder):
    assert read_adapter(tiny_folder) is None and read_adapter("SmolLM2-135M") is None and read_adapter("no such name") is None


@pytest.mark.real
def test_an_adapter_that_names_the_hub_gets_the_packaged_weights(peft, real, tmp_path, measured):
    tokenizer, llm = real
    ours = Retriever("SmolLM2-135M", tokenizer, llm)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 3}, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(llm, config)
    try:
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter.data, std=0.05)
        theirs.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        theirs.save_pretrained(tmp_path)
        expected = embed(theirs.eval(), tokenizer(TEXTS, truncation=True, max_length=512).input_ids)
    finally:
        theirs.unload()  # the weights are shared with other tests
    loaded = Retriever.load(tmp_path, device="cpu")
    assert loaded.name == "SmolLM2-135M" and len(loaded.adapters()) == 60 and not ours.adapters()
    measured("peft's LoRA on SmolLM2-135M: embeddings", "peft", 1e-5, (loaded.encode(TEXTS) - expected).abs().max())
