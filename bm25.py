"""BM25, the lexical baseline (Robertson & Zaragoza 2009; Lucene's form), in numpy.

    score(q, d) = sum_{t in q} idf_t * tf_td / (tf_td + k1 (1 - b + b |d| / avg |d|))
    idf_t = log(1 + (n - df_t + .5) / (df_t + .5))

over the n documents, df_t of which have the token t, tf_td times in d; a word that q repeats counts again. k1 = 0.9 and
b = 0.4 are the values that BEIR's baselines use.

Tokens, of a document's title and text together:

    1. lower-cased runs of letters, digits and underscores, so that a name in code is one token
    2. without Lucene's 33 English stop words and those that questions are made of
    3. without common English endings (`stem`)
"""
import re
import unicodedata
from array import array
from collections import defaultdict
from functools import lru_cache

import numpy as np
import torch
from tqdm import tqdm

from processes import processes

STOPWORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with "
    "how i what when where which while who whom whose why".split())


@lru_cache(1 << 18)  # texts repeat their words: most calls are look-ups
def stem(token):
    """Cut -s, -ly, -ed, -ing, -e, in this order, where three letters stay, and write y as i.

    >>> [stem(t) for t in ("bridges", "glasses", "flies", "fly", "covered", "running", "virus")]
    ['bridg', 'glass', 'fli', 'fli', 'cover', 'run', 'virus']
    """
    for ending in ("s", "ly", "ed", "ing", "e"):
        rest = token.removesuffix(ending)
        if len(token) > len(rest) >= 3 and not token.endswith(("ss", "us", "is", "eed")):
            if ending in ("ed", "ing") and rest[-1] == rest[-2] and rest[-1] not in "elsz":
                rest = rest[:-1]  # running -> runn -> run
            token = rest
    return token[:-1] + "i" if token.endswith("y") else token


def tokenize(text):
    """
    >>> tokenize("The bridges in has_close_elements, 1883")
    ['bridg', 'has_close_element', '1883']
    """
    text = unicodedata.normalize("NFC", text).lower()  # NFC: an accented letter is one character, however it was typed
    return [stem(word) for word in re.findall(r"\w+", text) if word not in STOPWORDS]


class BM25:
    """Searches like a Retriever, by words instead of vectors."""

    device, max_tokens, cut = "cpu", None, 0  # as a Retriever's: texts are read whole

    def __init__(self, k1=0.9, b=0.4):
        self.k1, self.b = k1, b

    def search(self, queries, documents, k):
        """Texts -> (scores, indices), each (N, min(k, M)), best first; equal scores keep corpus order."""
        return self.index(documents).top(queries, k)

    def index(self, documents):
        """Keep what each token adds to each document's score, for any number of calls of `top`."""
        numbers = defaultdict(lambda: len(numbers))  # token -> its number, in order of appearance
        flat, lengths = array("i"), []
        for document in documents:
            tokens = tokenize(document)
            flat.extend(map(numbers.__getitem__, tokens))
            lengths.append(len(tokens))
        lengths = np.array(lengths, np.int64)
        self.numbers, self.size = dict(numbers), len(lengths)
        at = np.repeat(np.arange(self.size), lengths)  # the document of each token
        pairs, tf = np.unique(np.array(flat, np.int64) * self.size + at, return_counts=True)  # by token, then document
        terms, self.at = np.divmod(pairs, self.size)
        df = np.bincount(terms, minlength=len(numbers))
        idf = np.log(1 + (self.size - df + 0.5) / (df + 0.5))
        norm = self.k1 * (1 - self.b + self.b * lengths * self.size / max(lengths.sum(), 1))  # (M,)
        self.added = (idf[terms] * tf / (tf + norm[self.at])).astype(np.float32)
        self.ends = np.concatenate([[0], df.cumsum()])  # token i's documents: at[ends[i] : ends[i + 1]]
        return self

    def top(self, queries, k):
        """The k best documents of the index for each query; one query's scores are in memory at a time."""
        k = min(k, self.size)
        scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for i, query in enumerate(queries if k else ()):
            row = np.zeros(self.size, np.float32)
            for token in tokenize(query):
                if token in self.numbers:
                    number = self.numbers[token]
                    one = slice(self.ends[number], self.ends[number + 1])
                    row[self.at[one]] += self.added[one]
            least = np.partition(row, self.size - k)[self.size - k]
            above = np.flatnonzero(row > least)
            best = np.concatenate([above, np.flatnonzero(row == least)[: k - len(above)]])
            indices[i] = best[np.argsort(-row[best], kind="stable")]  # stable: equal scores keep corpus order
            scores[i] = row[indices[i]]
        return torch.from_numpy(scores), torch.from_numpy(indices)


def ordered(corpus, examples, order):
    """{id: text} -> the ids of the examples' documents as train.py's --order has them: "file", or "bm25", a chain()."""
    named = {e.document for e in examples}
    own = {d: text for d, text in corpus.items() if d in named}
    return chain(own) if order == "bm25" else list(own)


def chain(corpus, depth=32):
    """{id: text} -> its ids in an order in which similar texts follow each other: each one's best BM25 neighbour that is left.

    Where none of a text's `depth` best is left, the first in file order that is left comes next. Every text is a query: the time
    grows with the square of their number.
    """
    ids, texts = list(corpus), list(corpus.values())
    index, order, left, rest = BM25().index(texts), [], dict.fromkeys(range(len(ids))), iter(range(len(ids)))
    here = next(rest, None)
    with tqdm(total=len(ids), desc="ordering", unit="document", leave=False, delay=5, disable=processes()[0] > 0) as bar:
        while here is not None:
            order.append(ids[here])
            del left[here]
            bar.update()
            _, near = index.top([texts[here]], depth)
            here = next((i for i in near[0].tolist() if i in left), None)
            if here is None:
                here = next((i for i in rest if i in left), None)
    return order
