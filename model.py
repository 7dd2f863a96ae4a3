"""Backbones by name, LoRA, and the Retriever: a causal language model that turns texts into unit vectors.

    e(x) = h / |h|,  h = the last hidden state at the last token of x                     DREAM, section 3

The retriever is the backbone plus LoRA adapters (Hu et al. 2021, arXiv 2106.09685). With the adapters off the very
same weights, held once in memory, are the frozen LLM that judges it. A saved retriever is PEFT's own format plus
`retriever.json`, which says how to use it, so that encoding cannot drift between training and evaluation.

Symbols used everywhere:

    B questions    K documents in the pool    L tokens of the documents' prompt, the prefix    M tokens of the longest document
    T tokens of a padded text    N tokens of all questions packed
    row: a token's place in the LLM's attention    R rows that predict a target
    H heads    H_kv key-value heads    n injected heads of a layer    d a head's width    D the embedding's width
    tau the temperature    query_emb (B, D)    doc_emb (K, D)    scores (B, K)    weights (B, K)

Where texts are encoded or searched, N counts queries or texts, and M documents.

Names, folders and hub ids are looked up in backbones.py, other people's encoders in peers.py, PEFT's files in adapters.py.
Left out: a folder for sentence-transformers, with the adapters folded in (export.py).
"""
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from adapters import CONFIG, PARTS, WEIGHTS, linear_layers, read_adapter, write_adapter
from attention import AT_ONCE, Packing, ReadTexts, forward, obstacle, wide
from backbones import BACKBONES, load_backbone
from files import BadInput, write_json
from peers import POOLINGS, load_encoder, read_json


# ------------------------------------------------------------------------------------------------------------ LoRA


class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x with W frozen, A (r, in) random, B (out, r) zero: at first the layer is unchanged."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.rank, self.alpha, self.enabled = base, rank, alpha, True
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x):
        if not self.enabled:
            return self.base(x)
        x, shape = x.flatten(0, -2), x.shape
        y = self.base(x)  # (tokens, out)
        low = F.linear(x, self.lora_A.to(x.dtype))  # (tokens, in) -> (tokens, r)
        y.addmm_(low, (self.scaling * self.lora_B).T.to(y.dtype))  # in place: nobody else has seen y
        return y.view(*shape[:-1], -1)


def attach(llm, adapter):
    """Put an adapter that was read from PEFT's files on `llm`, each layer with its own rank and alpha. Raises BadInput.

    Layers may be named as in the causal language model or as in the model without its head, whichever `llm` is.
    """
    prefix, tensors = f"{llm.base_model_prefix}.", dict(adapter.tensors)
    theirs = prefix if any(name.startswith(prefix) for name in tensors) else ""
    for name, module in linear_layers(llm).items():
        layer_name = theirs + name.removeprefix(prefix)
        if not adapter.has(layer_name):
            continue
        layer, found = LoRALinear(module, *adapter.strength(layer_name)), tensors.pop(layer_name, {})
        for part in PARTS:
            if part not in found or found[part].shape != getattr(layer, part).shape:
                raise BadInput(f"{adapter.source}: {WEIGHTS} lacks base_model.model.{layer_name}.{part}.weight, or has it in another shape")
            getattr(layer, part).data.copy_(found[part])
        llm.set_submodule(name, layer)
    if tensors:
        raise BadInput(f"{adapter.source}: {WEIGHTS} has tensors that fit nowhere: {next(iter(tensors))}")


# ------------------------------------------------------------------------------------------------------- retriever


# ASSUMPTION: the published cards name no prompts. PromptEOL's (Jiang et al. 2023, arXiv 2307.16645): a causal LM that is
# about to say a text in one word has gathered its meaning at the last token, before any training.
PROMPTS = {"query": 'This sentence : "', "document": 'This sentence : "'}
SUFFIX = '" means in one word: "'
SETTINGS = {"prompts": dict, "suffix": str, "max_tokens": int, "pooling": str, "normalize": bool}  # what retriever.json says beside the backbone
# How an adapter without retriever.json is used: as the published cards say, the last token, no EOS and no prompts.
PUBLISHED = {"prompts": {"query": "", "document": ""}, "suffix": "", "max_tokens": 512}


