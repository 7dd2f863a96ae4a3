"""One question of classroom/ through one step of training, with the values that come out: the blocks of LESSON.md.

    python lesson.py            # prints them, in about half a minute on a CPU core
    python lesson.py --write    # and puts them into LESSON.md, between its marks

But for the product of eq (1) and the terms of eq (4), every value comes from the functions that training itself uses. Always float32, on a
CPU, seed 0: everybody sees the same numbers, but for their last digits. Left out: larger pools, more questions, more steps (train.py).
"""
import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch

from attention import forward
from config import Config
from data import Pool
from files import BadInput, command, replacing
from inject import Inject, pack, read_documents, score_heads, target_nll
from objectives import document_weights, dream_loss
from train import HEAD_EXAMPLES, Run, Training

ROOT = Path(__file__).parent
QUESTION = "What do we call the pair of false suns that may flank the real one behind a milky layer?"
DOCUMENTS = ["clouds/cirrocumulus", "composers/vivaldi", "clouds/cirrostratus", "clouds/altocumulus", "canals/kiel"]
HEAD = (18, 6)  # layer and head, counted from 0: one of those that eq (6) chooses
CONFIG = Config(data=str(ROOT / "classroom"), device="cpu", dtype="float32")  # else as `python train.py`
NUDGE = 1e-3  # of a score, up and down, to measure a slope
MARK = re.compile(r"(<!-- lesson: (\w+) -->\n```text\n)(.*?)(```\n<!-- end -->)", re.S)
BLOCKS = ("question", "scores", "prompt", "heads", "reading", "losses", "gradient", "step", "agreement")


def rows(columns):
    """{heading: texts} -> lines; the first column stands to the left, the others to the right."""
    lines = [tuple(columns), *zip(*columns.values())]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def texts(values, form=".3f"):
    return [format(value, form) for value in values.flatten().tolist()]


