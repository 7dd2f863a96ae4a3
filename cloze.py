"""A document asks about itself: a sentence is taken out, and what it shares with the rest becomes a blank.

    document  Vik is a village in Norway. The church of Vik is built of wood. It has 3,000 people.
    query     The church of ___ is built of wood?
    target    Vik                                  stands in the sentence and in the rest of the document
    source    Vik is a village in Norway. It has 3,000 people.

What makes such a row worth training on, in the order of the code:

1. Targets - names, numbers, rare terms, phrases - stand in two sentences of their document and are rare in the corpus.
   What is rare, a stop word or an abbreviation is counted in the corpus itself: no language is built in.
2. Queries read less like the source: a part of the sentence, without some of the words that the source has too, with
   a blank, as a question with a blank, or as the open side of one.
3. Nothing leaks: a document loses the sentences of all its rows, once for all; a sentence that stands twice in the
   corpus asks nothing; a query has no word of its target.

Left out: scripts without spaces between words (Chinese, Japanese, Thai), which give next to no rows, those with vowels as
marks (Hindi, Tamil, Hebrew with points), whose words end at them, and paraphrased copies of a sentence, which are not found as copies.
"""
import math
import re
from collections import Counter
from dataclasses import dataclass

WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:[-'’]\w+)*")
END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|(?<!\s)\s*\n\s*")  # where a sentence may end; each run is tried once, from its start
MARK = re.compile(r"[,;:()\[\]—–\"“”]| - ")  # where a clause may end
BLANK = "___"
KINDS = ("name", "number", "phrase", "term")  # single terms last: a sentence says most of them by itself
STOP, RARE = 0.1, 0.005  # a stop word stands in more, a rare word in less than this share of the documents
FEW = 5  # in a small corpus: words of more documents are stop words, of at most so many are rare
CLEAR = 1.5  # how far a query's words must narrow the documents down, in log(documents)
SENTENCE, NEAR, CLAUSE = (20, 20), (3, 8), (20, 21)  # how many words a query keeps at each side of its blank; a clause's end may come first
FORMS = ("cloze", "question", "open")  # with a blank; the same and a question mark; one side of the blank alone
LONGEST, LETTERS = 6, 40  # words of a target; letters of a word: a longer one is nearly always code or data


@dataclass
class Row:
    """A training row, and the sentence of its document that it was made of."""

    query: str
    target: str
    document: str
    kind: str
    sentence: int
    gain: float | None = None  # how much more probable the source makes the target, once a judge has said it


# ------------------------------------------------------------------------------------------------------- sentences


def lines_wrap(text):
    """Do the line breaks within its paragraphs only keep lines short? Then no line had room for the next one's first word.

    >>> lines_wrap("def longest(words):\\n    return max(words, key=len)")
    False
    """
    paragraphs = [part.strip().split("\n") for part in re.split(r"\n\s*\n", text)]
    width = max(len(line) for lines in paragraphs for line in lines)
    return width > 50 and all(len(a) + 1 + len(b.split()[0]) > width and b[0] > " " for lines in paragraphs for a, b in zip(lines, lines[1:]))


def cut_sentences(text, abbreviations=frozenset()):
    """The (start, end) of each sentence, which together are the whole text. Lines that do not wrap are sentences, too.

    >>> text = "It was made by J. Smith, of St. Ives. He died . so it ends"
    >>> [text[a:b] for a, b in cut_sentences(text, {"st"})]
    ['It was made by J. Smith, of St. Ives. ', 'He died . ', 'so it ends']
    """
    wraps, small = lines_wrap(text), text == text.lower()
    cuts = [0]
    for match in END.finditer(text):
        mark = match[0].strip()
        before = text[max(0, match.start() - 20) : match.start()]
        word = re.search(r"[\w.]*$", before)[0].lower()
        apart = before[-1:].isspace()  # " . "
        goes_on = text[match.end() : match.end() + 1].islower() and not small and not apart
        short = mark[:1] == "." and not apart and (len(word) < 2 or "." in word or word in abbreviations)
        line_ends = match[0].count("\n") > wraps  # a blank line always
        if line_ends or (mark and not goes_on and not short):
            cuts.append(match.end())
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], len(text)]) if text[a:b].strip()]


