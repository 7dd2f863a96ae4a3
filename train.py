"""Train a retriever with nothing but a frozen language model's next-token loss: the loop of DREAM.

    python train.py                                             # classroom/, SmolLM2-135M as retriever and as LLM
    python train.py --backbone Qwen2-0.5B --data DIR --eval DIR,DIR --out runs/mine
    torchrun --nproc-per-node 4 train.py ...                    # each process its own pools, gradients averaged

One step:  pool -> embed -> (1) scores -> (2) weights -> inject, (3)-(5) -> loss -> step.

    (1)  s_bk = e(q_b) . e(d_k)                cosine
    (2)  w_bk = softmax_k( s_b / tau )         the documents of a pool compete

`--objective` chooses among four losses on the same pools (objectives.py); `--resume` goes on with an interrupted run (checkpoints.py).
"""
import contextlib
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from adapters import check_lora
from backbones import choose_device
from bm25 import ordered
from checkpoints import Stop, check_out, claim, clear, finished, identity, newest_checkpoint, write_checkpoint
from config import Config, changes, learning_rate, parse, temperature
from cut import readable
from data import Pool, Prompts, find_qrels, load_collections, load_corpus, load_examples, make_pools, sources
from files import BadInput, brief, command, no_memory, write_json
from inject import check_llm, prefill, score_heads, select_heads
from layers import checkpoint_layers, compile_layers
from model import Retriever, load_backbone
from objectives import INJECTS, OBJECTIVES, document_weights
from plot import PICTURES
from processes import average, end_processes, everyone, own_share, processes, start_processes
from record import Clock, about_run
from report import measured, report
from watch import symptom, unfulfilled

# ASSUMPTION: what the paper leaves open is decided here, and by the defaults of Config.
ALPHA = 2  # LoRA's alpha in ranks: its update is scaled by alpha / r
HEAD_EXAMPLES = 32  # at least so many examples are used to score the heads


