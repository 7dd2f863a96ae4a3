"""Exercise 7: the metric, nDCG@k.

Question
    Write `compute_metrics` as far as nDCG: for each query sum relevance / log2(rank + 1) over the first k documents of its
    ranking (ranks count from 1), divide by the same sum of the best possible order, and take the mean over all queries of
    `qrels`. Return {"ndcg@10": ...} with one entry for each k. (The reference has five more metrics.)

Why it matters
    Every table of the field has this column, and numbers differ when details differ. Those of `trec_eval -c` are: the best
    possible order is over all judged documents, found or not; a document without a judgment has relevance 0, and so has one
    judged below 0; a query that the run lacks, or that has nothing relevant, counts 0; equal scores are ordered by document
    id, the greater id first.

Hint
    sorted((score, document) pairs, reverse=True) is trec_eval's order, ties included. One small function that sums a list of
    relevances serves both the ranking and the best possible order.

Expected number
    python exercises/ex07_ndcg.py prints 0.9197
    (relevant documents at ranks 1 and 3: 1 + 1/2 = 1.5; the best possible: 1 + 1/log2(3) = 1.6309)

Minutes
    20
"""


def compute_metrics(run, qrels, ks=(1, 3, 5, 10, 100)):
    """{query: {document: score}} and {query: {document: relevance}} -> {"ndcg@k": mean over qrels' queries, ...}; linear gain."""
    raise NotImplementedError("exercise 7 is not written yet: exercises/ex07_ndcg.py")


if __name__ == "__main__":
    run = {"q": {"river": 0.9, "bridge": 0.8, "delta": 0.7}}
    print(round(compute_metrics(run, {"q": {"river": 1, "delta": 1}}, ks=(10,))["ndcg@10"], 4))
