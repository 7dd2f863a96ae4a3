"""Four ways to train the same retriever on the same pools, side by side.

Each takes the scores s_bk of eq (1), (B, K), and returns a loss. tau is the temperature.

    dream      -1/|y| log p(y | d_1..d_K, q; w)            one reading of all documents, a few heads weighted by w = softmax(s / tau)
    infonce    -log softmax_k(s / tau)[source]             the source document is the label, the pool's others are negatives,
                                                       except its copies and what other rows name as q's source
    replug     KL( softmax_k(s / tau) || softmax_k(log p(y | d_k, q) / BETA) )      each document read alone
    emdr       -log sum_k softmax_k(s / tau) p(y | d_k, q)                           each document read alone

|y| counts the target's tokens: dream's loss is a mean over them, the others' p is of the whole target. DREAM's judge reads K
documents once; replug and emdr need the likelihood of every target after every single document, K times the suffix rows,
though no gradient goes through the LLM. Only infonce's loss is told which document is the source.
"""
import torch
import torch.nn.functional as F

from inject import target_nll
from likelihoods import log_likelihoods

BETA = 1.0  # replug's temperature of the LLM's likelihoods


def document_weights(scores, temperature):
    """Eq (2): scores (B, K) -> weights (B, K), each row a softmax: the documents of a pool compete.

    >>> document_weights(torch.tensor([[0.0, 0.0]]), 0.02)
    tensor([[0.5000, 0.5000]])
    """
    return F.softmax(scores / temperature, dim=-1)  # eq (2)


def dream_loss(run, llm, pool, scores):
    """DREAM: the frozen LLM's loss on the targets when the retriever's weights decide what its heads read."""
    assert run.heads, "no heads are chosen: name the objective in INJECTS"
    weights = document_weights(scores, run.temperature)  # (B, K)
    prefix, input_ids, target_mask = run.read(llm, pool.documents, pool.examples)
    return target_nll(llm, prefix, input_ids, target_mask, weights, run.heads, run.config.budget).mean()


def infonce_loss(run, llm, pool, scores):
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): cross-entropy on the source document."""
    source = pool.source
    also_right = torch.tensor([[run.corpus[d] in run.sources_of[e.query] for d in pool.documents] for e in pool.examples])  # (B, K)
    also_right[torch.arange(len(source)), source] = False  # the source's copies, and other rows' sources for this question, are no negatives
    return F.cross_entropy((scores / run.temperature).masked_fill(also_right.to(scores.device), -torch.inf), source.to(scores.device))


def replug_loss(run, llm, pool, scores):
    """RePlug LSR (Shi et al. 2023, arXiv 2301.12652): the retriever's distribution P learns the LLM's Q, by KL(P || Q).

    ASSUMPTION: Q is the softmax of log-likelihoods (of whole targets) over BETA: at 1 it is Bayes'
    posterior of the document under equal priors.
    """
    log_p = F.log_softmax(scores / run.temperature, dim=-1)  # (B, K)
    log_q = F.log_softmax(document_likelihoods(run, llm, pool) / BETA, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def emdr_loss(run, llm, pool, scores):
    """EMDR2 (Sachan et al. 2021, arXiv 2106.05346): the target's likelihood, marginal over documents."""
    log_p = F.log_softmax(scores / run.temperature, dim=-1)  # (B, K)
    return -(log_p + document_likelihoods(run, llm, pool)).logsumexp(-1).mean()


def document_likelihoods(run, llm, pool):
    """(B, K): log p(y_b | d_k, q_b) of each whole target after each single document, by the untouched LLM."""
    contexts = [run.prompts.context([run.corpus[d]])[0][0].tolist() for d in pool.documents]
    return log_likelihoods(llm, contexts, *(x.to(llm.device) for x in run.prompts.suffixes(pool.examples)))


OBJECTIVES = {"dream": dream_loss, "infonce": infonce_loss, "replug": replug_loss, "emdr": emdr_loss}
INJECTS = {"dream"}  # those for which a pool's documents are read together, and heads are chosen