class Run:
    """One training run: everything that is loaded and checked before the first step."""

    def __init__(self, config: Config):
        self.config = config
        self.corpus, self.examples = load_corpus(config.data), load_examples(config.data)
        self.collections = load_collections(config.eval or (config.data if find_qrels(config.data, "test").is_file() else ""))
        self.retriever = Retriever.load(config.backbone, config.device, config.dtype)
        if self.retriever.adapters():
            raise BadInput(f"--backbone {config.backbone}: a trained retriever; python export.py makes a backbone of it")
        self.retriever.set_prompt(config.prompt or None, config.query_prompt or None)
        targets = set(filter(None, config.lora_targets.split(",")))
        check_lora(self.retriever.llm, config.lora_rank, targets)
        self.retriever.add_lora(config.lora_rank, ALPHA * config.lora_rank, config.seed, targets or None)
        llm_tokenizer, self.own_llm = self.retriever.tokenizer, None
        if config.llm and config.llm != config.backbone:
            llm_tokenizer, self.own_llm = load_backbone(config.llm, config.device, config.dtype)
        elif config.objective != "infonce" and self.retriever.llm.get_output_embeddings() is None:
            raise BadInput(f"--backbone {config.backbone}: predicts no next token, so that it cannot judge itself; name a causal LM with --llm")
        for llm in filter(None, (self.retriever.llm, self.own_llm)):
            if config.checkpoint:
                checkpoint_layers(llm)
            if config.compile:
                compile_layers(llm)
        self.prompts = Prompts(llm_tokenizer, config.document_tokens)
        self.heads, self.ids, self.temperature, self.embeddings = None, {}, config.temperature, set()
        self.check()
        self.sources_of = sources(self.corpus, self.examples)  # question -> the texts of all its sources, for infonce
        for line in unfulfilled(self) if processes()[0] == 0 else ():
            print(line, file=sys.stderr)
        self.order = ordered(self.corpus, self.examples, config.order)  # of documents, for make_pools

    def judge(self):
        """The frozen LLM, as a context: the retriever's own weights without adapters, or another model."""
        return contextlib.nullcontext(self.own_llm) if self.own_llm else self.retriever.adapters_off()

    def pools(self, seed):
        return make_pools(self.examples, self.order, self.config.pool, self.config.questions, self.config.neighbours, seed)

    def read(self, llm, documents, examples):
        """The LLM's side of a pool: documents (ids) read once, questions and targets as token ids."""
        input_ids, document_of = self.prompts.context([self.corpus[d] for d in documents])
        prefix = prefill(llm, input_ids.to(llm.device), document_of.to(llm.device))
        input_ids, target_mask = self.prompts.suffixes(examples)
        return prefix, input_ids.to(llm.device), target_mask.to(llm.device)

    def check(self):
        """Report documents and targets that are cut for the LLM; raise BadInput unless the LLM has the heads and the longest pool fits it."""
        config = self.config
        documents = [self.corpus[d] for d in dict.fromkeys(e.document for e in self.examples)]
        documents.sort(key=lambda d: self.prompts.context([d])[0].shape[1], reverse=True)
        if self.prompts.truncated:
            self.examples = readable(self.examples, self.corpus, self.prompts, config.cut_targets)
        for text, kind in ((documents[0], "document"), (self.examples[0].query, "query")):
            self.tokenize([text], kind)  # or BadInput: no room beside the prompt
        if config.objective == "infonce":
            return
        together = config.pool * (processes()[1] if config.gather else 1) if config.objective in INJECTS else 1
        longest = self.prompts.context(documents[:together])[0].shape[1]
        longest += max(self.prompts.suffixes([e])[0].shape[1] for e in self.examples) - 1  # the last target is never an input
        with self.judge() as llm:
            check_llm(llm, longest)
            shape = llm.config.get_text_config()
            there = shape.num_hidden_layers * shape.num_attention_heads
        if config.heads > there and config.head_choice != "all" and config.objective in INJECTS:
            raise BadInput(f"--heads {config.heads}: the LLM has {there}")

    def choose_heads(self):
        """Eq (6) on the first pools of another stream: sets the heads, returns all scores (layers, heads).

        ASSUMPTION: heads are scored on training examples in the training prompt, from the rows that predict the target.
        """
        scores, seen, pools = 0, 0, self.pools(self.config.seed + 1)
        with self.judge() as llm:
            while seen < HEAD_EXAMPLES:
                pool = next(pools)
                source = pool.source.to(llm.device)
                scores = scores + score_heads(llm, *self.read(llm, pool.documents, pool.examples), source, self.config.head_rows) * len(source)
                seen += len(source)
        scores = everyone((scores / seen)[None])[0]  # the first process's: on other hardware others could choose other heads
        self.heads = select_heads(scores, self.config.heads, self.config.head_choice, self.config.seed)
        return scores

    def tokenize(self, texts, kind):
        """Texts -> lists of token ids for the retriever; each text is tokenized once in a run."""
        for text in texts:
            if (kind, text) not in self.ids:
                limit = self.config.document_tokens if kind == "document" else None
                self.ids[kind, text] = self.retriever.tokenize([text], kind, limit)[0]
        return [self.ids[kind, text] for text in texts]

    def step(self, pool, own=slice(None)):
        """One forward and backward pass -> the pool's record; gradients are added to the adapters'.

        The backward pass has two parts, through the judge as far as the embeddings, then through the retriever: so texts can be
        embedded a few at a time. own: which of the pool's documents this process embeds, where processes share a pool (--gather).
        """
        c, retriever = self.config, self.retriever
        queries = self.tokenize([e.query for e in pool.examples], "query")
        documents = self.tokenize([self.corpus[d] for d in pool.documents[own]], "document")
        embeddings, backward = retriever.embed_apart(queries + documents, c.embed_chunk)
        query_emb, doc_emb = embeddings.split([len(queries), len(documents)])
        doc_emb = everyone(doc_emb) if c.gather else doc_emb  # (K, D)
        query_emb, doc_emb = query_emb.requires_grad_(), doc_emb.requires_grad_()  # leaves: the judge's backward pass ends here
        scores = query_emb @ doc_emb.T  # (B, K)  # eq (1)
        scores.retain_grad()
        with self.judge() as llm:
            loss = OBJECTIVES[c.objective](self, llm, pool, scores)
            loss.backward()  # through the LLM, as far as the embeddings
        doc_grad = own_share(doc_emb.grad) if c.gather else doc_emb.grad
        backward(torch.cat([query_emb.grad, doc_grad]))  # and on through the retriever
        weights, unit = document_weights(scores.detach(), self.temperature), torch.nn.functional.normalize(doc_emb.detach(), dim=-1)
        is_source, row = pool.is_source.to(scores.device), torch.arange(len(scores), device=scores.device)
        return {"loss": loss.item(),
            "source_weight": (weights * is_source).sum(1).mean().item(),
            "largest_weight": weights.amax(1).mean().item(),
            "accuracy": is_source[row, weights.argmax(1)].float().mean().item(),
            "agreement": is_source[row, scores.grad.argmin(1)].float().mean().item(),  # the loss asks for the source's score to rise most
            "spread": 1 - unit.mean(0).square().sum().item()}  # 1 - |mean|^2: 0 when all vectors are one

    def shares(self):
        """Endless (pool, own) for step(): this process's pools, or with --gather its part of everybody's pool."""
        stream, (place, size) = self.pools(self.config.seed), processes()
        while True:
            group = list(itertools.islice(stream, size))
            own, K = group[place], len(group[place].documents)
            if self.config.gather:
                yield Pool([d for pool in group for d in pool.documents], own.examples), slice(place * K, (place + 1) * K)
            else:
                yield own, slice(None)


