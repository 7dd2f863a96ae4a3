"""Other people's data as training folders, and a training folder cut in two: the commands of `python data.py`.

    python data.py squad train-v2.0.json my_data                      # SQuAD's JSON, version 1 or 2
    python data.py qrels beir/nfcorpus answers.jsonl my_data          # a BEIR folder with judgments to train on
    python data.py jsonl rows.jsonl corpus.jsonl my_data              # questions and answers; BM25 finds the documents
    python data.py split my_data cut --share .06                      # cut/train, and cut/dev to choose settings on

Each makes a whole folder or nothing, and says what it left out and why. Files may be compressed (`.gz`). Rows and
documents are read and written one at a time, except that SQuAD's file is a single JSON document, which is read whole, that
BM25 needs the whole corpus, that qrels holds the queries and answers, and split the texts of a folder. Left out: parquet.
"""
import json
import os
import random
import re
import secrets
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from bm25 import BM25
from data import check_folder, find_file, find_qrels, flat, load_examples, load_qrels, load_texts, read_jsonl, read_lines, read_texts
from fetch import local, write_qrels
from files import BadInput, replacing

DEPTH = 10  # of BM25's best documents, the first in which a row's target stands is its source


# ----------------------------------------------------------------------------------------------------------- folders


def write_lines(path, rows):
    """Rows (dicts) -> a JSON-lines file."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def making(out):
    """A folder beside `out` to fill, which takes its place at the end: a reader never meets half of it. Raises BadInput."""
    out = Path(out)
    part, above = Path(f"{out}.{os.getpid()}-{secrets.token_hex(4)}.part"), []
    try:
        if out.exists() or out.is_symlink():
            raise BadInput(f"{out} is there already; name a new folder")
        above = [folder for folder in part.parents if not folder.exists()]
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            for folder in above:  # if it stays empty, it was made for nothing
                folder.rmdir()


class Training:
    """The training folder that `training` makes: takes a document or a row at a time, counts what is left out and why."""

    def __init__(self, corpus, rows):
        self.corpus, self.rows = corpus, rows  # open files
        self.documents, self.sources, self.seen, self.dropped = set(), set(), set(), Counter()
        self.note = ""  # what else to say at the end

    def document(self, row):
        """{"_id", "title", "text"} -> a line of corpus.jsonl; the id is new."""
        self.documents.add(row["_id"])
        self.corpus.write(json.dumps(row, ensure_ascii=False) + "\n")

    def row(self, query, target, document):
        """A line of train.jsonl, unless the row cannot serve; then it is counted -> whether it serves."""
        key = hash((flat(query), document))  # 64 bits instead of the text
        for reason, holds in (("no question", not query.strip()), ("no answer", not target.strip()),
                              ("document not in the corpus", document not in self.documents),
                              ("same question to the same document", key in self.seen)):
            if holds:
                self.dropped[reason] += 1
                return False
        self.seen.add(key)
        self.sources.add(document)
        line = {"query": query.strip(), "target": target.strip(), "document": document}
        self.rows.write(json.dumps(line, ensure_ascii=False) + "\n")
        return True

    def left_out(self):
        return "; ".join(f"{reason}: {n:,}" for reason, n in self.dropped.items() if n) or "nothing"


@contextmanager
def training(out, source):
    """A Training to fill from the file `source`, made whole or not at all; prints what was made. Raises BadInput."""
    with making(out) as part:
        with replacing(part / "corpus.jsonl") as corpus, replacing(part / "train.jsonl") as rows:
            made = Training(corpus, rows)
            yield made
        if len(made.sources) < 2:
            raise BadInput(f"{source}: training needs rows of two documents or more, and these are of "
                           f"{len(made.sources)}; left out: {made.left_out()}")
    print(f"{out}: {len(made.documents):,} documents, {len(made.seen):,} rows of {len(made.sources):,} of them{made.note}; "
          f"left out: {made.left_out()}")


# ------------------------------------------------------------------------------------------------------------- SQuAD


def member(node, name, kind, where, default=None):
    """node[name], of the type `kind`; the default, if any, where it is missing or null. Raises BadInput."""
    if not isinstance(node, dict):
        raise BadInput(f"{where}: expected an object with {name!r}")
    value = default if node.get(name) is None else node[name]
    if not isinstance(value, kind):
        kinds = {str: "a string", list: "a list", bool: "true or false"}
        raise BadInput(f"{where}: {name!r} is missing or not {kinds[kind]}")
    try:
        if kind is str:
            value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{where}: {name!r} has half a surrogate pair, which is no text") from None
    return value


def squad(file, out):
    """SQuAD's JSON, version 1 or 2, as a training folder.

    A paragraph is a document, a question with an answer a row, whose target is the most frequent answer (among equals
    the first). Paragraphs of the same text are one document.
    """
    with training(out, file) as made:
        try:
            tree = json.loads(b"".join(line for _, line in read_lines(file, blank=True, longest=None)).decode())
        except (ValueError, RecursionError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{file}:{getattr(error, 'lineno', 1)}: not JSON ({error}); "
                           "for a JSON object on each line use `data.py jsonl`") from None
        ids = {}  # text -> document id
        for a, article in enumerate(member(tree, "data", list, file)):
            here = f"{file}: data[{a}]"
            title = unquote(member(article, "title", str, here, "")).replace("_", " ")
            for p, paragraph in enumerate(member(article, "paragraphs", list, here)):
                there = f"{here}.paragraphs[{p}]"
                text = member(paragraph, "context", str, there).strip()
                questions = member(paragraph, "qas", list, there)
                if not text:
                    made.dropped["empty paragraph"] += 1
                    made.dropped["question to an empty paragraph"] += len(questions)
                    continue
                if text in ids:
                    made.dropped["paragraph that is there already"] += 1
                else:
                    ids[text] = f"{a}-{p}"
                    made.document({"_id": ids[text], "title": title, "text": text})
                for q, question in enumerate(questions):
                    query, target = question_and_answer(question, f"{there}.qas[{q}]")
                    if target is None:
                        made.dropped["unanswerable"] += 1
                    else:
                        made.row(query, target, ids[text])


def question_and_answer(node, where):
    """One of SQuAD's questions -> (question, most frequent answer): "" if there is none, None if it cannot be answered."""
    query = member(node, "question", str, where)
    if member(node, "is_impossible", bool, where, False):
        return query, None
    answers = [member(answer, "text", str, f"{where}.answers[{i}]").strip()
               for i, answer in enumerate(member(node, "answers", list, where, []))]
    return query, max(Counter(filter(None, answers)).items(), key=lambda pair: pair[1], default=("", 0))[0]