def lower_words(text):
    return [w.lower() for w in WORD.findall(text)]


class Words:
    """What words are in a corpus: how many documents have them, which end with a dot, which sentences stand twice."""

    def __init__(self, documents):
        self.documents, self.size = documents, len(documents)
        self.stop = max(FEW, STOP * self.size)
        self.df, short, dotted = Counter(), Counter(), Counter()
        for title, text in documents.values():
            words = lower_words(f"{title} {text}")
            self.df.update(set(words))
            short.update(w for w in words if len(w) < 5)
            dotted.update(w.lower() for w in re.findall(r"\b([^\W\d]{1,4})\.\s", text))
        self.abbreviations = {w for w, n in dotted.items() if n > 2 and n >= 0.8 * short[w]}  # nearly always with a dot (Kiss & Strunk 2006, Punkt)
        self.twice = self.find_twice()

    def find_twice(self):
        """Hashes of the sentences (three lower-cased words or more) that stand twice in the corpus, also within others."""
        lengths, sentences, counts = {}, set(), Counter()  # of three words, as a hash: the lengths of the sentences that they begin
        for _, text in self.documents.values():
            for a, b in cut_sentences(text, self.abbreviations):
                words = tuple(lower_words(text[a:b]))
                if len(words) > 2:
                    opening = hash(words[:3])
                    lengths[opening] = (*{*lengths.get(opening, ()), len(words)},)
                    sentences.add(hash(words))
        for title, text in self.documents.values():
            words = tuple(lower_words(f"{title} {text}"))
            for i in range(len(words) - 2):
                for n in lengths.get(hash(words[i : i + 3]), ()):
                    if i + n <= len(words) and (found := hash(words[i : i + n])) in sentences:
                        counts[found] += 1
        return {h for h in sentences if counts[h] > 1}

    def is_stop(self, word):
        return self.df[word.lower()] > self.stop

    def idf(self, word):
        return math.log(self.size / max(1, self.df[word.lower()]))

    def are_clear(self, words):
        """Do these words tell which document is asked for? If words were independent, idf would add up."""
        return len(words) > 1 and sum(map(self.idf, words)) >= CLEAR * math.log(self.size)


# --------------------------------------------------------------------------------------------------------- targets