def around(flag, prompt):
    """What a prompt has before and behind its {text}. Raises BadInput, in the words of the command line's `flag`."""
    before, found, behind = prompt.partition("{text}")
    if not found or "{text}" in behind:
        raise BadInput(f"{flag} must have {{text}} in it once, not {prompt!r}")
    return before, behind


def pool(hidden, lengths, pooling="lasttoken"):
    """Texts padded on the right: hidden (N, T, D), lengths (N,) long -> one vector each, (N, D) float32; padding is never read.

    pooling: "lasttoken" (DREAM), "mean" or "cls", the first token's.
    """
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
    if pooling == "cls":
        return hidden[:, 0].float()
    padding = torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None]  # (N, T)
    return hidden.float().masked_fill(padding[..., None], 0).sum(1) / lengths[:, None]


class Retriever:
    """Texts -> vectors. `kind` says which prompt stands before a text: "query" or "document"; the suffix follows each text.

    pooling: "lasttoken" (DREAM), "mean" or "cls"; texts are packed or padded on the right, and padding is never pooled.
    normalize: unit norm; only peers that compare by an unnormalised inner product do without.
    """

    def __init__(self, name, tokenizer, llm, prompts=PROMPTS, suffix=SUFFIX, max_tokens=512, pooling="lasttoken", normalize=True):
        assert pooling in POOLINGS, f"pooling is one of {POOLINGS}, not {pooling!r}"
        self.name, self.tokenizer, self.llm = name, tokenizer, llm
        self.read_as(prompts, suffix)
        self.max_tokens, self.pooling, self.normalize = max_tokens, pooling, normalize
        self.own_tokenizer = False  # an adapter that came with a tokenizer, other than its backbone's
        self.cut = 0  # how many of the texts encoded so far reached max_tokens: what lies behind is not read

    @property
    def device(self):
        return self.llm.device

    @property
    def width(self):
        """Components of an embedding; in some models, such as OPT-350M, not hidden_size."""
        return getattr(self.llm.config, "word_embed_proj_dim", self.llm.config.hidden_size)

    def add_lora(self, rank, alpha, seed=0, targets=None):
        """LoRA on every linear layer below the vocabulary head, or on those whose last name is in `targets`; seed: of each A."""
        generator = torch.Generator().manual_seed(seed)
        for name, module in linear_layers(self.llm).items():
            if targets is None or name.rpartition(".")[2] in targets:
                layer = LoRALinear(module, rank, alpha)
                bound = module.in_features ** -0.5  # PEFT's initialisation: Kaiming-uniform with a = sqrt(5)
                layer.lora_A.data.copy_(torch.empty(rank, module.in_features).uniform_(-bound, bound, generator=generator))
                self.llm.set_submodule(name, layer)

    def adapters(self):
        """{name: LoRALinear}, in the backbone's order."""
        return {name: m for name, m in self.llm.named_modules() if isinstance(m, LoRALinear)}

    def parameters(self):
        """What training may change: the LoRA tensors alone."""
        return [p for m in self.adapters().values() for p in (m.lora_A, m.lora_B)]

    @contextmanager
    def adapters_off(self):
        """Within this block the backbone is the untouched, frozen LLM."""
        layers = list(self.adapters().values())
        for layer in layers:
            layer.enabled = False
        try:
            yield self.llm
        finally:
            for layer in layers:
                layer.enabled = True

    def read_as(self, prompts, suffix):
        """From now on prompts[kind] stands before a text, and the suffix behind it."""
        self.prompts, self.suffix = dict(prompts), suffix
        self.suffix_ids, *ids = (self.tokenizer(text, add_special_tokens=False).input_ids if text else [] for text in (suffix, *self.prompts.values()))
        self.prompt_tokens = dict(zip(self.prompts, map(len, ids)))

    def set_prompt(self, prompt=None, query_prompt=None):
        """A `prompt` for both kinds, and another for queries; without either nothing changes. {text} stands in each once; what follows
        it is the same for both kinds, because the tokenizer of an exported model puts it behind every text. Raises BadInput."""
        if prompt is not None:
            before, suffix = around("--prompt", prompt)
            self.read_as(dict.fromkeys(PROMPTS, before), suffix)
        if query_prompt is not None:
            before, suffix = around("--query-prompt", query_prompt)
            if suffix != self.suffix:
                raise BadInput(f"--query-prompt must have {self.suffix!r} behind {{text}}, as documents have, not {suffix!r}")
            self.read_as(self.prompts | {"query": before}, suffix)

    def tokenize(self, texts, kind, max_tokens=None):
        """Texts -> lists of token ids, at least one each: prompt and text, cut so that with the suffix they are max_tokens,
        or the retriever's own max_tokens where that is less.

        The suffix's tokens are appended as they are, never joined with the text's last: an exported tokenizer does the same.
        """
        assert not isinstance(texts, str), "texts is a list of texts"
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        room = limit - len(self.suffix_ids)
        added = self.tokenizer.num_special_tokens_to_add()
        if room <= added + self.prompt_tokens[kind]:  # all texts would be one
            raise BadInput(f"{limit} tokens leave no room for a text beside the prompt {self.prompts[kind]!r}, the suffix {self.suffix!r} "
                           f"and {added} tokens that the tokenizer adds")
        rows = [row for i in range(0, len(texts), 32)  # a few at a time: what is cut off books is held, too
                for row in self.tokenizer([self.prompts[kind] + t for t in texts[i : i + 32]], truncation=True, max_length=room).input_ids]
        return [(row + self.suffix_ids) or [self.tokenizer.eos_token_id] for row in rows]  # at least one token

    def embed(self, rows):
        """Lists of token ids -> (N, D) float32 (or the model's own float64), unit norm if `normalize`, with gradients to the adapters."""
        lengths = torch.tensor([len(r) for r in rows], device=self.device)
        if self.pooling == "lasttoken" and obstacle(self.llm, int(lengths.max())) is None:
            packing = Packing(lengths)  # a causal LM: texts in one sequence, no padding
            input_ids = torch.tensor([i for row in rows for i in row], device=self.device)
            hidden = forward(self.llm.base_model, ReadTexts(packing), input_ids, packing.positions).last_hidden_state[0]
            pooled = wide(hidden[lengths.cumsum(0) - 1])
        else:
            pooled = self.embed_padded(rows, lengths)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def embed_apart(self, rows, chunk=0):
        """(N, D) without a graph, as embed(), and the function that takes their gradient (N, D) on to the adapters.

        With a `chunk` no graph is kept at all: so many texts are embedded at a time, and once more each when their
        gradient is known (GradCache, Gao et al. 2021, arXiv 2101.06983). The same gradients, for one more forward pass.
        """
        if not chunk:
            embeddings = self.embed(rows)
            return embeddings.detach(), embeddings.backward
        chunks = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        with torch.no_grad():
            embeddings = torch.cat([self.embed(part) for part in chunks])

        def backward(gradient):
            for part, own in zip(chunks, gradient.split(chunk)):
                self.embed(part).backward(own)

        return embeddings, backward

    def embed_padded(self, rows, lengths):
        """The same for any encoder, as transformers itself does it: rows padded on the right and masked; before the norm."""
        pad = self.tokenizer.pad_token_id or 0  # some models count positions from the tokens that are not this one
        input_ids = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=pad)
        mask = torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]
        hidden = self.llm.base_model(input_ids=input_ids.to(self.device), use_cache=False,
                                     attention_mask=mask.long()).last_hidden_state
        return pool(hidden, lengths, self.pooling)

    @torch.no_grad()
    def encode(self, texts, kind="query", batch_tokens=None, bar=None):
        """Texts -> (N, D) float32 on the CPU, unit norm if `normalize`; kind: "query" or "document"; bar: a tqdm to update.

        A batch holds at most `batch_tokens` tokens (default: attention.py:AT_ONCE), of texts of one length if those fill a quarter
        of it: without padding peers need no mask either, which is faster. Raises BadInput: no room for a text beside the prompt.
        """
        batch_tokens = batch_tokens or AT_ONCE[self.device.type]
        rows = self.tokenize(texts, kind) if len(texts) else []
        self.cut += sum(len(r) >= self.max_tokens for r in rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        result, start = torch.empty(len(rows), self.width), 0
        while start < len(order):
            longest, stop = len(rows[order[start]]), start + 1
            while stop < len(order) and (stop + 1 - start) * longest <= batch_tokens and (
                    len(rows[order[stop]]) == longest or (stop - start) * longest < batch_tokens // 4):
                stop += 1
            batch = order[start:stop]
            result[batch] = self.embed([rows[i] for i in batch]).cpu()
            if bar is not None:
                bar.update(len(batch))
            start = stop
        return result

    def save(self, folder):
        """Write retriever.json, and adapter_model.safetensors and adapter_config.json (PEFT's format, CausalLM keys).

        In this order: without the last file nothing is loaded, without the first an adapter would be, with others' prompts."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        causal = self.llm.get_output_embeddings() is not None
        write_json(folder / "retriever.json", {
            "backbone": self.name if self.name in BACKBONES else self.hub_name(), "causal": causal,
            **{key: getattr(self, key) for key in SETTINGS}})
        if self.own_tokenizer:
            self.tokenizer.save_pretrained(folder)
        write_adapter(folder, self.llm, self.adapters(), self.hub_name())

    def hub_name(self):
        """What others find the backbone by: its id on the hub, or the whole path of a local folder or file."""
        if self.name in BACKBONES:
            return BACKBONES[self.name].hub
        return str(Path(self.name).resolve()) if Path(self.name).exists() else self.name

    @classmethod
    def load(cls, name, device="auto", dtype="auto"):
        """A folder written by save(), an adapter of PEFT, any backbone (then untrained), or any encoder of peers.py.

        Raises BadInput.
        """
        name = str(name)
        try:
            about = read_json(name, "retriever.json") if Path(name).is_dir() else None
        except BadInput as error:
            raise BadInput(f"{name}: not a whole retriever folder ({str(error).removeprefix(f'{name}: ')})") from None
        adapter = read_adapter(name)
        if adapter is not None:
            about = adapter.about  # on the hub, too
        if about is None and adapter is None:
            begun = any((Path(name) / part).exists() for part in ("embeddings", "heads.json", "metrics.jsonl"))  # what train.py writes first
            if begun and name not in BACKBONES and not (Path(name) / "config.json").exists():
                raise BadInput(f"{name}: training has not ended there; give its command again (train.py's with --resume)")
            tokenizer, llm, how = load_encoder(name, device, dtype)
            return cls(name, tokenizer, llm, **how)
        if about is None:
            backbone = adapter.base
            tokenizer, llm, how = load_encoder(name, device, dtype, backbone, adapter.tokenizer)
            how = how or PUBLISHED
        else:
            lacks = [key for key in ("backbone", *SETTINGS) if key not in about] + ([CONFIG] if adapter is None else [])
            if lacks:
                raise BadInput(f"{name}: not a whole retriever folder (lacks {', '.join(lacks)})")
            wrong = [key for key, kind in SETTINGS.items() if type(about[key]) is not kind or key == "pooling" and about[key] not in POOLINGS
                     or key == "prompts" and {type(about[key].get(kind)) for kind in ("query", "document")} != {str}]
            if wrong:
                raise BadInput(f"{name}: retriever.json says {wrong[0]} = {about[wrong[0]]!r}, which is not as Retriever.save() writes it")
            backbone, how = about["backbone"], {key: about[key] for key in SETTINGS}
            load = load_backbone if about.get("causal", True) else load_encoder
            tokenizer, llm = load(backbone, device, dtype, tokenizer_from=adapter.tokenizer)[:2]
        retriever = cls(backbone, tokenizer, llm, **how)
        retriever.own_tokenizer = adapter.tokenizer is not None
        attach(retriever.llm, adapter)
        return retriever


if __name__ == "__main__":
    for name, b in BACKBONES.items():
        print(f"{name:14s} {b.parameters:>6s}  {b.licence:20s} {b.hub}")
