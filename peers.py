"""Other people's encoders, used as their own files say: sentence-transformers folders and plain Hugging Face models.

A sentence-transformers folder names its modules in modules.json: a Transformer, a Pooling, perhaps a Normalize; lengths
stand in sentence_bert_config.json, prompts in config_sentence_transformers.json. All of that is read, and whatever would
change an embedding and is not known here is refused by name, never ignored. Without modules.json a causal language model
is an untrained retriever of this project, any other model is pooled by the mean, as sentence-transformers does.
The reference is sentence-transformers itself: encode() equals its encode_query() and encode_document().
"""
import inspect
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from backbones import BACKBONES, load_weights
from files import BadInput, brief

POOLINGS = ("mean", "cls", "lasttoken")
LEGACY = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
LENGTHS = [f"sentence_{kind}_config.json"  # the first that is there; old folders name it after the architecture
           for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")]
UNLIMITED = 10 ** 9  # tokens; where no file states a length, nothing is cut


def locate(source, name):
    """The path of a file of a local folder or hub repository; None where it is absent."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        return hf_hub_download(source, name)
    except LocalEntryNotFoundError:  # no connection: not the same as absent, or a pooling would be guessed
        if try_to_load_from_cache(source, name) is not _CACHED_NO_EXIST:
            raise
    except EntryNotFoundError:
        pass
    return None


def read_json(source, name, kind=dict):
    """A JSON file of a local folder or hub repository; None where it is absent. Raises BadInput."""
    path = locate(source, name)
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{source}: {name} is not JSON ({error})") from None
    if not isinstance(content, kind):
        raise BadInput(f"{source}: {name} does not hold a JSON {'list' if kind is list else 'object'}")
    return content


def refuse_unknown(source, name, config, free=(), only=None):
    """Refuse a file's settings, unless they are off, `free` to have any value, or have the `only` value known here."""
    for key, value in config.items():
        if value and key not in free and value != (only or {}).get(key):
            raise BadInput(f"{source}: {name} says {key} = {json.dumps(value)[:160]}; not supported")


def read_pooling(source, config):
    """The content of a Pooling module's config.json -> one of POOLINGS."""
    chosen = config.get("pooling_mode")
    if chosen is None:  # before sentence-transformers 6: one switch for each
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        chosen = [LEGACY.get(key, key.removeprefix("pooling_mode_")) for key in on]
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise BadInput(f"{source}: its pooling is {' + '.join(chosen) or 'not stated'}; known here: {', '.join(POOLINGS)}")
    return chosen[0]


def read_settings(source):
    """How a sentence-transformers folder or hub id wants to be used: Retriever's arguments; None if it is no such thing."""
    modules = read_json(source, "modules.json", list)
    if modules is None:
        return None
    kinds, paths = [module["type"] for module in modules], [module["path"] for module in modules]
    kinds = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind in kinds]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise BadInput(f"{source}: its modules are {', '.join(kinds)}; known here: Transformer, Pooling, Normalize")
    if paths[0]:
        raise BadInput(f"{source}: its Transformer is in the folder {paths[0]}, not beside modules.json; not supported")
    name = next((name for name in LENGTHS if locate(source, name)), LENGTHS[0])
    transformer = read_json(source, name) or {}
    pooling = read_json(source, f"{paths[1]}/config.json")
    if pooling is None:
        raise BadInput(f"{source}: lacks {paths[1]}/config.json, so its pooling is not stated")
    model = read_json(source, "config_sentence_transformers.json") or {}
    if transformer.get("do_lower_case"):
        raise BadInput(f"{source}: it lower-cases texts itself (do_lower_case); not supported")
    refuse_unknown(source, name, transformer, ("max_seq_length", "unpad_inputs"), {
        "transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}})
    longest = transformer.get("max_seq_length")
    if longest is not None and not (isinstance(longest, int) and longest > 0):
        raise BadInput(f"{source}: {name} says max_seq_length = {json.dumps(longest)}; it is a number of tokens")
    refuse_unknown(source, f"{paths[1]}/config.json", {k: v for k, v in pooling.items() if not k.startswith("pooling_mode")},
                   ("word_embedding_dimension", "embedding_dimension", "include_prompt"))
    refuse_unknown(source, "config_sentence_transformers.json", {k: model.get(k) for k in ("model_type", "truncate_dim")},
                   only={"model_type": "SentenceTransformer"})
    if kinds[2:]:
        refuse_unknown(source, f"{paths[2]}/config.json", read_json(source, f"{paths[2]}/config.json") or {},
                       only={"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})
    # Just these two: encode_query and encode_document never reach "passage", "corpus" or default_prompt_name, because
    # sentence-transformers gives every model an empty "query" and "document" prompt where its files state none.
    prompts = {kind: (model.get("prompts") or {}).get(kind) or "" for kind in ("query", "document")}
    if not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise BadInput(f"{source}: config_sentence_transformers.json has a prompt that is not a text")
    if any(prompts.values()) and not pooling.get("include_prompt", True):
        raise BadInput(f"{source}: its pooling leaves prompts out (include_prompt); not supported")
    similarity = model.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise BadInput(f"{source}: its similarity is {similarity}; known here: cosine, dot")
    return {"pooling": read_pooling(source, pooling), "prompts": prompts, "max_tokens": longest,
            "normalize": "Normalize" in kinds or similarity == "cosine"}


def is_causal(config):
    """Is this configuration one of a decoder with its vocabulary head? (XLM's and XLNet's LMHeadModel are none.)"""
    return any(name.endswith(("ForCausalLM", "GPT2LMHeadModel")) for name in config.architectures or [])


def position_limit(model):
    """How many tokens a table of positions holds; None without a table. RoBERTa's kind starts behind the padding id."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None


@torch.no_grad()
def ignores_padding(tokenizer, model):
    """Has a text the same last hidden states alone and with padding behind it? Not in FNet, ConvBERT, Nystromformer."""
    ids = torch.tensor([tokenizer("one text").input_ids], device=model.device)
    one, two = (model(input_ids=F.pad(ids, (0, more), value=tokenizer.pad_token_id or 0), use_cache=False,
                      attention_mask=F.pad(torch.ones_like(ids), (0, more))).last_hidden_state[:, :ids.shape[1]].float()
                for more in (0, 7))
    return F.cosine_similarity(one, two, dim=-1).min() > 0.99  # half precision is closer than that, a real difference not


def load_encoder(name, device="auto", dtype="auto", base=None, tokenizer_from=None):
    """Any name -> (tokenizer, model, how it wants to be used: Retriever's keyword arguments). Raises BadInput.

    base: `name` is an adapter; its own files say how it is used, and the weights are those of its base. A causal language
    model without modules.json, as a base or by itself, says nothing of how it is used: then that is empty.
    """
    how = {}

    def choose(source):
        if name in BACKBONES:  # known to be plain language models: nothing to ask the hub for
            return AutoModelForCausalLM
        if base not in BACKBONES and locate(source, "adapter_config.json"):
            raise BadInput(f"{source}: an adapter of PEFT, where whole weights are needed")
        settings = read_settings(name if base else source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise BadInput(f"{name}: an encoder-decoder ({config.model_type}) is not supported")
        if settings is None and is_causal(config):
            return AutoModelForCausalLM
        if settings is None and base:
            raise BadInput(f"{name}: an adapter on {config.model_type}, which is no causal language model, without modules.json: "
                           "its pooling is not stated")
        how.update(settings or {"pooling": "mean", "prompts": {"query": "", "document": ""}, "max_tokens": None})
        how["suffix"] = ""
        return AutoModel

    tokenizer, model, source = load_weights(base or name, choose, device, dtype, tokenizer_from)
    if tokenizer.eos_token_id is None and not tokenizer("").input_ids:
        raise BadInput(f"{name}: its tokenizer has no token for an empty text (eos_token)")
    if not how:
        return tokenizer, model, how
    takes, kind = inspect.signature(model.forward).parameters, model.config.model_type
    types = tokenizer("a").get("token_type_ids")
    if types and "token_type_ids" in takes and (any(types) or not hasattr(model.config, "type_vocab_size")):
        raise BadInput(f"{name}: its tokenizer gives {kind} token types other than BERT's; not supported")
    if tokenizer.chat_template and locate(name if base else source, "modules.json") is None:
        raise BadInput(f"{name}: sentence-transformers puts texts into its chat template; not supported")
    if not hasattr(model.config, "hidden_size"):
        raise BadInput(f"{name}: {kind} is more than a text model (its text part has a configuration of its own); name one that reads text alone")
    try:
        padded_alike = ignores_padding(tokenizer, model)
    except Exception as error:  # a model of more than texts raises whatever it misses
        raise BadInput(f"{name}: {kind} does not read texts alone ({brief(error, 160)})") from None
    if not padded_alike:
        raise BadInput(f"{name}: padding changes the embeddings of {kind}; not supported")
    stated = [how["max_tokens"]] if how["max_tokens"] else [
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    how["max_tokens"] = min(n for n in [*stated, position_limit(model), UNLIMITED] if n and n > 0)  # XLNet says -1
    return tokenizer, model, how