class Training:
    """A run's optimiser and how far it is: what a checkpoint holds beside the adapters."""

    def __init__(self, run):
        self.run, self.config, self.parameters = run, run.config, run.retriever.parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=run.config.lr, weight_decay=0.0)
        self.curve, self.documents = [], 0  # a record per step; the candidates of the last one

    def tensors(self):
        """{name: tensor}, not copies: adapters and, once there was a step, the optimiser's moments."""
        found = {}
        for i, p in enumerate(self.parameters):
            found[f"{i}.weight"] = p.data
            found |= {f"{i}.{name}": self.optimizer.state[p][name] for name in ("step", "exp_avg", "exp_avg_sq") if self.curve}
        return found

    def load(self, tensors, about):
        """Go on from a checkpoint."""
        self.curve, self.documents, self.run.heads = about["curve"], about["documents"], about["heads"] and [tuple(head) for head in about["heads"]]
        for p in self.parameters if self.curve else ():
            self.optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def step(self, pools, stop):
        """One optimiser step -> its record. A step's gradient is the mean over its pools, of all processes."""
        config, number, start = self.config, len(self.curve), time.perf_counter()
        self.optimizer.param_groups[0]["lr"] = learning_rate(config, number)
        self.run.temperature = temperature(config, number)
        records, self.documents = [self.run.step(*pool) for pool in pools], len(pools[0][0].documents)
        values = torch.tensor([[*record.values(), stop.asked] for record in records], dtype=torch.float64).mean(0)  # one process asks, all stop
        *values, stop.agreed = average(self.parameters, values, config.accumulate).tolist()
        record = dict(zip(records[0], values))
        record["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip).item()
        if not math.isfinite(record["loss"]) or not math.isfinite(record["gradient_norm"]):
            documents = ", ".join(d for pool, _ in pools for d in pool.documents)
            raise BadInput(f"step {number + 1}: the loss or its gradient is not a number; start anew with a smaller --lr or a larger --temperature; "
                           f"the documents of this step: {documents}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.curve.append({"step": number + 1, **record, "lr": learning_rate(config, number), "seconds": time.perf_counter() - start})
        return self.curve[-1]


def train(run, log=lambda record: None, save=None, training=None):
    """The loop, from where `training` is to the last step. log(record) is called once a step, save(training) now and then:
    every --save-every steps, when a signal asks the run to stop (then KeyboardInterrupt), when a step's loss is not a number and when
    there is not enough memory for it (then BadInput; of several processes, in the first). Without it nothing is kept."""
    keep = save or (lambda training: None)
    training, config = training or Training(run), run.config
    done, warned = len(training.curve), None
    shares = itertools.islice(run.shares(), done * config.accumulate, None)  # a resumed run goes on where the stream was
    with Stop() as stop, tqdm(total=config.steps, initial=done, desc="training", unit="step", disable=processes()[0] > 0) as bar:
        while len(training.curve) < config.steps:
            pools = [next(shares) for _ in range(config.accumulate)]
            try:
                record = training.step(pools, stop)
            except BadInput:
                keep(training)  # as the last good step has left it
                raise
            except (RuntimeError, MemoryError) as error:
                if not no_memory(error):
                    raise
                if all(state["step"] == len(training.curve) for state in training.optimizer.state.values()):  # not within the optimiser
                    keep(training)
                raise BadInput(f"step {len(training.curve) + 1}: {brief(error, 100)}; --resume goes on where there is more memory; "
                               "--checkpoint, --embed-chunk, a smaller --pool or fewer --questions need less, from the start") from None
            log(record)
            bar.update()
            bar.set_postfix({name: f"{record[name]:.3f}" for name in ("loss", "source_weight")}, lr=f"{record['lr']:.1e}")
            if not warned and not bar.disable and (warned := symptom(training.curve, training.documents)):
                bar.write(f"step {record['step']}: {warned}", file=sys.stderr)
            last = record["step"] == config.steps  # measuring may take longer than training did
            if stop.agreed or last or (config.save_every and record["step"] % config.save_every == 0):
                keep(training)
            if stop.agreed:
                if not bar.disable:
                    bar.write(f"stopped after step {record['step']}{'; --resume goes on' if save else ''}", file=sys.stderr)
                raise KeyboardInterrupt
    return training


def main(argv=None):
    config = parse(argv)
    start_processes(config.device)
    first = processes()[0] == 0  # the one that speaks and writes; under torchrun all measure, each its share
    if first:
        print("train.py:", changes(config), "on", choose_device(config.device), flush=True)
    check_out(config)
    clock = Clock()
    run = Run(config)
    clock.lap("load")
    with claim(config) if first else contextlib.nullcontext(Path(config.out)) as out:
        carry_out(run, out, first, clock, argv)
    end_processes()


def carry_out(run, out, first, clock, argv):
    """Everything between loading and the table: measure, choose heads or resume, train, save, measure again."""
    config, training, own = run.config, Training(run), identity(run)
    done = config.resume and finished(out, config, own["the data"])
    tensors, about = newest_checkpoint(out, own) if config.resume and not done else (None, None)
    found = everyone(torch.tensor([[done, about["step"] if about else -1]]))  # (processes, 2)
    if len(found.unique(dim=0)) > 1:
        raise BadInput(f"--resume: not all processes find the same checkpoint in {out}; it must be a folder that all machines share")
    if done:
        if first:
            clear(out, "checkpoint-*")  # it may have ended just before it did that itself
            print(f"{out}: the run is finished, there is nothing to resume")
        return
    if about:
        training.load(tensors, about)
        before, scores = about["before"], about["scores"]
        clock.add(about["laps"])
    earlier = about["ran"] if about else None
    if first and config.resume:
        print(f"resuming {out} after step {len(training.curve)} of {config.steps}", flush=True)
    if not about:
        with run.retriever.adapters_off():  # they change nothing yet
            before = measured(run, out)
        clock.lap("evaluate before")
        scores = run.choose_heads().tolist() if config.objective in INJECTS else None
        clock.lap("choose heads")
        if first:  # a folder never mixes two runs
            clear(out, "result.json", "adapter_*", "retriever.json", "heads.json", *PICTURES)  # first what calls it whole
    if first and scores:
        write_json(out / "heads.json", {"heads": run.heads, "scores": scores})

    def save(training):
        clock.lap("train")
        if first:
            write_checkpoint(out, len(training.curve), training.tensors(), {
                "run": own, "heads": run.heads, "curve": training.curve, "before": before, "scores": scores, "laps": clock.laps,
                "documents": training.documents, "ran": about_run("train.py", argv, run.retriever.device, earlier)})

    with open(out / "metrics.jsonl" if first else os.devnull, "w", buffering=1) as file:  # a line at a time
        file.writelines(json.dumps(record) + "\n" for record in training.curve)
        train(run, lambda record: file.write(json.dumps(record) + "\n"), save, training)
    clock.lap("train")
    if first:
        run.retriever.save(out)
    after = measured(run, out)
    clock.lap("evaluate after")
    if first:
        report(run, training, out, before, after, clock, argv, own["the data"], earlier)


if __name__ == "__main__":
    command(main)
