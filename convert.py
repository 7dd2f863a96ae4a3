"""Other people's data as training folders, and a training folder cut in two: the converters behind `python data.py`.

    python data.py split my_data cut --share .06       # cut/train to learn from, cut/dev to choose settings on

Each converter writes a whole folder or nothing, and says what it left out and why.
"""
import json
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

from data import BadInput, find_file, load_examples, read_jsonl, replacing


def write_lines(path, rows):
    """Rows (dicts) -> a JSON-lines file."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def making(out):
    """A folder beside `out` to fill, which takes its place at the end: a reader never meets half of it. Raises BadInput."""
    out = Path(out)
    if out.exists():
        raise BadInput(f"{out} is there already; name a new folder")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_judgments(folder, queries, qrels):
    """{id: text} and {query id: {document id: relevance}} -> queries.jsonl and qrels/test.tsv in BEIR layout."""
    write_lines(folder / "queries.jsonl", ({"_id": q, "text": text} for q, text in queries.items()))
    (folder / "qrels").mkdir()
    with replacing(folder / "qrels" / "test.tsv") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, judged in qrels.items():
            file.writelines(f"{query}\t{document}\t{relevance}\n" for document, relevance in judged.items())


def split(data, out, share=0.06, seed=0):
    """A training folder -> out/train and out/dev: about `share` of the documents, with one question each, in BEIR layout.

    Documents of one title (an article's paragraphs) stay together, so that nothing of what is measured was trained on.
    """
    if not 0 < share < 1:
        raise BadInput(f"--share must lie between 0 and 1, not {share}")
    rows = [row for _, row in read_jsonl(find_file(data, "corpus.jsonl"), "_id", "text")]
    examples, groups = load_examples(data), {}
    for row in rows:
        groups.setdefault(row.get("title") or row["_id"], []).append(row["_id"])
    order, dev = list(groups.values()), set()
    random.Random(seed).shuffle(order)
    for group in order:
        if len(dev) + len(group) <= share * len(rows):  # an article that is too large for what is left stays in training
            dev.update(group)
    questions = {e.document: e for e in examples if e.document in dev}  # a document's last question
    if not questions or not any(e.document not in dev for e in examples):
        raise BadInput(f"{data}: too few documents to cut {share:.0%} off; use a larger --share, or a smaller one")
    with making(out) as part:
        for name, own in (("train", [r for r in rows if r["_id"] not in dev]), ("dev", [r for r in rows if r["_id"] in dev])):
            (part / name).mkdir()
            write_lines(part / name / "corpus.jsonl", own)
        write_lines(part / "train" / "train.jsonl", (vars(e) for e in examples if e.document not in dev))
        write_judgments(part / "dev", {f"q-{d}": e.query for d, e in questions.items()}, {f"q-{d}": {d: 1} for d in questions})
    print(f"{out}/train: {len(rows) - len(dev)} documents, {sum(e.document not in dev for e in examples)} rows; "
          f"{out}/dev: {len(dev)} documents, {len(questions)} questions")
