"""Training examples, pools, prompts, and the files they are read from: everything that is text.

A training folder holds `corpus.jsonl` ({"_id", "title", "text"}) and `train.jsonl` ({"query", "target", "document"}):
a question, the text that answers it, and the id of the document it comes from. The source document is *not* a label
for DREAM: it makes sure that a pool of candidates can answer its questions, and a few examples' sources choose the heads
(eq 6); the loss never reads it. An evaluation folder has the BEIR layout: `corpus.jsonl`, `queries.jsonl` ({"_id",
"text"}) and `qrels/SPLIT.tsv` (query-id, corpus-id, score) or TREC's own qrels (query, 0, document, relevance). Each of
these files may be compressed (`.gz`).

    python data.py squad train-v2.0.json my_data       # other people's data as a training folder; --help lists more

Whatever is wrong with a file is a `BadInput` with file, line and what to do. Knows tokenizers, but no models.
"""
import csv
import gzip
import json
import math
import random
import sys
import unicodedata
import zlib
from array import array
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from files import LONGEST, BadInput, command, numbered


@dataclass
class Collection:
    """What a retriever is measured on."""

    corpus: dict[str, str]  # document id -> "title text"
    queries: dict[str, str]  # query id -> text
    qrels: dict[str, dict[str, int]]  # query id -> {document id: relevance}
    absent: int = 0  # judgments of documents that the corpus does not have; they count as never found


@dataclass
class Example:
    """One training row."""

    query: str
    target: str
    document: str  # the id of the source document


@dataclass
class Pool:
    """The candidates of one training step, shared by its questions."""

    documents: list[str]  # K document ids
    examples: list[Example]  # B examples, each with its source among the documents

    @property
    def source(self):
        """(B,) long: the index of each example's source document."""
        return torch.tensor([self.documents.index(e.document) for e in self.examples])

    @property
    def is_source(self):
        """(B, K) bool: where each example's source stands; where processes share a pool (--gather), it may stand twice."""
        return torch.tensor([[d == self.documents[place] for d in self.documents] for place in self.source.tolist()])


# ----------------------------------------------------------------------------------------------------------- pools


def make_pools(examples, order, K, B, neighbours, seed=0):
    """Endless Pools of K candidates and up to B examples, the same for the same seed.

    ASSUMPTION: candidates are sources of examples, those of the pool's questions among them, in groups of `neighbours`
    documents that follow each other in `order` (ids): what stands together in a corpus file (an article's paragraphs), or in a
    chain of BM25 neighbours, is hard to tell apart. Every pass cuts the groups elsewhere; a document's examples take turns.
    """
    generator = random.Random(seed)
    examples_of = {}
    for example in examples:
        examples_of.setdefault(example.document, []).append(example)
    order = [d for d in order if d in examples_of]
    K = min(K, len(order))
    rounds = min(math.ceil(B / K), max(map(len, examples_of.values())))  # the most questions of a pool about one document
    queues = {d: deque(generator.sample(own, len(own))) for d, own in examples_of.items()}
    while True:  # a pass over all documents
        cut = generator.randrange(len(order))
        circle = order[cut:] + order[:cut]
        groups = [circle[i : i + neighbours] for i in range(0, len(circle), neighbours)]
        generator.shuffle(groups)
        line = [d for group in groups for d in group]
        for start in range(0, len(line) - K + 1, K):
            documents = line[start : start + K]
            generator.shuffle(documents)
            asked = [d for n in range(rounds) for d in documents if n < len(examples_of[d])]
            chosen = []
            for d in asked[:B]:
                chosen.append(queues[d][0])
                queues[d].rotate(-1)
            yield Pool(documents, chosen)


# --------------------------------------------------------------------------------------------------------- prompts
# ASSUMPTION: the paper prints no prompt; header and closing blank line belong to the document, the newline behind an answer to the target.
INTRODUCTION = "Answer the questions using the documents.\n\n"
DOCUMENT = "Document {number}:"
QUESTION = "Question: {query}\nAnswer:"


