"""Signs in a run's records that it learns nothing, each with its likely cause."""

PATIENCE = 10  # steps in a row that must show a sign
SPREAD = 0.02  # of the documents' embeddings: under it they are nearly one vector
ONE_HOT, UNIFORM = 0.999, 1.02  # the largest weight of a question: over the one, or under the other / K
RIGHT = 0.9  # mean weight on the source: a run that is sure and right has learned


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
