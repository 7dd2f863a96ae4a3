"""Exact search by inner product, in torch: a running top k, chunk by chunk, that never holds the full score matrix.

The product of a chunk of documents with all queries is the work; what keeps the rest small is that, once k documents are
known, only scores above a query's k-th best (its floor) matter, and that few of them remain after the first chunks.
"""
import torch


def best_of(scores, columns, k):
    """The best k of each row in the order they stand in: (N, M) scores and their columns -> (N, min(k, M)); ties: the first."""
    values, at = scores.topk(min(k, scores.shape[1]), dim=1)
    tied = (scores >= values[:, -1:]).sum(1) > at.shape[1]  # some that are left out score like the last one taken
    if tied.any():
        at[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, : at.shape[1]]
    at = at.sort(dim=1).values
    return scores.gather(1, at), columns.gather(1, at)


def above(block, floor, group=16):
    """(C, N) scores of a chunk's documents -> (query, row, score), (P,) each, of all that exceed their query's floor (N,).

    Rows are looked at in groups: one whose best does not exceed the floor is passed over. A query's rows ascend.
    """
    group = group if len(block) % group == 0 else 1
    groups = block.view(-1, group, block.shape[1])
    which, query = (groups.amax(1) > floor).nonzero(as_tuple=True)
    scores = groups[which, :, query]  # (groups that count, group)
    at, within = (scores > floor[query][:, None]).nonzero(as_tuple=True)
    return query[at], which[at] * group + within, scores[at, within]


def side_by_side(query, row, score, N):
    """(query, row, score), a query's rows ascending -> (N, most of a query) scores and rows, filled up with -inf."""
    query, order = query.sort(stable=True)
    counts = torch.bincount(query, minlength=N)
    place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    scores = score.new_full((N, int(counts.max()) if N else 0), -torch.inf)
    rows = row.new_zeros(scores.shape)
    scores[query, place], rows[query, place] = score[order], row[order]
    return scores, rows


def search(queries, documents, k, chunk=None, found=None, offset=0):
    """Exact search by inner product: (N, D) and (M, D) -> (scores, indices), each (N, min(k, M)), best first.

    Documents are scored `chunk` at a time and merged into a running top k; the full score matrix never exists. `found`,
    an earlier result on documents that come before, is merged as well, and `offset` added to the indices. Equal scores keep
    corpus order.
    """
    assert queries.shape[1] == documents.shape[1], "queries and documents must have the same width"
    N, most = len(queries), 4096 if queries.device.type == "cpu" else 65536  # documents whose scores stay in a CPU's cache
    chunk = chunk or max(16, min(most, 2**24 // max(N, 1) // 16 * 16))
    columns = queries.float().T.contiguous()  # (D, N)
    scores, indices = found or (columns.new_empty(N, 0), columns.new_empty(N, 0, dtype=torch.long))
    indices, order = indices.sort(dim=1)  # until the end in corpus order, in which ties are decided
    scores, pending, merged = scores.gather(1, order), [], 0
    floor = scores.amin(1) if scores.shape[1] == k else None  # (N,): what a new score has to exceed
    block = columns.new_empty(min(chunk, len(documents)), N)  # made once: fresh memory costs more than the product
    for start in range(0, len(documents), chunk):
        part = documents[start : start + chunk].float()
        new = torch.mm(part, columns, out=block[: len(part)])  # (C, N)
        if floor is not None:
            query, row, score = above(new, floor)
            pending.append((query, row + (start + offset), score))
            waits = sum(len(query) for query, _, _ in pending) < N * k
            if waits and start + chunk < min(2 * merged, len(documents)):
                continue
            new, rows = side_by_side(*(torch.cat(parts) for parts in zip(*pending)), N)
        else:
            new, rows = new.T, torch.arange(start + offset, start + offset + len(part), device=part.device).expand(N, -1)
        scores, indices = best_of(torch.cat([scores, new], 1), torch.cat([indices, rows], 1), k)
        floor = scores.amin(1) if scores.shape[1] == k else None
        pending, merged = [], start + chunk
    return merge(scores, indices, k)


def merge(scores, indices, k):
    """Candidates (N, C) -> the best k, best first; equal scores in order of their indices."""
    indices, order = indices.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores[:, :k], indices.gather(1, order)[:, :k]
