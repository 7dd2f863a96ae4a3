"""BM25, the lexical baseline (Robertson & Zaragoza 2009; Lucene's form), in numpy.

    score(q, d) = sum_{t in q} log(1 + (n - df_t + .5) / (df_t + .5)) * tf_td / (tf_td + k1 (1 - b + b |d| / avg |d|))

Tokens: lower-cased runs of letters and digits, without a short list of English function words, and with plural and
verb endings cut off (`stem`). k1 = 0.9 and b = 0.4 are the values that BEIR's baselines use.
"""
import re
from collections import Counter

import numpy as np
import torch

STOPWORDS = frozenset(
    "a an and are as at be been but by did do does for from had has have he her his how i if in into is it its of on or "
    "she so such that the their them then there these they this to was we were what when where which while who whom "
    "whose why will with you".split())


# ending, what takes its place, the shortest rest, words that keep it
ENDINGS = (("ies", "y", 2, ()), ("sses", "ss", 3, ()), ("ing", "", 3, ()), ("ed", "", 3, ("eed",)),
           ("s", "", 3, ("ss", "us", "is")))


def stem(token):
    """Cut common English endings, so that "bridges" meets "bridge" and "built in" does not meet "building".

    >>> [stem(t) for t in ("bridges", "glasses", "flies", "covered", "running", "this")]
    ['bridge', 'glass', 'fly', 'cover', 'run', 'this']
    """
    for ending, replacement, shortest, exceptions in ENDINGS:
        rest = token.removesuffix(ending)
        if rest != token and len(rest) >= shortest and not token.endswith(exceptions):
            if ending in ("ing", "ed") and rest[-1] == rest[-2] and rest[-1] not in "lsz":
                rest = rest[:-1]  # running -> runn -> run
            return rest + replacement
    return token


def tokenize(text):
    return [stem(t) for t in re.findall(r"[^\W_]+", text.lower()) if t not in STOPWORDS]


class BM25:
    """Searches like a Retriever, by words instead of vectors."""

    def __init__(self, k1=0.9, b=0.4):
        self.k1, self.b = k1, b

    def search(self, queries, documents, k):
        """Texts -> (scores, indices), each (N, min(k, M)), best first."""
        counts = [Counter(tokenize(d)) for d in documents]
        lengths = np.array([sum(c.values()) for c in counts], np.float64)
        norm = self.k1 * (1 - self.b + self.b * lengths / max(lengths.mean(), 1e-9))  # (M,)
        postings = {}  # term -> ([document], [term frequency])
        for index, count in enumerate(counts):
            for term, frequency in count.items():
                rows = postings.setdefault(term, ([], []))
                rows[0].append(index)
                rows[1].append(frequency)
        postings = {term: (np.array(at), np.array(tf, np.float64)) for term, (at, tf) in postings.items()}
        shape = len(queries), min(k, len(documents))
        scores, indices = np.empty(shape, np.float32), np.empty(shape, np.int64)
        for i, query in enumerate(queries):
            row = np.zeros(len(documents), np.float32)
            for term, repeats in Counter(tokenize(query)).items():
                if term in postings:
                    at, tf = postings[term]
                    idf = np.log(1 + (len(documents) - len(at) + 0.5) / (len(at) + 0.5))
                    row[at] += repeats * idf * tf / (tf + norm[at])
            indices[i] = np.argsort(-row, kind="stable")[:k]  # stable: equal scores keep corpus order
            scores[i] = row[indices[i]]
        return torch.from_numpy(scores), torch.from_numpy(indices)
