"""How much weight on the source document does each objective ask for, and where do the chosen heads look by themselves?

    python saturation.py                                             # classroom/, SmolLM2-135M
    python saturation.py --pools 8 --out FILE --data DIR ...         # any flag of train.py

No retriever: weights are made up, w on the source and the rest shared equally or all on one other document, and each
objective (objectives.py) says its loss, the mean over the pools' questions; dream with either budget. Where a loss no longer falls as w rises, nothing
asks the retriever for more. The attention of the heads that dream injects, untouched, says what an injected head gives up: with
`--budget documents` all that lies outside documents.
"""
import argparse
import statistics
from dataclasses import replace

import torch

from files import BadInput, check_file, command, write_json
from inject import score_heads, target_nll
from objectives import BETA, document_likelihoods
from record import about_run, commit
from train import Run, parse

SHARES = (1 / 16, 0.25, 0.5, 0.75, 0.9, 0.99)


def shares(source, documents, share, other=None):
    """(B,) long -> (B, K): `share` on the source; the rest on all others equally, or on the other-th document behind it."""
    gold = torch.nn.functional.one_hot(source, documents).float()
    rest = (1 - gold) / (documents - 1) if other is None else gold.roll(other, dims=1)
    return share * gold + (1 - share) * rest


@torch.no_grad()
def losses(run, llm, pool, read, likelihoods, share, other=None):
    """{objective: mean loss of the pool's questions} when the source has `share` of the weight.

    read: what run.read() says of the pool; likelihoods: (B, K), log p(y | d_k, q)."""
    weights = shares(pool.source, len(pool.documents), share, other).to(llm.device)
    log_q = (likelihoods / BETA).log_softmax(-1)
    found = {"dream": target_nll(llm, *read, weights, run.heads, "documents"), "dream-keep": target_nll(llm, *read, weights, run.heads, "keep"),
             "infonce": -weights.gather(1, pool.source[:, None].to(llm.device)).log()[:, 0],
             "replug": (torch.xlogy(weights, weights) - weights * log_q).sum(-1),
             "emdr": -(weights.log() + likelihoods).logsumexp(-1)}
    return {name: nll.mean().item() for name, nll in found.items()}


def attention(run, llm, prefix, input_ids, target_mask, source):
    """{where: attention mass}, the mean of eq (6) over the heads that dream injects: on the source, on the other documents, outside documents.

    Outside are the question and target that a row has behind it, and the prompt. What follows `run` and `llm` is score_heads'."""
    together = replace(prefix, document_of=prefix.document_of.clamp(max=0))  # all documents as one
    scores = [score_heads(llm, p, input_ids, target_mask, of, run.config.head_rows) for p, of in ((prefix, source), (together, torch.zeros_like(source)))]
    on_source, on_any = (statistics.mean(score[at].item() for at in run.heads) for score in scores)
    return {"source": on_source, "others": on_any - on_source, "outside": 1 - on_any}


def mean(rows):
    """[{name: value}] -> {name: the mean of its values}."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def measure(run, pools):
    """({"equal" or "one": {share: {objective: loss}}}, {where: attention mass}), means over `pools` pools."""
    stream, cases, masses = run.pools(run.config.seed), {}, []
    with run.judge() as llm:
        for pool in (next(stream) for _ in range(pools)):
            read, likelihoods = run.read(llm, pool.documents, pool.examples), document_likelihoods(run, llm, pool)
            masses.append(attention(run, llm, *read, pool.source.to(llm.device)))
            for rest, other in (("equal", None), ("one", 1)):
                for share in SHARES:
                    cases.setdefault((rest, f"{share:.4g}"), []).append(losses(run, llm, pool, read, likelihoods, share, other))
    found = {"equal": {}, "one": {}}
    for (rest, share), rows in cases.items():
        found[rest][share] = mean(rows)
    return found, mean(masses)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Each objective's loss against the source document's weight, and where the heads that dream injects look.",
                                     allow_abbrev=False, epilog="Every other flag is train.py's: --data, --backbone, --heads, ...",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pools", type=int, default=4, help="how many pools the losses are means of")
    parser.add_argument("--out", help="a JSON file for the figures")
    args, flags = parser.parse_known_args(argv)
    if args.pools < 1:
        raise BadInput(f"--pools must be at least 1, not {args.pools}")
    if args.out:
        check_file(args.out)
    commit()  # now, not when all is measured
    run = Run(parse(flags))
    run.choose_heads()
    found, masses = measure(run, args.pools)
    for rest, rows in found.items():
        print(f"the rest {'shared equally' if rest == 'equal' else 'on one other document'}")
        for share, row in rows.items():
            print(f"  {share:>7s}  " + "  ".join(f"{name} {loss:7.3f}" for name, loss in row.items()))
    print("attention of the chosen heads, untouched: " + ", ".join(f"{where} {mass:.3f}" for where, mass in masses.items()))
    if args.out:
        write_json(args.out, {**about_run("saturation.py", argv, run.retriever.device), "seed": run.config.seed, "pools": args.pools,
                              "losses": found, "attention": masses})


if __name__ == "__main__":
    command(main)