class Document:
    """A document as words and sentences. A sentence's `words` are matches in its text; sentence -1 is the title."""

    def __init__(self, id, title, text, words):
        self.id, self.title, self.text, self.vocabulary = id, title, text, words
        self.sentences = cut_sentences(text, words.abbreviations)
        self.words = {-1: list(WORD.finditer(title))}
        self.words |= {s: list(WORD.finditer(text, a, b)) for s, (a, b) in enumerate(self.sentences)}

    def without(self, sentences):
        """The text without some of its sentences."""
        return "".join(self.text[a:b] for s, (a, b) in enumerate(self.sentences) if s not in sentences).strip()

    def whole(self, text):
        """Title and text, as the judge and the retriever read them."""
        return f"{self.title} {text}".strip()

    def spans(self):
        """{words of a possible target: [(sentence, first word)]}; its words stand in two places, one space apart."""
        places = {}
        for s, words in self.words.items():
            text = self.title if s < 0 else self.text
            for i in range(len(words)):
                for j in range(i, min(i + LONGEST, len(words))):
                    if j > i and text[words[j - 1].end() : words[j].start()] != " ":
                        break
                    around = text[max(0, words[i].start() - 1) : words[i].start()] + text[words[j].end() : words[j].end() + 1]
                    if not set(around) & set("-–/"):  # a part of a compound
                        places.setdefault(tuple(w[0] for w in words[i : j + 1]), []).append((s, i))
        return {span: at for span, at in places.items() if len({s for s, _ in at}) > 1}

    def kind(self, span, places):
        """Which of KINDS a span is, or None."""
        words, first, last = self.vocabulary, span[0], span[-1]
        if BLANK in "".join(span) or max(map(len, span)) > LETTERS or words.is_stop(first) or words.is_stop(last):
            return None
        if len(span) == 1 and not any(c.isalpha() for c in first):
            return "number" if len(first) > 2 else None
        if not any(len(w) > 2 and w[0].isalpha() and 2 * words.df[w.lower()] <= words.stop for w in span):
            return None
        capital = first[0].isupper() and last[0].isupper() and all(w[0].isupper() or words.is_stop(w) for w in span)
        if first[0].isupper() and not (capital and len(span) > 1) and not any(s >= 0 and i > 0 for s, i in places):
            return None  # a capital that a sentence's or title's first word has anyway
        if len(span) == 1 and not capital:
            return "term" if len(first) > 3 and words.df[first.lower()] <= max(FEW, RARE * words.size) else None
        return "name" if capital else "phrase" if len(span) < 4 and not any(map(words.is_stop, span)) else None

    def targets(self, generator):
        """[(span, kind, sentence, first word)], best first: the kinds take turns, each by rarity and chance."""
        found, covered, spans = [], set(), self.spans()
        for span in sorted(spans, key=len, reverse=True):
            if kind := self.kind(span, spans[span]):
                often = len({s for s, _ in spans[span]}) ** 0.5  # what a document keeps saying is what it is about
                for s, i in spans[span]:
                    place = {(s, k) for k in range(i, i + len(span))}
                    if s >= 0 and not place <= covered:  # the longest span of a place alone
                        covered |= place
                        score = often * max(map(self.vocabulary.idf, span)) * (0.5 + generator.random())
                        found.append((score, span, kind, s, i))
        turns = []
        for kind in [*generator.sample(KINDS[:-1], len(KINDS) - 1), KINDS[-1]]:
            ranked = sorted((f for f in found if f[2] == kind), key=lambda f: -f[0])
            turns += [(turn, f[1:]) for turn, f in enumerate(ranked)]
        return [f for _, f in sorted(turns, key=lambda t: t[0])]


# --------------------------------------------------------------------------------------------------------- queries


def pieces(text):
    """Lower-cased runs of letters and digits: "boundary-layer" -> {"boundary", "layer"}."""
    return set(re.findall(r"[^\W_]+", text.lower()))


def gives_away(word, target):
    """Does a word of a query share a word with the target, or an inflection of one?

    >>> gives_away("Seurat's", "Georges Seurat"), gives_away("banking", "bank"), gives_away("art", "artist")
    (True, True, False)
    """
    return any(p == t or (min(len(p), len(t)) > 3 and (p.startswith(t) or t.startswith(p))) for p in pieces(word) for t in pieces(target))


def stands_in(text, target):
    """Does `target` stand in `text` as it is, and not as a part of a longer word or number?

    >>> stands_in("It cost 1,400 in 1883.", "1883"), stands_in("It cost 1,400 in 1883.", "400")
    (True, False)
    """
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(target)}(?!\w|[.,]\d)", text) is not None


def window(document, s, i, j, width, generator):
    """First word and end of what a query keeps of sentence s around its words i..j."""
    words = document.words[s]
    a, b = max(0, i - generator.randint(*width)), min(len(words), j + generator.randint(*width))
    if width == CLAUSE:
        ends = [k for k in range(a + 1, b) if MARK.search(document.text[words[k - 1].end() : words[k].start()])]
        a, b = max([a] + [k for k in ends if k <= i]), min([b] + [k for k in ends if k >= j])
    return a, b


def render(document, s, kept, hole):
    """The kept words of sentence s, with what stands between them, and a blank for the words hole[0] .. hole[1], if any."""
    words, text = document.words[s], document.text
    parts = sorted([(k, k + 1, words[k][0]) for k in kept] + ([(*hole, BLANK)] if hole else []))
    query = ""
    for (_, end, part), following in zip(parts, [*parts[1:], None]):
        between = text[words[end - 1].end() : words[end].start() if end < len(words) else document.sentences[s][1]]
        if following is None:
            between = between.rstrip(" \n\t.!?;:,") if end == len(words) else ""
        query += part + (between if following is None or following[0] == end else " ")
    opened, alone = [], set()  # brackets whose other half is not kept
    for k, c in enumerate(query):
        if c in "([{":
            opened.append(k)
        elif c in ")]}" and (not opened or "([{".index(query[opened.pop()]) != ")]}".index(c)):
            alone.add(k)
    query = "".join(" " if k in alone.union(opened) else c for k, c in enumerate(query))
    return " ".join(query.split()).strip(" ,;:.–—")


