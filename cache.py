"""Embeddings kept on disk, so that a corpus is encoded once and an interrupted encoding goes on where it stopped.

    DIR/KEY/about.json          which retriever, in words
    DIR/KEY/DIGEST.npy          the embeddings of one chunk of texts, memory-mapped when they are read

KEY is a digest of everything of the retriever that an embedding depends on (weights, tokenizer, pooling, prompt, length, torch,
transformers, model.py and what it imports); DIGEST one of the chunk's texts. Nothing can therefore be stale and still be found. A
chunk is written beside and renamed: after a kill -9 it is there whole, or not at all.
"""
import ast
import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from files import BadInput, replacing, write_json

SMALL = 10_000  # documents whose embeddings a run's folder keeps without being asked


def digest(*parts, more=()):
    """sha256 of byte strings or texts, each preceded by its length, so that no two lists of parts read the same.

    more: an iterable of further parts, which are held one at a time."""
    sha = hashlib.sha256()
    for part in itertools.chain(parts, more):
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:32]


def tensor_bytes(tensor):
    """A tensor's numbers as they lie in memory, of any dtype; for a digest."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def code(name, found):
    """{file: digest} of a module of this folder and of all that it imports from here at its top; added to `found`."""
    path = Path(__file__).with_name(f"{name}.py")
    if path.name not in found and path.is_file():
        content = path.read_bytes()
        found[path.name] = digest(content)
        try:
            body = ast.parse(content).body
        except SyntaxError:  # half an edit of a module that was whole when it was imported
            body = []
        for node in body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for other in [node.module] if isinstance(node, ast.ImportFrom) else names:
                code(other, found)
    return found


def in_words(settings):
    """A text that says the same of the same settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def vocabulary(tokenizer):
    """How a tokenizer reads a text."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        reads = json.loads(backend.to_str())
        del reads["truncation"], reads["padding"]  # left over from the last call, and set anew by each
    else:
        reads = [tokenizer.get_vocab(), tokenizer.init_kwargs]
    return {"tokenizer": reads, "eos": tokenizer.eos_token_id, "truncation_side": tokenizer.truncation_side}


def configuration(llm):
    return {name: value for name, value in llm.config.to_dict().items() if name != "_name_or_path"}


def settings(retriever):
    """All that decides an embedding but the text, its kind with the prompt, the weights and the code."""
    return {"suffix": retriever.suffix, "max_tokens": retriever.max_tokens, "pooling": retriever.pooling, "normalize": retriever.normalize,
            "config": configuration(retriever.llm), **vocabulary(retriever.tokenizer),
            "adapters": [(n, layer.scaling) for n, layer in retriever.adapters().items() if layer.enabled]}


def identity(retriever, kind):
    """A digest of everything but the text that decides an embedding."""
    off = tuple(f"{name}.lora_" for name, layer in retriever.adapters().items() if not layer.enabled)  # of no effect now
    weights = (x for name, tensor in retriever.llm.state_dict().items() if not name.startswith(off)
               for x in (name, str(tensor.dtype), tensor_bytes(tensor)))
    return digest(in_words({"code": code("model", {}), "torch": torch.__version__, "kind": kind, "prompt": retriever.prompts[kind],
                            **settings(retriever)}), more=weights)


class Cache:
    """Wraps a Retriever: the same `encode`, but chunks of texts that were encoded before are read from disk."""

    def __init__(self, retriever, folder, tell=True, keep=True):
        self.retriever, self.folder, self.kinds, self.keep = retriever, Path(folder), {}, keep  # keep: whether new embeddings are written
        self.tell = tell  # whether the folder has embeddings of others, too
        self.asked = self.found = 0  # texts, and those whose embeddings were there
        self.device, self.max_tokens = retriever.device, retriever.max_tokens

    @property
    def cut(self):
        return self.retriever.cut

    def place(self, kind):
        """The folder of this retriever's embeddings of a kind."""
        if kind not in self.kinds:
            folder = self.folder / identity(self.retriever, kind)
            if not self.keep:
                return self.kinds.setdefault(kind, folder)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                others = [p for p in self.folder.iterdir() if p.is_dir() and p not in self.kinds.values()]
                if self.tell and others and not folder.is_dir():
                    print(f"{self.folder}: has embeddings of other models, settings or code, which are left alone; "
                          f"{kind} embeddings of {self.retriever.name} are made anew", file=sys.stderr)
                folder.mkdir(exist_ok=True)  # another process may be first
            except OSError as error:
                raise BadInput(f"--cache {self.folder}: cannot be written to ({error.strerror})") from None
            if not (folder / "about.json").is_file():
                write_json(folder / "about.json", {"retriever": str(self.retriever.name), "kind": kind})
            self.kinds[kind] = folder
        return self.kinds[kind]

    def read(self, path, count):
        """The embeddings of a chunk of `count` texts, or None where they are absent or damaged."""
        if not path.is_file():
            return None
        try:
            stored = np.load(path, mmap_mode="c", allow_pickle=False)
            if stored.shape != (count, self.retriever.width) or stored.dtype != np.float32:
                raise ValueError("another shape")
        except Exception as error:  # numpy's parser of a damaged header raises whatever Python's does
            print(f"{path}: damaged, made anew ({error})", file=sys.stderr)
            return None
        return torch.from_numpy(stored)

    def encode(self, texts, kind="query", bar=None):
        """As Retriever.encode; `texts` is one chunk. Raises BadInput if the embeddings cannot be written."""
        path = self.place(kind) / f"{digest(*texts)}.npy"
        self.asked += len(texts)
        stored = self.read(path, len(texts))
        if stored is not None:
            self.found += len(texts)
            if bar is not None:
                bar.update(len(texts))
            return stored
        embeddings = self.retriever.encode(texts, kind, bar=bar)
        if self.keep and embeddings.isfinite().all():  # what is not is refused elsewhere, and must not stay
            with replacing(path, mode="wb") as file:
                np.save(file, embeddings.numpy())
        return embeddings
