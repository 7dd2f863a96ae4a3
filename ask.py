"""Type a question, see the best passages: what `python evaluate.py --ask` does."""
import sys

import torch

from bm25 import BM25
from evaluate import encode_chunks
from search import search


def typed():
    """Questions typed in, until an empty line or the end."""
    while True:
        if sys.stdin.isatty():
            print("question: ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def ask(retriever, corpus, questions, k=5):
    """Print the k best passages for each question. corpus: {document id: text}."""
    ids, texts = list(corpus), list(corpus.values())
    if isinstance(retriever, BM25):
        index = retriever.index(texts)
    else:
        document_emb = torch.cat([emb for _, emb in encode_chunks(retriever, texts, "document", progress=True, share=False)])
    for question in questions:
        if isinstance(retriever, BM25):
            scores, indices = index.top([question], k)
        else:
            scores, indices = search(retriever.encode([question], kind="query").to(document_emb.device), document_emb, k)
        for place, (score, i) in enumerate(zip(scores[0].tolist(), indices[0].tolist()), 1):
            print(f"{place}  {score:7.3f}  {ids[i]}: {' '.join(texts[i].split())[:160]}")
