"""The retriever: pooling, LoRA, and a saved folder that means the same everywhere."""
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import adapters
import backbones
import peers
from backbones import convert_gguf
from conftest import ROOT, save_tiny, tiny_llm, tiny_tokenizer
from data import BadInput
from model import BACKBONES, Retriever, load_backbone, pool

PLAIN = {"query": "", "document": ""}
TEXTS = ["a", "the third text is by far the longest of them all", "two words"]


def retriever(kind="llama", trained=True, **changes):
    made = Retriever("tiny", tiny_tokenizer(), tiny_llm(kind), **changes)
    made.add_lora(rank=4, alpha=8)
    if trained:  # B starts at zero; any other value stands for a trained adapter
        generator = torch.Generator().manual_seed(7)
        for layer in made.adapters().values():
            layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) / 10
    return made


def test_embedding_is_the_last_hidden_state_of_the_last_token_with_unit_norm(kind):
    made = retriever(kind)
    together = made.encode(TEXTS, "query")
    for text, vector in zip(TEXTS, together):
        ids = made.tokenizer('This sentence : "' + text + '" means in one word: "').input_ids
        hidden = made.llm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(vector, hidden / hidden.norm(), atol=1e-5, rtol=0)
    assert together.dtype == torch.float32 and together.shape == (3, 32)


@pytest.mark.parametrize("pooling", ["lasttoken", "cls", "mean"])
def test_pooling_reads_a_text_s_own_tokens_alone(pooling):
    generator = torch.Generator().manual_seed(0)
    hidden, lengths = torch.randn(3, 5, 4, generator=generator), torch.tensor([5, 1, 3])
    for row, length in enumerate(lengths):
        hidden[row, length:] = torch.nan  # padding
    own = [h[:n] for h, n in zip(hidden, lengths.tolist())]
    expected = {"lasttoken": [h[-1] for h in own], "cls": [h[0] for h in own], "mean": [sum(h) / len(h) for h in own]}[pooling]
    found = pool(hidden.nan_to_num(7.0) if pooling == "mean" else hidden, lengths, pooling)  # 0 x nan is nan
    torch.testing.assert_close(found, torch.stack(expected))
    assert pool(hidden.half().nan_to_num(7.0), lengths, pooling).dtype == torch.float32


def test_batches_do_not_matter():
    made = retriever()
    torch.testing.assert_close(made.encode(TEXTS, batch_tokens=1), made.encode(TEXTS), atol=1e-5, rtol=0)


def test_queries_and_documents_have_their_own_prompts():
    made = retriever(prompts={"query": "query: ", "document": ""}, suffix="")
    assert made.tokenizer.decode(made.tokenize(["x"], "query")[0]) == "query: x"
    assert made.tokenizer.decode(made.tokenize(["x"], "document")[0]) == "x"
    asked = retriever()
    for kind in ("query", "document"):
        assert asked.tokenizer.decode(asked.tokenize(["x"], kind)[0]) == 'This sentence : "x" means in one word: "'


def test_a_long_text_is_cut():
    made, expected = retriever(max_tokens=6, suffix="", prompts=PLAIN), tiny_tokenizer()("abcdefghijkl").input_ids
    assert made.tokenize(["abcdefghijkl"], "document") == [expected[:6]]
    assert made.tokenize(["abcdefghijkl"], "document", max_tokens=3) == [expected[:3]]
    assert made.tokenize(["abcdefghijkl"], "document", max_tokens=9) == [expected[:6]]  # its own length counts


def test_a_language_models_tokenizer_cuts_behind_whatever_its_files_say(tmp_path):
    """The judge reads a document's beginning, and so does the retriever, in training and afterwards."""
    file = Path(save_tiny(tmp_path / "tiny")) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation_side": "left"}))
    assert AutoTokenizer.from_pretrained(tmp_path / "tiny").truncation_side == "left"
    made = Retriever.load(str(tmp_path / "tiny"), device="cpu")
    made.add_lora(rank=2, alpha=4)
    made.save(tmp_path / "saved")
    for read in (made, Retriever.load(tmp_path / "saved", device="cpu")):
        assert "start" in read.tokenizer.decode(read.tokenize(["start" + "x" * 99], "document", max_tokens=60)[0])