def ask(document, span, s, i, rest, generator):
    """A query whose answer is the span at word i of sentence s, or None. `rest`: the words of the source, lower-cased."""
    vocabulary, j = document.vocabulary, i + len(span)
    words = [w[0] for w in document.words[s]]
    secret = " ".join(w for w in span if not vocabulary.is_stop(w))
    title, lengths = document.title, [len(w[0]) for w in document.words[-1]]
    title = "" if len(lengths) > 8 or max(lengths, default=0) > LETTERS or gives_away(title, secret) else title
    drawn = generator.choice((SENTENCE, NEAR, CLAUSE)), generator.choice(FORMS), generator.choice((0, 0.5))
    for width, form, dropped, prefix in ((*drawn, ""), (SENTENCE, "question", 0, ""), (SENTENCE, "question", 0, title)):
        a, b = window(document, s, i, j, width, generator)
        if form == "open":  # the longer side alone
            a, b = (a, i) if i - a > b - j else (j, b)
        kept = [k for k in range(a, b) if not i <= k < j and len(words[k]) <= LETTERS and not gives_away(words[k], secret)]
        content = [k for k in kept if not vocabulary.is_stop(words[k])]
        for k in generator.sample(content, len(content)):
            fewer = [c for c in content if c != k]
            if words[k].lower() in rest and generator.random() < dropped and vocabulary.are_clear([words[c] for c in fewer]):
                kept.remove(k)
                content = fewer
        while kept and kept[-1] != i - 1 and vocabulary.is_stop(words[kept[-1]]):
            kept.pop()
        while kept and kept[0] not in (0, j) and vocabulary.is_stop(words[kept[0]]):
            kept.pop(0)
        if content and vocabulary.are_clear([words[k] for k in content] + lower_words(prefix)):
            query = (prefix and f"{prefix}: ") + render(document, s, kept, None if form == "open" else (i, j))
            return query if form == "cloze" else f"{query}?"
    return None


# ------------------------------------------------------------------------------------------------------------ rows


def make_rows(document, per_document, visible, generator):
    """A document -> up to per_document Rows; each target is visible in what remains of the document without their sentences.

    ASSUMPTION: what remains is at least half of the text; at most one target of a document has a word of its title,
    which the LLM finds most easily, and which is the most rewarding to ask for: it tells the document from others.
    """
    rows, removed, total = [], set(), sum(len(w) for s, w in document.words.items() if s >= 0)
    top = visible(document.whole(document.text))
    for span, kind, s, i in document.targets(generator):
        target, words = " ".join(span), document.words[s]
        named = gives_away(document.title, target)
        if len(rows) == per_document:
            break
        known = hash(tuple(w[0].lower() for w in words)) in document.vocabulary.twice
        if s in removed or known or len(words) < 3 or not stands_in(top, target):
            continue
        if any(gives_away(target, r.target) or (named and gives_away(document.title, r.target)) for r in rows):
            continue
        left = [ws for t, ws in document.words.items() if t not in removed | {s}]  # the first is the title
        if 2 * sum(map(len, left[1:])) < total:
            continue
        seen = visible(document.whole(document.without(removed | {s})))
        if not all(stands_in(seen, t) for t in [target, *(r.target for r in rows)]):
            continue
        query = ask(document, span, s, i, {w[0].lower() for ws in left for w in ws}, generator)
        if query is not None and not stands_in(query.lower(), target.lower()):
            rows.append(Row(query, target, document.id, kind, s))
            removed.add(s)
    return rows


def cut_tokens(text, n):
    """The first n words and marks of a text, where no tokenizer says what a token is.

    >>> cut_tokens("Who, then, was it?", 4)
    'Who, then,'
    """
    ends = [m.end() for _, m in zip(range(n), re.finditer(r"\w+|[^\w\s]", text))]
    return text[: ends[-1]] if ends else ""
