"""Type a question, see the best passages: what `python evaluate.py --ask` does. A trained retriever stands beside its untrained self."""
import shutil
import sys
import textwrap

import torch
from tqdm import tqdm

from bm25 import BM25
from cache import Cache
from evaluate import encode_chunks
from files import BadInput
from search import search


def typed():
    """Questions typed in, until an empty line or the end."""
    while True:
        if sys.stdin.isatty():
            print("question: ", end="", flush=True)
        try:
            line = sys.stdin.readline().strip()
            line.encode()  # some locales let bytes that are no text pass as surrogates
        except UnicodeError:
            raise BadInput("a question is not UTF-8 text") from None
        if not line:
            return
        yield line


def encoded(retriever, texts, cache, keep):
    """(M, D); cache: a folder with embeddings, or None; keep: whether new ones are written there."""
    reader = Cache(retriever, cache, keep=keep) if cache else retriever
    result = torch.empty(len(texts), retriever.width, device=retriever.device)
    for start, embeddings in encode_chunks(reader, texts, "document", progress=True, share=False):
        result[start : start + len(embeddings)] = embeddings  # copied: what a cache hands out keeps a file open
    return result


def best(retriever, document_emb, question, k):
    """[(score, row)] of the k best documents."""
    scores, indices = search(retriever.encode([question], kind="query").to(document_emb.device), document_emb, k)
    return list(zip(scores[0].tolist(), indices[0].tolist()))


def side_by_side(columns, width):
    """{heading: [text]} -> lines, each column `width` wide; texts of one place stand next to each other."""
    lines = ["  ".join(f"{heading:{width}s}" for heading in columns).rstrip()]
    for texts in zip(*columns.values()):
        cells = [textwrap.wrap(text, width)[:3] for text in texts]  # what a passage begins with
        for i in range(max(map(len, cells))):
            lines.append("  ".join(f"{cell[i] if i < len(cell) else '':{width}s}" for cell in cells).rstrip())
    return "\n".join(lines)


def cut(retriever, texts, at_once=1000):
    """How many documents are longer than the retriever reads, or just as long, whether their embeddings are there or not."""
    starts = tqdm(range(0, len(texts), at_once), desc="counting tokens", leave=False)
    return sum(len(row) >= retriever.max_tokens for i in starts for row in retriever.tokenize(texts[i : i + at_once], "document"))


def ask(retriever, corpus, questions, cache=None, keep=True, k=5):
    """Print the k best passages for each question. corpus: {document id: text}; cache: a folder with embeddings, and keep: whether
    new ones are written there."""
    ids, texts = list(corpus), list(corpus.values())

    def shown(found):
        return [f"{place} {score:6.3f} {ids[i]}: {' '.join(texts[i].split())}" for place, (score, i) in enumerate(found, 1)]

    if isinstance(retriever, BM25):
        index = retriever.index(texts)
        for question in questions:
            scores, indices = index.top([question], k)
            print("\n".join(line[:160] for line in shown(zip(scores[0].tolist(), indices[0].tolist()))))
        return
    after, before = encoded(retriever, texts, cache, keep), None
    if count := cut(retriever, texts):
        print(f"{count} documents reach {retriever.max_tokens} tokens; what lies behind is not read", file=sys.stderr)
    if retriever.adapters():
        with retriever.adapters_off():
            before = encoded(retriever, texts, cache, keep)
    for question in questions:
        if before is None:
            print("\n".join(line[:160] for line in shown(best(retriever, after, question, k))))
            continue
        with retriever.adapters_off():
            untrained = best(retriever, before, question, k)
        columns = {"before training": shown(untrained), "after training": shown(best(retriever, after, question, k))}
        print(side_by_side(columns, min(80, shutil.get_terminal_size((120, 24)).columns // 2 - 2)))
