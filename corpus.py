"""Training rows from raw documents alone, for everyone who has documents and no questions.

    python data.py corpus docs.jsonl my_data       # or a .txt file with blank lines between documents; either as .gz
    python train.py --data my_data --eval ...

Documents ask about themselves (cloze.py): the rows' queries are sentences taken out of them, with a blank. Then a frozen
LLM judges each row once, and keeps it if the document decides the target:

    gain = mean log p(target | source document, query) - mean log p(target | query) >= MIN_GAIN

Writes corpus.jsonl, each document once, without the sentences that became queries, and train.jsonl, whose rows also
have `kind` and `gain`. The same file, LLM, options and precision make the same rows.
"""
import math
import random
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import cut
from cloze import KINDS, Document, Words, cut_tokens, make_rows, stands_in
from convert import making, write_lines
from data import Prompts, find_file, read_lines, read_texts
from files import BadInput

MIN_GAIN = math.log(2)  # nats per target token: the source must at least double each token's probability, on average
ROOM = 128  # tokens that a document's header, a question and its target seldom exceed
BATCH = 8  # documents whose rows are judged together


def read_raw(path):
    """A corpus.jsonl, a folder that has one, or a .txt file, each also as .gz -> {id: (title, text)}. Raises BadInput.

    In NFC: an accented letter is one character where Unicode has it, or a word would end between the letter and its accent."""
    path = find_file(path, "corpus.jsonl") if Path(path).is_dir() else Path(path)
    name = path.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".txt")):
        raise BadInput(f"{path}: expected a .jsonl file with _id, title and text, a .txt file with blank lines between "
                       "documents, or a folder with a corpus.jsonl")
    documents, lines, last = {}, [], -1
    if name.endswith(".jsonl"):
        for _, row in read_texts(path, documents):
            documents[row["_id"]] = row["title"], row["text"]
    else:
        for number, line in read_lines(path):
            try:
                line = line.decode().rstrip()
            except UnicodeDecodeError as error:
                raise BadInput(f"{path}:{number}: not UTF-8 text ({error.reason})") from None
            if "\0" in line:
                raise BadInput(f"{path}:{number}: has a NUL byte, as no text has")
            if number > last + 1:  # blank lines are in between
                lines.append([])
            lines[-1].append(line)
            last = number
        documents = {str(number): ("", "\n".join(own)) for number, own in enumerate(lines, 1)}
    if not documents:
        raise BadInput(f"{path}: empty")
    return {id: tuple(unicodedata.normalize("NFC", part) for part in texts) for id, texts in documents.items()}


class Judge:
    """The frozen LLM that says how much more probable a target is with its source document than with no document."""

    def __init__(self, name, document_tokens, dtype="auto"):
        from backbones import load_backbone  # only where there is an LLM: transformers takes seconds to import
        from inject import check_llm, prefill, target_nll

        tokenizer, self.llm = load_backbone(name, dtype=dtype)
        self.prefill, self.target_nll = prefill, target_nll
        self.prompts = Prompts(tokenizer, document_tokens)
        input_ids, nowhere = self.prompts.context([])
        try:  # before hours of work
            check_llm(self.llm, document_tokens + input_ids.shape[1] + ROOM)
        except BadInput as error:
            raise BadInput(f"--document-tokens {document_tokens}: {error}") from None
        self.nothing = self.read(input_ids, nowhere + 1)  # to read the bare prompt, it has to count as a document

    def read(self, input_ids, document_of):
        return self.prefill(self.llm, input_ids.to(self.llm.device), document_of.to(self.llm.device))

    @torch.no_grad()
    def gains(self, sources):
        """[(text, rows)] -> for each, the rows' mean log p(target | text, query) - log p(target | query) per target token."""
        def nll(prefix, rows):
            return self.target_nll(self.llm, prefix, *(x.to(self.llm.device) for x in self.prompts.suffixes(rows)))

        without = nll(self.nothing, [r for _, rows in sources for r in rows]).split([len(rows) for _, rows in sources])
        return [(none - nll(self.read(*self.prompts.context([text])), rows)).tolist()
                for none, (text, rows) in zip(without, sources)]


def judged(judge, batch):
    """[(document, its rows)] -> the rows' gains are set."""
    gains = judge.gains([(d.whole(d.without({r.sentence for r in rows})), rows) for d, rows in batch])
    for (_, rows), own in zip(batch, gains):
        for row, gain in zip(rows, own):
            row.gain = round(gain, 3)