class Prompts:
    """The LLM's side of a pool as token ids. Every text is tokenized once; documents are cut at `document_tokens`."""

    def __init__(self, tokenizer, document_tokens):
        self.tokenizer, self.document_tokens = tokenizer, document_tokens
        self.ids, self.truncated = {}, set()

    def tokenize(self, text, most=None):
        """A text -> its first `most` token ids. Each text is tokenized once: give it the same `most` always."""
        if text not in self.ids:
            self.ids[text] = array("i", self.tokenizer(text, add_special_tokens=False).input_ids[:most])
        return self.ids[text].tolist()

    def document(self, text):
        """The tokens of a document that are read, and the one behind them where it is longer."""
        return self.tokenize(" " + text, self.document_tokens + 1)

    def context(self, documents):
        """K texts -> input_ids (1, L) and document_of (L,): k inside document k, else -1."""
        ids = self.tokenizer(INTRODUCTION).input_ids  # with the tokenizer's own first token, where it has one
        document_of = [-1] * len(ids)
        for k, text in enumerate(documents):
            body = self.document(text)
            if len(body) > self.document_tokens:
                self.truncated.add(text)
            piece = self.tokenize(DOCUMENT.format(number=k + 1)) + body[: self.document_tokens] + self.tokenize("\n\n")
            ids += piece
            document_of += [k] * len(piece)
        return torch.tensor([ids]), torch.tensor(document_of)

    def suffixes(self, examples):
        """B examples -> input_ids and target_mask, both (B, T), right-padded; the mask is True on target tokens."""
        asked = [self.tokenize(QUESTION.format(query=e.query)) for e in examples]
        answered = [self.tokenize(f" {e.target}\n") for e in examples]
        rows = [torch.tensor(q + a) for q, a in zip(asked, answered)]
        masks = [torch.arange(len(q) + len(a)) >= len(q) for q, a in zip(asked, answered)]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(masks, batch_first=True)


# --------------------------------------------------------------------------------------------------------- readers


def find_file(folder, *names):
    """The first of `names` in `folder`, or compressed as `.gz`; if there is none, the first name, for the error message."""
    there = (Path(folder) / f"{name}{gz}" for name in names for gz in ("", ".gz"))
    return next((path for path in there if path.is_file()), Path(folder) / names[0])


def read_lines(path, blank=False, longest=LONGEST):
    """Yield (line number, bytes) of a file's lines, blank ones if asked for, `.gz` decompressed, no BOM. Raises BadInput."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            for number, line in numbered(file, path, longest):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if blank or line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None


def read_jsonl(path, *fields):
    """Yield (line number, object) of a JSON-lines file whose objects have `fields`, all strings."""
    for number, line in read_lines(path):
        try:
            row = json.loads(line.decode())  # UTF-8 alone: from bytes, json also guesses UTF-16
            if b"\\ud" in line.lower():
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:  # also undecodable bytes
            raise BadInput(f"{path}:{number}: not a line of JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}:{number}: expected an object with {', '.join(fields)}")
        for name in fields:
            if not isinstance(row.get(name), str):
                raise BadInput(f"{path}:{number}: the field {name!r} is missing or not a string")
        yield number, row


def read_texts(path, seen):
    """Yield (line number, {"_id", "title", "text"}) of corpus.jsonl or queries.jsonl; seen: the ids so far, to which the caller adds each."""
    number = 0
    for number, row in read_jsonl(path, "_id", "text"):
        if row["_id"] in seen:
            raise BadInput(f"{path}:{number}: the id {row['_id']!r} stands twice")
        title = "" if row.get("title") is None else row["title"]
        if not isinstance(title, str):
            raise BadInput(f"{path}:{number}: the field 'title' is not a string")
        yield number, {"_id": row["_id"], "title": title, "text": row["text"]}
    if not number:
        raise BadInput(f"{path}: empty")


def load_texts(path):
    """corpus.jsonl or queries.jsonl -> {id: "title text"} in file order; a missing or null title is left out."""
    texts = {}
    for _, row in read_texts(path, texts):
        texts[row["_id"]] = f"{row['title']} {row['text']}".strip()
    return texts


def load_qrels(path):
    """Judgments -> {query id: {document id: relevance}}; BEIR's three columns below a header, or TREC's four without."""
    qrels, trec = {}, None  # None: not known before the first line
    for number, line in read_lines(path):
        cells = line.split()
        if trec is None:
            trec = len(cells) == 4 and cells[3].lstrip(b"+-").isdigit()
            if not trec:
                if line.rstrip().rpartition(b"\t")[2].lstrip(b"+-").isdigit():
                    raise BadInput(f"{path}:{number}: a judgment where the header belongs (query-id, corpus-id, score)")
                continue
        try:
            if not trec:  # BEIR reads it as csv: a cell that begins with a quotation mark is quoted
                cells = [cell.encode() for cell in next(csv.reader([line.decode().rstrip("\r\n")], delimiter="\t"))]
            if len(cells) != (4 if trec else 3) or len(cells[-1].strip()) > 9 or b"_" in cells[-1]:
                raise ValueError
            query, document, relevance = cells[0].decode(), cells[-2].decode(), int(cells[-1])
        except (ValueError, csv.Error):  # also undecodable bytes
            columns, by = ("query, 0, document", "blanks") if trec else ("query-id, corpus-id", "tabs (csv: a cell may be quoted)")
            raise BadInput(f"{path}:{number}: expected {columns} and a whole number of at most nine characters, separated by {by}") from None
        if document in qrels.setdefault(query, {}):
            raise BadInput(f"{path}:{number}: {query!r} and {document!r} are judged twice")
        qrels[query][document] = relevance
    if not qrels:
        raise BadInput(f"{path}: no judgments")
    return qrels


def check_folder(folder):
    """A folder's Path. Raises BadInput where there is none."""
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: no such folder")
    return Path(folder)