def test_the_suffix_is_never_cut():
    made = retriever(max_tokens=9, suffix="=?", prompts={"query": "q:", "document": ""})
    decode = made.tokenizer.decode
    for text, limit, kind, expected in (("abcdefghijkl", None, "document", "abcdefg=?"), ("abcdefg", None, "document", "abcdefg=?"),
                                        ("abc", None, "document", "abc=?"), ("abcdefghijkl", 5, "document", "abc=?"),
                                        ("abcdefghijkl", None, "query", "q:abcde=?"), ("", 3, "document", "=?")):
        assert decode(made.tokenize([text], kind, max_tokens=limit)[0]) == expected
    for limit in (1, 2):
        with pytest.raises(BadInput, match=rf"{limit} tokens leave no room for a text beside the prompt '', the suffix '=\?'"):
            made.tokenize(["abc"], "document", max_tokens=limit)
    with pytest.raises(BadInput, match="4 tokens leave no room for a text beside the prompt 'q:'"):  # or all queries would be one
        made.tokenize(["abc"], "query", max_tokens=4)
    assert decode(made.tokenize(["abc"], "query", max_tokens=5)[0]) == "q:a=?"


def test_the_suffix_is_tokens_of_its_own():
    """Never joined with the text's last token, as a tokenizer would that reads both at once."""
    def joining():
        vocabulary = {symbol: i for i, symbol in enumerate(["<eos>", "a", "b", "ab"])}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")])), eos_token="<eos>")

    assert joining()("aab").input_ids == [1, 3]
    made = Retriever("tiny", joining(), tiny_llm(), prompts=PLAIN, suffix="b")
    assert made.tokenize(["aa"], "query") == [[1, 1, 2]]


def test_a_tokenizer_that_appends_eos_itself_keeps_it_when_a_text_is_cut():
    for suffix, expected in (("", "abcde<eos>"), ("=?", "abc<eos>=?")):
        made = retriever(max_tokens=6, suffix=suffix, prompts=PLAIN)
        made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
        assert made.tokenizer.decode(made.tokenize(["abcdefghijkl"], "document")[0]) == expected
    with pytest.raises(BadInput, match="and 1 tokens that the tokenizer adds"):
        made.tokenize(["abc"], "document", max_tokens=3)