def without_asked(document, rows, kept, visible):
    """The text that is written: without the sentences of the kept rows; dropped ones go back if all targets stay visible."""
    text = document.without({r.sentence for r in kept})
    seen = visible(document.whole(text))
    return text if all(stands_in(seen, r.target) for r in kept) else document.without({r.sentence for r in rows})


def visit(documents, judge, limit, per_document, seed, document_tokens):
    """{id: (title, text)} -> ({id: (text that remains, its rows)}, counts of what was made and dropped)."""
    words, counts, made = Words(documents), Counter(), {}
    visible = partial(cut.visible, judge.prompts) if judge else lambda text: cut_tokens(text, document_tokens)
    order = random.Random(seed).sample(list(documents), len(documents))
    bar = tqdm(total=limit or len(order), desc="rows", unit="row" if limit else "document")
    for start in range(0, len(order), BATCH):
        batch = []
        if judge:
            judge.prompts.ids.clear()  # no document comes twice
            judge.prompts.truncated.clear()
        for id in order[start : start + BATCH]:
            document = Document(id, *documents[id], words)
            if rows := make_rows(document, per_document, visible, random.Random(f"{seed}/{id}")):
                batch.append((document, rows))
            counts.update({"visited": 1, "empty": not rows, "asked": len(rows)})
        if judge and batch:
            judged(judge, batch)
        for document, rows in batch:
            kept = [r for r in rows if r.gain is None or r.gain >= MIN_GAIN]
            if kept:
                made[document.id] = without_asked(document, rows, kept, visible), kept
            counts["kept"] += len(kept)
        bar.update(min(limit, counts["kept"]) - bar.n if limit else min(BATCH, len(order) - start))
        bar.set_postfix(kept=counts["kept"], dropped=counts["asked"] - counts["kept"])
        if limit and counts["kept"] >= limit:
            break
    bar.close()
    return made, counts


def make_folder(file, out, llm="SmolLM2-135M", rows=0, per_document=3, seed=0, document_tokens=128, dtype="auto"):
    """Raw documents -> a training folder `out`, written whole or not at all. Raises BadInput."""
    for name, value, least in (("rows", rows, 0), ("per-document", per_document, 1), ("document-tokens", document_tokens, 1)):
        if value < least:
            raise BadInput(f"--{name} must be at least {least}, not {value}")
    documents = read_raw(file)
    longest = max(len(f"{title} {text}".encode()) for title, text in documents.values()) + 1  # in tokens hardly more
    with making(out) as part:
        judge = None if llm == "none" else Judge(llm, min(document_tokens, longest), dtype)
        made, counts = visit(documents, judge, rows, per_document, seed, document_tokens)
        if len(made) < 2:
            raise BadInput(f"{file}: {counts['kept']} rows came out, of {len(made)} documents; training needs two documents at "
                           "least. A document gives rows if it has several sentences that share names, numbers or rare words")
        write_lines(part / "corpus.jsonl", ({"_id": id, "title": title, "text": made[id][0] if id in made else text}
                                            for id, (title, text) in documents.items()))
        found = [row for id in documents if id in made for row in made[id][1]]
        write_lines(part / "train.jsonl", ({k: v for k, v in vars(row).items() if k != "sentence" and v is not None} for row in found))
    kinds = Counter(row.kind for row in found)
    print(f"{out}: {len(documents)} documents, {len(found)} rows of {len(made)} documents "
          f"({', '.join(f'{kinds[k]} {k}s' for k in KINDS)}). {counts['visited']} documents were read: {counts['empty']} had no sentence "
          f"to ask with; of {counts['asked']} rows {counts['asked'] - counts['kept']} were dropped, which the LLM answers nearly as well without the document")


def add_options(parser):
    """The command line of `python data.py corpus`."""
    parser.add_argument("file", help="corpus.jsonl (_id, title, text), a folder that has one, or a .txt file with blank lines between documents; also .gz")
    parser.add_argument("out", help="the training folder to make")
    parser.add_argument("--llm", default="SmolLM2-135M", help="the frozen LLM that judges the rows, best the one to train with; none: keep all rows")
    parser.add_argument("--rows", type=int, default=0, help="stop after about so many rows; 0: visit all documents")
    parser.add_argument("--per-document", type=int, default=3, help="rows of a document, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the order of documents, and of targets and queries")
    parser.add_argument("--document-tokens", type=int, default=128, help="the target stands within so many tokens of the source")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the LLM's weights")
