"""A retriever as others read it: a folder that sentence-transformers opens, with its model card.

    python export.py runs/dream OUT                     # LoRA folded into the weights: needs nothing else
    python export.py runs/dream OUT --adapter-only      # PEFT's adapter; its readers need peft and the base model too

    W' = W + (alpha / r) B A

OUT is what SentenceTransformer(OUT) opens, in its versions 3 to 6, and Retriever.load(OUT) too: in float32 the same embeddings. The
prompts stand in config_sentence_transformers.json; the suffix, which sentence-transformers has no place for, is put
behind every text by the tokenizer itself, as other tokenizers put an end-of-text token there. Before OUT takes its name
it is opened once more and compared with RUN. Versions before 6 strip spaces around prompt and text, so that an empty text, or
one that ends in spaces, has another embedding there. Left out: uploading it.
"""
import argparse
import json
import sys
from pathlib import Path

import tokenizers
import torch

from adapters import write_adapter
from backbones import BACKBONES, is_hub_id, packaged_file, save_model, short_name
from convert import making
from files import BadInput, command, write_json
from model import Retriever
from peers import UNLIMITED

MODULES = "sentence_transformers.models"  # the name that all versions know
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "Llama 3.2 Community": "llama3.2"}  # as the hub calls them
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOLERANCE = 1e-4  # how far float32 embeddings may be from RUN's; rounding is far below
TRIED = ("Who patented the telephone?", "A telephone, 1876.", "Many words about telephones. " * 400)


# ----------------------------------------------------------------------------------------------------- the model


@torch.no_grad()
def merge(retriever):
    """Fold every adapter into its layer's weight, in place; afterwards the backbone has no adapters."""
    for name, layer in retriever.adapters().items():
        weight = layer.base.weight
        weight += (layer.scaling * layer.lora_B @ layer.lora_A).to(weight.dtype)
        retriever.llm.set_submodule(name, layer.base)


def older_names(config):
    """config.json as transformers 5 writes it -> with what earlier versions read, by their names: there, other angles would be silent.

    >>> older_names({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})["rope_theta"]
    1000000.0
    """
    angles = config.get("rope_parameters") or {}
    if "rope_theta" not in angles:  # none, or several kinds of layers
        return config
    scaling = {key: value for key, value in angles.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind, part = scaling.get("rope_type", "default"), angles.get("partial_rotary_factor")
    if kind == "longrope" and config.get("model_type") == "phi3":  # takes these three keys alone
        scaling = {"type": kind, "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"]}
    theta_name, part_name = ("rotary_emb_base", "rotary_pct") if config.get("model_type") == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    return {**config, theta_name: angles["rope_theta"], **({} if part is None else {part_name: part}),
            "rope_scaling": None if kind == "default" else scaling}


def write_weights(folder, retriever, dtype):
    """The backbone with its adapters folded in, without the vocabulary head, as AutoModel reads it."""
    merge(retriever)
    save_model(retriever.llm.base_model.to(getattr(torch, dtype)), folder)
    write_json(folder / "config.json", older_names(json.loads((folder / "config.json").read_text())))


# ------------------------------------------------------------------------------------------------- the tokenizer


def append(processor, suffix):
    """A post-processor of tokenizer.json (or None), and a token of templates -> one that adds the token at the end as well.

    One template cannot follow another, because it would read the first one's pieces: what is there is extended.
    """
    own = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}}
    if processor is None:
        processor = own
    if processor["type"] == "TemplateProcessing":
        last = [{"SpecialToken": {"id": suffix["id"], "type_id": 0}}]
        return {**processor, "single": processor["single"] + last, "pair": processor["pair"] + last,
                "special_tokens": {**processor["special_tokens"], suffix["id"]: suffix}}
    parts = processor["processors"] if processor["type"] == "Sequence" else [processor]
    if not parts or parts[-1]["type"] != "TemplateProcessing":
        parts = [*parts, own]
    return {"type": "Sequence", "processors": [*parts[:-1], append(parts[-1], suffix)]}


def with_suffix(backend, ids):
    """A tokenizers.Tokenizer -> a copy that puts the tokens `ids` behind every text, after whatever it put there before.

    They count as added tokens: a text that is too long is cut before them.
    """
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    if ids:
        suffix = {"id": "suffix", "ids": ids, "tokens": [backend.id_to_token(i) for i in ids]}
        content["post_processor"] = append(content["post_processor"], suffix)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def write_tokenizer(folder, retriever):
    """tokenizer.json with the suffix in it, and a tokenizer_config.json that every version of transformers understands."""
    tokenizer = retriever.tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise BadInput(f"{retriever.name}: its tokenizer is none of the tokenizers library's; it cannot be exported")
    (folder / "tokenizer.json").write_text(with_suffix(tokenizer.backend_tokenizer, retriever.suffix_ids).to_str(pretty=True), encoding="utf-8")
    special = {name: str(token) for name in SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    special.setdefault("pad_token", special.get("eos_token"))  # some have none; padding is masked
    # Not the architecture's own class: some of those build their tokenizer anew, and would lose the suffix.
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **special, "padding_side": "right", "truncation_side": tokenizer.truncation_side,
        "model_input_names": tokenizer.model_input_names, "clean_up_tokenization_spaces": False,
        **({} if retriever.max_tokens >= UNLIMITED else {"model_max_length": retriever.max_tokens})})


