"""What people should know of a run: which of its options have no effect, and signs in its records that it learns nothing."""
import dataclasses
import math
from collections import Counter

from evaluate import FIND_THEMSELVES, own_queries
from objectives import INJECTS
from processes import processes

PATIENCE = 10  # steps in a row that must show a sign
SPREAD = 0.02  # of the documents' embeddings: under it they are nearly one vector
ONE_HOT, UNIFORM = 0.999, 1.02  # the largest weight of a question: over the one, or under the other / K
RIGHT = 0.9  # mean weight on the source: a run that is sure and right has learned


def idle(config):
    """Names of options that were set, and that this run never reads."""
    names = [] if config.objective in INJECTS else ["heads", "head_choice", "head_rows", "budget"]
    names += ["heads"] * (config.head_choice == "all")
    names += ["gather"] * (processes()[1] < 2)
    return [field.name for field in dataclasses.fields(config) if field.name in names and getattr(config, field.name) != field.default]


def unfulfilled(run):
    """A Run that is loaded -> lines for people, on what it will not do as it was told."""
    config, rows, lines = run.config, Counter(e.document for e in run.examples), []
    if found := idle(config):
        lines.append(f"of no effect in this run: {', '.join('--' + name.replace('_', '-') for name in found)}")
    if run.own_llm and config.objective == "infonce":
        lines.append("--llm judges nothing with infonce: its tokenizer alone says which targets are cut")
    documents = min(config.pool, len(rows))
    turns = math.ceil(config.questions / documents)  # a document's questions in one pool
    questions = min(config.questions, sum(min(n, turns) for _, n in rows.most_common(documents)))
    if documents < config.pool or questions < config.questions:
        lines.append(f"--pool {config.pool}, --questions {config.questions}: the training rows allow pools of {documents} documents and at most {questions} questions")
    if config.document_tokens > run.retriever.max_tokens:
        lines.append(f"--document-tokens {config.document_tokens}: the retriever reads {run.retriever.max_tokens} tokens; what stands behind them it cannot learn to find")
    lines += [f"{name}: {count} {FIND_THEMSELVES} (evaluate.py has it)" for name, c in run.collections.items() if (count := own_queries(c))]
    return lines


def symptom(curve, documents):
    """The records of all steps so far, and K -> a line for people, or None.

    >>> symptom([{"spread": 0.01, "largest_weight": 0.5}] * 10, 16).partition(":")[0]
    'the embeddings of a pool are nearly one vector (spread under 0.02 for 10 steps)'
    """
    last = curve[-PATIENCE:]
    if len(last) < PATIENCE:
        return None
    if all(record["spread"] < SPREAD for record in last):
        return (f"the embeddings of a pool are nearly one vector (spread under {SPREAD} for {PATIENCE} steps): "
                "try a smaller --lr, or another --prompt")
    if all(record["largest_weight"] > ONE_HOT and record["source_weight"] < RIGHT for record in last):
        return (f"every question gives all its weight to one document, often a wrong one ({PATIENCE} steps in a row), so that no gradient is left: "
                "try a larger --temperature, or harder pools (--neighbours)")
    if all(record["largest_weight"] < UNIFORM / documents for record in last):
        return (f"every question weighs all documents alike ({PATIENCE} steps in a row): try a smaller --temperature or a larger --lr, "
                "and heads that look at documents (--head-choice query)")
    return None
