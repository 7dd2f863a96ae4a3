"""What people and other tools read of a measurement: a table, and a ranking in TREC's run format."""
import numpy as np

from files import BadInput, replacing


def rank(scored, depth):
    """{document: score} -> the best `depth` documents, trec_eval's way: float32 score, then id, both descending."""
    values = np.fromiter(scored.values(), np.float32, len(scored)).tolist()
    return [document for _, document in sorted(zip(values, scored), reverse=True)[:depth]]


def table(rows, metrics=("ndcg@10", "recall@10", "mrr@10")):
    """{label: {metric: value}} -> lines for people."""
    width = max(len(label) for label in rows)
    names = {"ndcg": "nDCG", "recall": "Recall", "mrr": "MRR", "map": "MAP", "precision": "P", "success": "Success"}
    heads = ["@".join([names.get(m.partition("@")[0], m), *m.split("@")[1:]]) for m in metrics]
    lines = [" " * width + "".join(f"{h:>12s}" for h in heads)]
    return "\n".join(lines + [f"{label:{width}s}" + "".join(f"{values[m]:12.3f}" if m in values else f"{'-':>12s}" for m in metrics)
                              for label, values in rows.items()])


def check_ids(names):
    """Raise BadInput for an id that TREC's run format cannot hold."""
    spaced = next((name for name in names if name.split() != [name]), None)
    if spaced is not None:
        raise BadInput(f"--run: the id {spaced!r} is empty or has a space in it, which TREC's run format cannot hold")


def write_run(path, run, tag):
    """TREC run format: query, Q0, document, rank, score, tag. Raises BadInput."""
    check_ids([*run, *(d for scored in run.values() for d in scored)])
    with replacing(path) as file:
        for query, scored in run.items():
            for place, document in enumerate(rank(scored, len(scored)), 1):
                file.write(f"{query} Q0 {document} {place} {np.float32(scored[document]):.9g} {tag}\n")