def write_settings(folder, retriever):
    """What sentence-transformers reads beside the model: modules, lengths, pooling, prompts, in the form all versions know."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if retriever.normalize else [])]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    for path in paths[1:]:
        (folder / path).mkdir()
    write_json(folder / "modules.json", [{"idx": i, "name": str(i), "path": path, "type": f"{MODULES}.{kind}"}
                                         for i, (kind, path) in enumerate(zip(kinds, paths))])
    write_json(folder / "sentence_bert_config.json", {
        "max_seq_length": None if retriever.max_tokens >= UNLIMITED else retriever.max_tokens, "do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": retriever.width, "pooling_mode_cls_token": retriever.pooling == "cls",
        "pooling_mode_mean_tokens": retriever.pooling == "mean", "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": retriever.pooling == "lasttoken", "include_prompt": True})
    query, document = (retriever.prompts[kind] for kind in ("query", "document"))
    write_json(folder / "config_sentence_transformers.json", {  # encode() without a kind takes the default: without, half a prompt
        "model_type": "SentenceTransformer", "prompts": retriever.prompts,
        "default_prompt_name": "document" if query == document != "" else None,
        "similarity_fn_name": "cosine" if retriever.normalize else "dot"})


# ------------------------------------------------------------------------------------------------ the model card


def front_matter(retriever, adapter_only):
    """The card's head, as the hub reads it (YAML)."""
    base, lines = retriever.hub_name(), ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if retriever.name in BACKBONES:
        licence = BACKBONES[retriever.name].licence
        lines += [f"license: {HUB_LICENCES[licence]}"] if licence in HUB_LICENCES else [
            "license: other", f"license_name: {licence.lower().replace(' ', '-')}", f"license_link: https://huggingface.co/{base}"]
    if is_hub_id(base):
        lines += [f"base_model: {base}", f"base_model_relation: {'adapter' if adapter_only else 'finetune'}"]
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "retrieval", "dream", *(["peft", "lora"] if adapter_only else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def measured(result):
    """A run's result.json -> the card's table: each collection with BM25, before and after the training."""
    metrics = ("ndcg@10", "recall@10", "mrr@10")
    lines = ["| collection | | nDCG@10 | Recall@10 | MRR@10 |", "|---|---|---|---|---|"]
    for name in result.get("after", {}):
        for label, values in (("BM25", result.get("bm25")), ("before training", result.get("before")), ("this model", result["after"])):
            if values and name in values:
                lines.append(f"| {name} | {label} | " + " | ".join(f"{values[name][m]:.3f}" for m in metrics) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured when it was trained."


def trained(result):
    """How: the command, where it ran, and what it ran with."""
    if not result:
        return "The folder that this was made from does not say how it was trained."
    lines = [f"    {result.get('command', 'the command was not recorded')}", ""]
    lines += [f"- {label}: {value}" for label, value in (
        ("code", f"commit {result['commit']}" if result.get("commit") else None), ("hardware", result.get("hardware")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (result.get("versions") or {}).items())),
        ("settings", ", ".join(f"{k} = {v!r}" for k, v in (result.get("config") or {}).items()))) if value]
    return "\n".join(lines)


def assumptions():
    """What the paper leaves open and this project decided, from its own README."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    _, heading, rest = text.partition("\n## Assumptions and deviations\n")
    return rest.partition("\n## ")[0].strip() if heading else ""


CARD = """{front}

# {title}

A dense retriever{how} Its base is {base}{licence}.

{width} dimensions, {pooling} pooling, {norm}; {tokens}.
{exact}
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{title}"{dtype}){needs}
    queries = model.encode_query(["Who patented the telephone?"])       # versions 3 and 4: encode(..., prompt_name="query")
    documents = model.encode_document(["A telephone, 1876."])           #                   encode(..., prompt_name="document")
    scores = model.similarity(queries, documents)

Before a query stands `{query!r}`, before a document `{document!r}`.{suffix}

## Results

Measured when it was trained, with this project's `evaluate.py`, whose metrics are trec_eval's:

{results}

## Training

{training}

## Assumptions of this implementation of DREAM

The settings above say what this model was trained with.

{assumptions}
"""
DREAM = ("trained with DREAM (Tang & Yang 2026, arXiv 2606.24667): through the next-token loss of a frozen language model, without positive "
         "or negative labels.")
BASELINE = "trained by {}, as a baseline for DREAM (arXiv 2606.24667)."
HOW = {  # objective -> how the card's first sentence goes on
    "dream": DREAM, "infonce": BASELINE.format("InfoNCE with its questions' source documents as labels"),
    "replug": BASELINE.format("RePlug's loss from the likelihoods of a frozen language model"),
    "emdr": BASELINE.format("EMDR2's loss from the likelihoods of a frozen language model")}
QUANTIZED = ("The adapter was trained on the base's packaged weights, which are quantized (Q4_1); on the hub's own weights embeddings differ somewhat. "
             "Export the merged model for the same embeddings.")


def packaged(retriever):
    """Do the base's weights come from the package, and not from the hub id that an adapter names?"""
    return retriever.name in BACKBONES and packaged_file(BACKBONES[retriever.name]) is not None


def write_card(folder, title, retriever, result, adapter_only):
    """README.md, for people and for the hub."""
    known, suffix, base = BACKBONES.get(retriever.name), retriever.suffix, retriever.hub_name()
    objective = (result.get("config") or {}).get("objective")
    (folder / "README.md").write_text(CARD.format(
        front=front_matter(retriever, adapter_only), title=title, base=base,
        how=" " + HOW[objective] if objective in HOW else "; how it was trained is not recorded.",
        licence=f" (licence: {known.licence}, which holds for this model too)" if known else "; its licence holds for this model too",
        width=retriever.width, pooling={"lasttoken": "last-token", "mean": "mean", "cls": "first-token"}[retriever.pooling],
        norm="unit norm" if retriever.normalize else "compared by their inner product",
        tokens="texts are not cut" if retriever.max_tokens >= UNLIMITED else f"texts are cut at {retriever.max_tokens} tokens",
        dtype=', model_kwargs={"dtype": "float32"}' if adapter_only else "",
        needs=f"    # before transformers 4.56: torch_dtype; reads the base, {base}, and needs peft" if adapter_only else "",
        exact=f"\n{QUANTIZED}\n" if adapter_only and packaged(retriever) else "",
        query=retriever.prompts["query"], document=retriever.prompts["document"],
        suffix=f"\nThe tokenizer itself puts `{suffix!r}` behind every text; a text that is too long is cut before it." if suffix else "",
        results=measured(result), training=trained(result), assumptions=assumptions()), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- a folder


def read_result(run):
    """RUN/result.json, or {} where there is none. Raises BadInput."""
    path = Path(run) / "result.json"
    if not path.is_file():
        return {}
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    try:
        measured(result), trained(result)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise BadInput(f"{path}: not what train.py writes; without it the card says that nothing is known of the training") from None
    return result


def export(run, out, adapter_only=False, dtype="float32"):
    """A run's folder -> the folder `out`, and the largest difference of an embedding's component. Raises BadInput."""
    if not Path(run).is_dir():
        raise BadInput(f"{run}: no such folder; name one that train.py wrote")
    result, retriever = read_result(run), Retriever.load(run, "cpu", "float32")
    if not retriever.adapters():
        raise BadInput(f"{run}: has no adapter; name a folder that train.py wrote")
    if adapter_only and Path(retriever.hub_name()).is_file():
        raise BadInput(f"--adapter-only: others cannot read the base {retriever.name}; leave it out")
    short = short_name(retriever.name)  # under which the adapter's base is found when it is opened
    if adapter_only and short != retriever.name and packaged_file(BACKBONES[short]):
        raise BadInput(f"--adapter-only: an adapter of {retriever.name} is read with the quantized weights of the package {BACKBONES[short].package}, "
                       "which it was not trained on; leave it out, or uninstall the package")
    expected = [retriever.encode(TRIED, kind) for kind in ("query", "document")]
    with making(out) as part:
        write_tokenizer(part, retriever)
        write_settings(part, retriever)
        write_card(part, Path(out).resolve().name, retriever, result, adapter_only)
        if adapter_only:
            write_adapter(part, retriever.llm, retriever.adapters(), retriever.hub_name(), bare=True)
        else:
            write_weights(part, retriever, dtype)
        again = Retriever.load(part, "cpu", "float32")
        found = [again.encode(TRIED, kind) for kind in ("query", "document")]
        difference = max((a - b).abs().max().item() for a, b in zip(expected, found))
        if not difference <= TOLERANCE and (adapter_only or dtype == "float32"):
            raise BadInput(f"{run}: its embeddings change by {difference:.1e} when it is exported; nothing is written")
    if adapter_only and packaged(retriever):
        print(f"{out}: {QUANTIZED[0].lower()}{QUANTIZED[1:]}", file=sys.stderr)
    return difference


def main(argv=None):
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a folder that train.py wrote, or an adapter of PEFT")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--adapter-only", action="store_true", help="PEFT's adapter instead of merged weights")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the merged weights "
                        "(default: %(default)s, which keeps the embeddings)")
    args = parser.parse_args(argv)
    if args.adapter_only and args.dtype != "float32":
        raise BadInput("--dtype is of merged weights; an adapter alone is float32")
    difference = export(args.run, args.out, args.adapter_only, args.dtype)
    size = sum(path.stat().st_size for path in Path(args.out).rglob("*") if path.is_file())
    how = " in float32, which others may have to be told" if args.adapter_only or args.dtype != "float32" else ""
    print(f"{args.out}: {size / 1e6:,.1f} MB; read again{how}, embeddings differ from {args.run}'s by at most {difference:.1e}")


if __name__ == "__main__":
    command(main)