# --------------------------------------------------------------------------------------------- judgments, plain rows


def first_text(value, where, depth=4):
    """The first text of a value that is not blank: "x", 7, ["", "x"], {"text": ["x"]}; "" for nothing. Raises BadInput."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict) and "text" in value:
        value = [value["text"]]
    if not isinstance(value, list) or not depth:
        raise BadInput(f'{where} is no text; expected "...", ["..."] or {{"text": ...}}')
    return next(filter(None, (first_text(one, where, depth - 1) for one in value)), "")


def qrels(folder, answers, out, split="train"):
    """A BEIR folder's judgments of one split, and a file of answers, as a training folder.

    Each relevant pair (relevance above 0) is a row; the answers are JSON lines {"_id": query id, "answer" or "target"}.
    """
    folder = check_folder(folder)
    path = find_qrels(folder, split)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; --split names the judgments to use")
    judged, queries, targets = load_qrels(path), load_texts(find_file(folder, "queries.jsonl")), {}
    for number, row in read_jsonl(answers, "_id"):
        if row["_id"] in targets:
            raise BadInput(f"{answers}:{number}: the id {row['_id']!r} stands twice")
        if not {"answer", "target"} & set(row):
            raise BadInput(f"{answers}:{number}: the field 'answer' is missing")
        answer = row.get("target") if row.get("answer") is None else row["answer"]
        targets[row["_id"]] = first_text(answer, f"{answers}:{number}: the answer")
    with training(out, path) as made:
        for _, row in read_texts(find_file(folder, "corpus.jsonl"), made.documents):
            made.document(row)
        for query, documents in judged.items():
            if query not in queries:
                raise BadInput(f"{path}: the query {query!r} is judged, but queries.jsonl does not have it")
            for document, relevance in documents.items():
                if relevance > 0:
                    made.row(queries[query], targets.get(query, ""), document)
                else:
                    made.dropped["judged not relevant"] += 1
        made.dropped["answer to a question that is not judged"] += len(targets.keys() - judged.keys())


def stands(target, document):
    """Whether a target stands literally in a document, in whole words and numbers: "Po" in "The po.", not in "Pole"; "400" not in
    "1,400", whose digits stand in groups of three."""
    words = flat(target)
    left = r"(?<!\w)" * bool(re.match(r"\w", words[0])) + r"(?<!\d[.,])" * bool(re.match(r"\d{3}(?!\d)", words))
    right = r"(?!\w)" * bool(re.match(r"\w", words[-1])) + r"(?![.,]\d{3}(?!\d))" * words[-1].isdigit()
    return re.search(left + re.escape(words) + right, flat(document)) is not None


def jsonl(rows, corpus, out, query_field="query", target_field="target", document_field="document", loose=False):
    """Rows of questions and answers, and a corpus, as a training folder; BM25 finds the documents that rows do not name.

    A row's document is then, among BM25's ten best for question and target together, the first in which the target
    stands literally. So no label is needed. Both files may be on the hub (fetch.py:local).
    """
    rows, path, found = local(rows), find_file(corpus, "corpus.jsonl") if Path(corpus).is_dir() else local(corpus), 0
    texts = ids = index = None  # only if a row names no document
    named = document_field == "document"  # rows may lack it; another name was asked for
    with training(out, rows) as made:
        for _, row in read_texts(path, made.documents):
            made.document(row)
        for number, row in tqdm(read_jsonl(rows), unit=" rows", disable=None, leave=False):
            for flag, name in (("query", query_field), ("target", target_field)):
                if name not in row:
                    raise BadInput(f"{rows}:{number}: the field {name!r} is missing; there: {', '.join(map(repr, row))}; "
                                   f"name another with --{flag}-field")
            named |= document_field in row
            query, target, document = (first_text(row.get(name), f"{rows}:{number}: the field {name!r}")
                                       for name in (query_field, target_field, document_field))
            if searched := bool(query and target and not document):
                texts = texts or load_texts(path)
                ids, index = ids or list(texts), index or BM25().index(texts.values())
                (scores,), (best,) = index.top([f"{query} {target}"], DEPTH)
                best = [ids[i] for i, score in zip(best.tolist(), scores.tolist()) if score > 0]
                document = next((d for d in best if stands(target, texts[d])), best[0] if loose and best else "")
                if not document:
                    made.dropped[f"answer in none of BM25's {DEPTH} best documents"] += 1
                    continue
            found += made.row(query, target, document) and searched
        if not named:
            raise BadInput(f"{rows}: no row has the field {document_field!r} that --document-field names")
        made.note = f", {found:,} rows placed by BM25"


# ------------------------------------------------------------------------------------------------------------- split


def write_judgments(folder, queries, qrels):
    """{id: text} and {query id: {document id: relevance}} -> queries.jsonl and qrels/test.tsv in BEIR layout."""
    write_lines(folder / "queries.jsonl", ({"_id": q, "text": text} for q, text in queries.items()))
    (folder / "qrels").mkdir()
    with replacing(folder / "qrels" / "test.tsv") as file:
        write_qrels(file, ((query, document, relevance) for query, judged in qrels.items() for document, relevance in judged.items()))


def choose_dev(path, share, seed):
    """corpus.jsonl -> (all ids, the ids of about `share` of the documents, whose titles and texts the rest does not have)."""
    ids, groups, titles = set(), {}, {}  # all ids; title -> its ids; text -> its titles
    for number, row in read_texts(path, ids):
        if re.search(r"[\t\r\n]", row["_id"]):
            raise BadInput(f"{path}:{number}: the id {row['_id']!r} has a tab or a line break, which judgments cannot hold")
        ids.add(row["_id"])
        text = flat(row["text"])
        title = flat(row["title"]) or text
        groups.setdefault(title, []).append(row["_id"])
        titles.setdefault(text, set()).add(title)
    tied = {title for several in titles.values() if len(several) > 1 for title in several}
    order, dev = [group for title, group in groups.items() if title not in tied], set()
    random.Random(seed).shuffle(order)
    for group in order:
        if len(dev) + len(group) <= share * len(ids):  # an article that is too large for what is left stays in training
            dev.update(group)
    return ids, dev


def split(data, out, share=0.06, seed=0):
    """A training folder cut in two: OUT/train to learn from, OUT/dev, in BEIR layout, to choose settings on.

    About `share` of the documents, with one question each, are for dev. Documents of one title (an article's
    paragraphs) or one text stay together, so that nothing of what is measured was trained on.
    """
    if not 0 < share < 1:
        raise BadInput(f"--share must lie between 0 and 1, not {share}")
    examples, path = load_examples(data), find_file(data, "corpus.jsonl")
    ids, dev = choose_dev(path, share, seed)
    kept = [e for e in examples if e.document not in dev]
    asked = {flat(e.query) for e in kept}
    questions = {e.document: e for e in examples if e.document in dev and flat(e.query) not in asked}  # its last one
    if not questions or len({e.document for e in kept}) < 2:
        raise BadInput(f"{data}: no {share:.1%} of these {len(ids):,} documents can be cut off with questions of their own "
                       "on both sides; use another --share")
    with making(out) as part:
        (part / "train").mkdir()
        (part / "dev").mkdir()
        with replacing(part / "train" / "corpus.jsonl") as train, replacing(part / "dev" / "corpus.jsonl") as held:
            for _, row in read_texts(path, {}):
                (held if row["_id"] in dev else train).write(json.dumps(row, ensure_ascii=False) + "\n")
        rows = (row for _, row in read_jsonl(find_file(data, "train.jsonl"), "document"))
        write_lines(part / "train" / "train.jsonl", (row for row in rows if row["document"] not in dev))
        judged = {f"q-{d}": {d: 1} for d in questions}
        write_judgments(part / "dev", {f"q-{d}": e.query for d, e in questions.items()}, judged)
    also, more = (sum(e.document in dev and (flat(e.query) in asked) == both for e in examples) for both in (True, False))
    print(f"{out}/train: {len(ids) - len(dev):,} documents, {len(kept):,} rows; {out}/dev: {len(dev):,} documents, "
          f"{len(questions):,} questions; left out of dev: asked in training too: {also:,}; "
          f"second question to a document: {more - len(questions):,}")
