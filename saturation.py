"""How much weight on the source document does each objective ask for? Why infonce pushes documents further apart than dream.

    python saturation.py                                             # classroom/, SmolLM2-135M
    python saturation.py --pools 8 --out FILE --data DIR ...         # any flag of train.py

No retriever: weights are made up, w on the source and the rest shared equally or all on one other document, and each
objective (objectives.py) says its loss, the mean over the pools' questions; dream with either budget. Where a loss no longer falls as w rises, nothing
asks the retriever for more.
"""
import argparse
import statistics

import torch

from files import command, write_json
from inject import target_nll
from objectives import BETA, document_likelihoods
from record import about_run
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


def measure(run, pools):
    """{"equal" or "one": {share: {objective: loss}}}, means over `pools` pools."""
    stream, found = run.pools(run.config.seed), {}
    with run.judge() as llm:
        for pool in (next(stream) for _ in range(pools)):
            read, likelihoods = run.read(llm, pool.documents, pool.examples), document_likelihoods(run, llm, pool)
            for rest, other in (("equal", None), ("one", 1)):
                for share in SHARES:
                    for name, loss in losses(run, llm, pool, read, likelihoods, share, other).items():
                        found.setdefault(rest, {}).setdefault(f"{share:.4g}", {}).setdefault(name, []).append(loss)
    return {rest: {share: {name: statistics.mean(values) for name, values in row.items()} for share, row in rows.items()} for rest, rows in found.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Each objective's loss against the weight of the source document.", allow_abbrev=False,
                                     epilog="Every other flag is train.py's: --data, --backbone, --heads, ...", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pools", type=int, default=4, help="how many pools the losses are means of")
    parser.add_argument("--out", help="a JSON file for the figures")
    args, flags = parser.parse_known_args(argv)
    run = Run(parse(flags))
    run.choose_heads()
    found = measure(run, args.pools)
    for rest, rows in found.items():
        print(f"the rest {'shared equally' if rest == 'equal' else 'on one other document'}")
        for share, row in rows.items():
            print(f"  {share:>7s}  " + "  ".join(f"{name} {loss:7.3f}" for name, loss in row.items()))
    if args.out:
        write_json(args.out, {**about_run("saturation.py", argv), "seed": run.config.seed, "pools": args.pools, "losses": found})


if __name__ == "__main__":
    command(main)