def load_corpus(folder):
    """A folder's corpus.jsonl -> {document id: "title text"}, in file order."""
    return load_texts(find_file(check_folder(folder), "corpus.jsonl"))


def find_qrels(folder, split):
    """A split's judgments, BEIR's .tsv or TREC's, compressed or not; the .tsv's path where there are none."""
    return find_file(Path(folder) / "qrels", f"{split}.tsv", f"{split}.trec", f"{split}.qrels", f"{split}.txt")


def load_collection(folder, split="test"):
    """A folder in BEIR layout -> Collection with the judged queries alone."""
    folder = check_folder(folder)
    path = find_qrels(folder, split)
    if not path.is_file():
        there = ", ".join(sorted({p.name.partition(".")[0] for p in folder.glob("qrels/*.*")})) or "none"
        raise BadInput(f"{path}: no such split; there: {there}")
    corpus, queries, qrels = load_corpus(folder), load_texts(find_file(folder, "queries.jsonl")), load_qrels(path)
    if (missing := next((q for q in qrels if q not in queries), None)) is not None:
        raise BadInput(f"{path}: the query {missing!r} is judged, but queries.jsonl does not have it")
    absent = sum(d not in corpus for judged in qrels.values() for d in judged)
    if absent:
        print(f"{path}: {absent} judgments are of documents that the corpus does not have; they count as never found",
              file=sys.stderr)
    return Collection(corpus, {q: queries[q] for q in qrels}, qrels, absent)


def load_collections(folders, split="test"):
    """Folders separated by commas -> {folder's own name: Collection}."""
    collections = {}
    for folder in filter(None, folders.split(",")):
        name = Path(folder).resolve().name
        if name in collections:
            raise BadInput(f"{folder}: two collections are called {name!r}; rename a folder")
        collections[name] = load_collection(folder, split)
    return collections


def load_examples(folder):
    """A training folder's train.jsonl -> [Example]; every document must stand in corpus.jsonl."""
    folder = check_folder(folder)
    corpus, path, examples = load_corpus(folder), find_file(folder, "train.jsonl"), []
    for number, row in read_jsonl(path, "query", "target", "document"):
        for name in ("query", "target"):
            if not row[name].strip():
                raise BadInput(f"{path}:{number}: the {name} is empty")
        if row["document"] not in corpus:
            raise BadInput(f"{path}:{number}: the document {row['document']!r} is not in corpus.jsonl")
        examples.append(Example(row["query"].strip(), row["target"].strip(), row["document"]))
    if len({e.document for e in examples}) < 2:
        raise BadInput(f"{path}: the rows need at least two different documents to choose from")
    return examples


def flat(text):
    """A text for comparison: without case, runs of white space are one blank, an accented letter is one character.

    >>> flat("Two\\n Words")
    'two words'
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def sources(corpus, examples):
    """{question: texts of all documents that it is asked of}, of which none is wrong for it.

    >>> sources({"a": "A", "b": "B"}, [Example("Which?", "x", "a"), Example("Which?", "y", "b")]) == {"Which?": {"A", "B"}}
    True
    """
    found = {}
    for e in examples:
        found.setdefault(e.query, set()).add(corpus[e.document])
    return found


def main(argv=None):
    import commands  # here, because it imports this module
    commands.main(argv)


if __name__ == "__main__":
    command(main)