class Lesson:
    """A run before its first step, and the step's pool: K documents, one question, R target tokens; s, w: (1, K). First come
    the methods that compute, then one for each of BLOCKS, which yields the lines to print."""

    def __init__(self, config, question, documents, head):
        self.run, self.head = Run(config), head
        self.example = next((e for e in self.run.examples if e.query == question), None)
        if self.example is None:
            raise BadInput(f"QUESTION = {question!r} is none of {config.data}/train.jsonl")
        if self.example.document not in documents or not self.run.corpus.keys() >= set(documents):
            raise BadInput(f"DOCUMENTS must be ids of {config.data}/corpus.jsonl, the question's own, {self.example.document!r}, among them")
        self.names, self.documents = [d.rpartition("/")[2] for d in documents], [self.run.corpus[d] for d in documents]
        self.pool, self.source = Pool(documents, [self.example]), documents.index(self.example.document)
        self.head_scores = self.run.choose_heads()  # by eq (6), as `python train.py` does it
        if head not in self.run.heads:
            raise BadInput(f"HEAD = {head} is not injected; choose one of {', '.join(map(str, self.run.heads))}")
        with self.run.judge() as llm:  # the documents, read once: a Prefix; question and target as token ids; which are the target's
            self.prefix, self.input_ids, self.target_mask = self.read = self.run.read(llm, documents, [self.example])
        self.suffixes, self.s = pack(self.input_ids, self.target_mask, len(self.prefix)), self.embed()
        self.w, self.decode = document_weights(self.s, self.run.temperature), self.run.retriever.tokenizer.decode

    @torch.no_grad()
    def embed(self):
        """Eq (1) as train.py:Run.step has it, with the adapters as they are now."""
        embed, tokenize = self.run.retriever.embed, self.run.tokenize
        return embed(tokenize([self.example.query], "query")) @ embed(tokenize(self.documents, "document")).T

    def loss(self, w, masks=None, injected=True):
        """Eq (5) for each row of w (B, K), or for each row of masks (B, T) over the target -> (B,), differentiable in w."""
        masks = self.target_mask.expand(len(w), -1) if masks is None else masks
        with self.run.judge() as llm:
            return target_nll(llm, self.prefix, self.input_ids.expand(len(masks), -1), masks, w.expand(len(masks), -1),
                              self.run.heads if injected else None, self.run.config.budget)

    def slopes(self):
        """dL/ds and dL/dw, (K,) each, by autograd; dL/ds once more by moving each score a little up and down."""
        s, w = self.s.clone().requires_grad_(), self.w.clone().requires_grad_()
        with self.run.judge() as llm:
            dream_loss(self.run, llm, self.pool, s).backward()
        self.loss(w).sum().backward()
        nudges = NUDGE * torch.eye(len(self.names)).to(s)
        higher, lower = self.loss(document_weights(torch.cat([self.s + nudges, self.s - nudges]), self.run.temperature)).chunk(2)
        return s.grad[0], w.grad[0], (higher - lower) / (2 * NUDGE)

    def read_head(self):
        """The head in the row that predicts the target's first token -> shares (K, L) of the tokens within each document,
        r (K, d) of eq (3), the head's output o (d,) of eq (4)."""
        class Watch(Inject):  # the injection itself, which notes what goes into each layer's heads and what comes out
            def inject(self, query, keys, values, *own):
                seen.append((query, keys, values, output := super().inject(query, keys, values, *own)))
                return output

        seen, (layer, head) = [], self.head
        watch = Watch(self.prefix, self.suffixes, self.w, self.run.heads, self.run.config.budget)
        with self.run.judge() as llm:
            forward(llm, watch, self.suffixes.input_ids, self.suffixes.positions, logits_to_keep=1)
        query, keys, values, output = (x[watch.heads_of[layer].index(head)] for x in seen[sorted(watch.heads_of).index(layer)])
        row, only = self.suffixes.predicts[0], torch.eye(len(self.names)).to(keys)  # only: in row k all weight is on document k
        logits, tokens = (query[row] @ keys.T).expand(1, len(only), -1), torch.eye(len(keys)).to(keys)  # (1, K, L), (L, L)
        shares = read_documents(logits, tokens[None], self.prefix, only)[0]  # where a token's value is its own place
        r = read_documents(logits, values[None], self.prefix, only)[0]
        return shares, r, output[row]

    def table(self, columns):
        """A row for each document, the source marked."""
        return rows({"  document": [f"{'*' if k == self.source else ' '} {name}" for k, name in enumerate(self.names)], **columns})

    def question(self):
        yield f"question  {self.example.query}\ntarget    {self.example.target}\n"
        yield self.table({"family": [d.partition("/")[0] for d in self.pool.documents],
                          "its beginning": [text[:68] + "..." for text in self.documents]})

    def scores(self):
        for kind, text in (("query", self.example.query), ("document", self.documents[self.source])):
            ids = self.run.tokenize([text], kind)[0]
            yield f"{kind:8}  {len(ids):2} tokens   {self.decode(ids[:10])} ... {self.decode(ids[-12:])}"
        tau, below = self.run.temperature, self.s - self.s.max()
        yield f"\n{self.run.retriever.width} numbers for each text, together a vector of length 1; tau = {tau}\n"
        yield self.table({"s": texts(self.s, ".4f"), "(s - largest) / tau": texts(below / tau, ".2f"), "w": texts(self.w)})

    def prompt(self):
        documents = {f"document {k + 1}, {name}": self.prefix.document_of == k for k, name in enumerate(self.names)}
        parts = {"introduction": self.prefix.document_of < 0, **documents, "question": ~self.target_mask, "target": self.target_mask}
        yield rows({"part of the prompt": list(parts), "tokens": [str(part.sum().item()) for part in parts.values()]}) + "\n"
        for row, target in zip(self.suffixes.predicts, self.suffixes.targets):
            yield f"row {self.suffixes.positions[row]}: {self.decode(self.suffixes.input_ids[row])!r} predicts {self.decode(target)!r}"

    def heads(self):
        chosen = [f"{layer}.{head}".rjust(5) + f" {self.head_scores[layer, head]:.3f}" for layer, head in self.run.heads]
        yield f"{len(chosen)} of {self.head_scores.numel()} heads, scored on {HEAD_EXAMPLES} training questions; layer.head, score:"
        yield from ("   ".join(chosen[start : start + 8]) for start in range(0, len(chosen), 8))
        yield f"\nmean of all heads: {self.head_scores.mean():.3f}; head {self.head[0]}.{self.head[1]} on our question:\n"
        with self.run.judge() as llm:
            mass = torch.stack([score_heads(llm, *self.read, torch.tensor([k]))[self.head] for k in range(len(self.names))])
        yield self.table({"its own attention": texts(mass), "w instead": texts(self.w)})

    def reading(self):
        (shares, r, o), [[ids], _] = self.read_head(), self.run.prompts.context(self.documents)
        best = [[f"{self.decode(ids[j])!r} {share[j]:.2f}" for j in share.topk(3).indices] for share in shares]
        yield self.table(dict(zip(("most read", "second", "third"), zip(*best)))) + "\n"
        wr = self.w.T * r  # (K, d): what is summed in eq (4)
        yield self.table({"length of r": texts(r.norm(dim=1), ".2f"), "w": texts(self.w), "length of w r": texts(wr.norm(dim=1), ".2f"),
                          "part of o": texts(wr @ o / o.square().sum())})

    def losses(self):
        only, wrong = torch.eye(len(self.names)), next(k for k in self.s[0].argsort(descending=True).tolist() if k != self.source)
        cases = {"the retriever's weights": self.w, f"all on the source, {self.names[self.source]}": only[[self.source]],
                 "equal weights": only.mean(0, keepdim=True), f"all on a wrong one, {self.names[wrong]}": only[[wrong]]}
        each = torch.diag_embed(self.target_mask[0].long()).bool()[self.target_mask[0]]  # (R, T): each target token by itself
        nll = torch.stack([*(self.loss(w, each) for w in cases.values()), self.loss(self.w, each, injected=False)])  # (5, R)
        tokens = {f"{i} {self.decode(y)!r}": texts(column, ".2f") for i, (y, column) in enumerate(zip(self.suffixes.targets, nll.T), 1)}
        yield rows({"-log p of the target's tokens": [*cases, "no injection: the untouched LLM"], **tokens, "mean, L": texts(nll.mean(1))})

    def gradient(self):
        (ds, dw, moved), w = self.slopes(), self.w[0]
        yield self.table({"w": texts(self.w), "dL/dw": texts(dw, ".2f"), "less their mean": texts(dw - w @ dw, ".2f"),
                          "dL/ds": texts(ds, ".2f"), "measured": texts(moved, ".2f"), "is to": ["fall" if x > 0 else "RISE" for x in ds]})
        yield f"\nmean of dL/dw, weighted by w: {w @ dw:.2f}"

    def step(self):
        record = Training(self.run).step([(self.pool, slice(None))], SimpleNamespace(asked=False))  # asked: to stop
        w = document_weights(after := self.embed(), self.run.temperature)
        yield f"learning rate {record['lr']:.2e}; length of the gradient {record['gradient_norm']:.2f}, cut to {self.run.config.clip:.2f}\n"
        yield self.table({"s": texts(self.s, ".4f"), "after": texts(after, ".4f"), "change": texts(after - self.s, "+.4f"),
                          "w": texts(self.w), "after ": texts(w)})
        yield "\nL {:.3f}, after {:.3f}".format(*self.loss(torch.cat([self.w, w])))

    def agreement(self):
        paths, names = sorted((ROOT / "results").glob("dream-[0-9].json")), ("agreement", "accuracy", "source_weight")
        curves = [[[record[name] for name in names] for record in json.loads(path.read_text())["curve"]] for path in paths]
        mean = torch.tensor(curves).mean(0)  # over runs: (steps, 3)
        parts = {"first step": mean[0], "last step": mean[-1], "all steps": mean.mean(0)}
        yield f"{len(curves)} runs of {len(mean)} steps, in results/"
        yield rows({"mean of": list(parts), **{n: texts(column, ".2f") for n, column in zip(names, torch.stack([*parts.values()]).T)}})


def main(argv=None):
    parser = argparse.ArgumentParser(prog="lesson.py", description="One question through one step of training.", allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="also put the blocks into LESSON.md")
    write, path = parser.parse_args(argv).write, ROOT / "LESSON.md"
    page = path.read_text(encoding="utf-8") if write else ""
    if write and (there := tuple(m[2] for m in MARK.finditer(page))) != BLOCKS:
        raise BadInput(f"{path}: has marks for {', '.join(there) or 'nothing'}; expected {', '.join(BLOCKS)}")
    lesson, blocks = Lesson(CONFIG, QUESTION, DOCUMENTS, HEAD), {}
    for name in BLOCKS:  # in this order: after the step the retriever is another
        blocks[name] = re.sub(r" +$", "", "\n".join(getattr(lesson, name)()), flags=re.M) + "\n"
        print(f"--- {name}\n\n{blocks[name]}", flush=True)
    if write:
        with replacing(path) as file:
            file.write(MARK.sub(lambda m: m[1] + blocks[m[2]] + m[4], page))


if __name__ == "__main__":
    command(main)