def test_an_empty_text_has_an_embedding_too():
    vectors = retriever().encode(["", "x"], "document")
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_lora_is_on_every_linear_layer_but_the_head_and_equals_merged_weights(kind):
    made, merged = retriever(kind), tiny_llm(kind)
    linear = {n for n, m in merged.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    assert set(made.adapters()) == linear and len(linear) == 3 * 7
    for name, layer in made.adapters().items():
        merged.get_submodule(name).weight.data += 8 / 4 * layer.lora_B @ layer.lora_A
    with torch.no_grad():
        ids = torch.arange(1, 20)[None]
        torch.testing.assert_close(made.llm(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_adapters_off_is_the_untouched_llm_and_comes_back_on_after_an_error():
    made, plain, ids = retriever(), tiny_llm(), torch.arange(1, 20)[None]
    with_adapters = made.llm(ids).logits
    with pytest.raises(RuntimeError), made.adapters_off() as llm:
        assert torch.equal(llm(ids).logits, plain(ids).logits)
        raise RuntimeError
    assert torch.equal(made.llm(ids).logits, with_adapters)
    assert not torch.allclose(with_adapters, plain(ids).logits)


def test_an_untrained_adapter_changes_nothing_and_starts_as_seeded():
    made, ids = retriever(trained=False), torch.arange(1, 20)[None]
    assert torch.equal(made.llm(ids).logits, tiny_llm()(ids).logits)
    one, two = (list(r.adapters().values())[0].lora_A for r in (retriever(), retriever()))
    assert torch.equal(one, two) and one.abs().max() <= 32 ** -0.5 and one.std() > 0


def test_a_saved_folder_encodes_bit_for_bit_the_same_in_a_fresh_process(tiny_folder, tmp_path):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(rank=4, alpha=8)
    for layer in made.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    made = Retriever(tiny_folder, made.tokenizer, made.llm, {"query": "find: ", "document": "text: "}, " in a word:", max_tokens=20)
    made.save(tmp_path / "saved")
    again = Retriever.load(tmp_path / "saved", device="cpu")
    for name in ("prompts", "suffix", "suffix_ids", "max_tokens", "pooling", "normalize"):
        assert getattr(again, name) == getattr(made, name)
    script = ("import sys, torch; from model import Retriever; r = Retriever.load(sys.argv[1], device='cpu');"
              "torch.save([r.encode(sys.argv[3:], kind) for kind in ('query', 'document')], sys.argv[2])")
    subprocess.run([sys.executable, "-c", script, tmp_path / "saved", tmp_path / "vectors.pt", *TEXTS], cwd=ROOT, check=True)
    for kind, fresh in zip(("query", "document"), torch.load(tmp_path / "vectors.pt", weights_only=True)):
        assert torch.equal(made.encode(TEXTS, kind), fresh)


def test_a_saved_folder_on_the_hub_is_read_as_the_local_one(tiny_folder, tmp_path, monkeypatch):
    """With its prompts, suffix and length, not as an adapter that says nothing of them."""
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(rank=4, alpha=8)
    Retriever(tiny_folder, made.tokenizer, made.llm, {"query": "find: ", "document": "text: "}, " in a word:", max_tokens=40).save(tmp_path / "saved")
    real = peers.locate
    for module in (adapters, peers):
        monkeypatch.setattr(module, "locate", lambda source, name: real(str(tmp_path / "saved") if source == "owner/saved" else source, name))
    local, hub = (Retriever.load(name, device="cpu") for name in (tmp_path / "saved", "owner/saved"))
    assert (hub.prompts, hub.suffix, hub.max_tokens) == (local.prompts, " in a word:", 40) and torch.equal(hub.encode(TEXTS), local.encode(TEXTS))


def test_a_saved_folder_is_what_peft_reads(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="compares with peft; make test installs it")
    made = retriever(kind)
    made.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_llm(kind), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        n.replace(".default", "") for n, _ in theirs.named_parameters() if "lora_" in n}
    for text, vector in zip(TEXTS, made.encode(TEXTS, "document")):
        ids = torch.tensor([made.tokenize([text], "document")[0]])
        hidden = theirs(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(vector, hidden / hidden.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name, message", [
    ("Qwen9-0.5B", "choose one of SmolLM2-135M, .*Qwen2-0.5B"),
    ("./no/such/folder", "unknown backbone"),
    ("missing.gguf", "unknown backbone"),
])
def test_an_unknown_backbone_lists_the_choices(name, message):
    with pytest.raises(BadInput, match=message):
        load_backbone(name)


def test_a_hub_that_cannot_be_reached_is_one_line_with_what_to_do(tmp_path):
    run = subprocess.run([sys.executable, "train.py", "--backbone", "Qwen2-0.5B", "--out", tmp_path / "out"], cwd=ROOT, text=True,
                         capture_output=True, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"})
    assert run.returncode == 2 and not (tmp_path / "out").exists()
    assert run.stderr.count("\n") == 1 and "Qwen2-0.5B" in run.stderr and "local folder" in run.stderr


def test_a_folder_with_a_missing_tensor_is_refused(tmp_path, tiny_folder):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(rank=4, alpha=8)
    made.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name, _ = tensors.popitem()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=f"lacks {name}"):
        Retriever.load(tmp_path, device="cpu")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="not a whole retriever folder"):
        Retriever.load(tmp_path, device="cpu")


def test_weights_that_are_missing_are_refused_instead_of_made_up(tmp_path):
    folder = save_tiny(tmp_path / "backbone")
    tensors = load_file(tmp_path / "backbone" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "backbone" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="1 weights are not in its files, such as model.layers.1.mlp.up_proj.weight"):
        load_backbone(folder)


@pytest.mark.parametrize("key, value", [("prompts", "find: "), ("prompts", {"query": ""}), ("prompts", {"query": "", "document": None}), ("suffix", None),
                                        ("max_tokens", "512"), ("max_tokens", True), ("pooling", "sum"), ("pooling", []), ("normalize", 1)])
def test_what_save_does_not_write_is_refused_by_name(tiny_folder, tmp_path, key, value):
    made = Retriever.load(tiny_folder, device="cpu")
    made.add_lora(rank=4, alpha=8)
    made.save(tmp_path)
    about = json.loads((tmp_path / "retriever.json").read_text())
    (tmp_path / "retriever.json").write_text(json.dumps({**about, key: value}))
    with pytest.raises(BadInput, match=f"retriever.json says {key} = "):
        Retriever.load(tmp_path, device="cpu")


def test_no_texts_are_no_vectors():
    assert retriever().encode([]).shape == (0, 32)


def test_packed_texts_are_embedded_as_transformers_embeds_padded_ones(kind):
    """Embeddings to 1e-5 and every adapter's gradient; the padded pass is transformers' own, with its own mask."""
    made, pull = retriever(kind), torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    rows = [[3, 4, 5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17, 18]]
    results = []
    for embed in (made.embed, lambda rows: torch.nn.functional.normalize(
            made.embed_padded(rows, torch.tensor([len(r) for r in rows])), dim=-1)):
        vectors = embed(rows)
        results.append((vectors, torch.autograd.grad((vectors * pull).sum(), made.parameters())))
    (packed, ours), (padded, theirs) = results
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    for a, b in zip(ours, theirs):
        assert b.abs().max() > 0 and (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_what_plain_attention_cannot_read_is_still_embedded_by_transformers():
    """A window shorter than the text: no packing, and another embedding than with full attention."""
    wide, narrow = (Retriever("tiny", tiny_tokenizer(), tiny_llm("qwen2", **how)) for how in ({}, {
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}))
    rows = [list(range(1, 12)), [5, 6]]
    expected = narrow.embed_padded(rows, torch.tensor([11, 2]))
    torch.testing.assert_close(narrow.embed(rows), torch.nn.functional.normalize(expected, dim=-1))
    assert not torch.allclose(narrow.embed(rows)[0], wide.embed(rows)[0], atol=1e-3)
    torch.testing.assert_close(narrow.embed(rows)[1], wide.embed(rows)[1], atol=1e-5, rtol=0)


def test_batches_of_one_length_hold_no_padding():
    made, seen = retriever(suffix="", prompts=PLAIN), []
    embed = made.embed
    made.embed = lambda rows: seen.append([len(row) for row in rows]) or embed(rows)
    texts = ["x" * n for n in [3] * 20 + [5] * 20 + [9] + [12] * 2]
    vectors = made.encode(texts, "document", batch_tokens=60)
    # 12s fill a quarter; the 9 alone does not, and takes one 5 with it; then twelve 5s fit, the rest, and so on
    assert seen == [[12, 12], [9] + [5], [5] * 12, [5] * 7, [3] * 20]
    assert all(max(lengths) * len(lengths) <= 60 for lengths in seen)
    torch.testing.assert_close(vectors, torch.stack([made.encode([text], "document")[0] for text in texts]), atol=1e-5, rtol=0)


def test_a_damaged_weight_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(BadInput, match="damaged"):
        convert_gguf(tmp_path / "weights.gguf", sha256="0" * 64)
    monkeypatch.setattr(backbones, "packaged_file", lambda backbone: tmp_path / "weights.gguf")
    with pytest.raises(BadInput, match="damaged.*expected b179c9523d0e"):
        load_backbone("SmolLM2-135M")


def test_a_conversion_that_found_no_room_leaves_nothing_and_a_whole_one_can_be_read_by_all(tmp_path, monkeypatch):
    full = None

    class Packed:
        def from_pretrained(*where, **how):
            made = tiny_llm() if "dtype" in how else tiny_tokenizer()
            if "dtype" in how:
                made.config.quantization_config = {}
                if full == "weights":
                    made.save_pretrained = lambda folder: (folder.mkdir(parents=True), save_file({}, "/none/x"))
            elif full == "tokenizer":
                made.save_pretrained = lambda folder: made.backend_tokenizer.save("/none/x")
            return made

    monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbones, "AutoModelForCausalLM", Packed)
    monkeypatch.setattr(backbones, "AutoTokenizer", Packed)
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    for full in ("weights", "tokenizer"):  # what these libraries raise where they cannot write
        with pytest.raises(OSError, match=r"\.part: .*No such file"):
            convert_gguf(tmp_path / "weights.gguf")
        assert not list((tmp_path / "cache").iterdir())
    full = None
    folder = convert_gguf(tmp_path / "weights.gguf")
    assert list((tmp_path / "cache").iterdir()) == [folder] and folder.name.startswith("weights-")
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_half_precision_backbones_keep_float32_adapters_and_embeddings():
    made = Retriever("tiny", tiny_tokenizer(), tiny_llm(dtype=torch.bfloat16))
    made.add_lora(rank=4, alpha=8)
    assert all(p.dtype == torch.float32 for p in made.parameters())
    wide = Retriever("tiny", tiny_tokenizer(), tiny_llm())
    cosine = (made.encode(TEXTS) * wide.encode(TEXTS)).sum(1)
    assert made.encode(TEXTS).dtype == torch.float32 and cosine.min() > 0.98


@pytest.mark.real
def test_the_packaged_weights_are_a_language_model(real):
    tokenizer, llm = real
    assert sum(p.numel() for p in llm.parameters()) == 134515008
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(llm(ids).logits[0, -1].argmax()) == " Paris"
    assert isinstance(llm, AutoModelForCausalLM._model_mapping[type(llm.config)])


def test_a_short_name_is_kept_for_readers_and_its_hub_id_for_others(tmp_path):
    made = retriever()
    made.name = "SmolLM2-135M"
    made.save(tmp_path)
    written = [json.loads((tmp_path / name).read_text()) for name in ("retriever.json", "adapter_config.json")]
    assert written[0]["backbone"] == "SmolLM2-135M" and written[1]["base_model_name_or_path"] == BACKBONES["SmolLM2-135M"].hub


def test_run_as_a_script_the_module_lists_its_backbones(capsys):
    runpy.run_path(str(ROOT / "model.py"), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1], row[-1]) for row in rows] == [(name, b.parameters, b.hub) for name, b in BACKBONES.items()]


def test_the_table_of_backbones_names_one_packaged_default():
    assert [name for name, b in BACKBONES.items() if b.package] == ["SmolLM2-135M"]
    assert all(b.hub.count("/") == 1 and b.licence and b.parameters for b in BACKBONES.values())


def test_long_texts_are_tokenized_a_few_at_a_time(tiny_folder, monkeypatch):
    """What a tokenizer cuts off is held as long as its call lasts."""
    retriever, sizes = Retriever.load(tiny_folder, device="cpu"), []
    texts = [f"box {i} " * (i + 1) for i in range(70)]
    whole = retriever.tokenizer([retriever.prompts["document"] + t for t in texts], truncation=True, max_length=40 - len(retriever.suffix_ids)).input_ids
    real = type(retriever.tokenizer).__call__
    monkeypatch.setattr(type(retriever.tokenizer), "__call__", lambda self, texts, **more: sizes.append(len(texts)) or real(self, texts, **more))
    assert retriever.tokenize(texts, "document", 40) == [row + retriever.suffix_ids for row in whole] and sum(sizes) == 70 and max(sizes) <= 32
