"""How likely the untouched LLM finds each target after each single document: what replug and emdr learn from.

    log p( y_b | d_k, q_b )        for all B questions and K documents of a pool

Every document is read alone, and once: K texts side by side. Then all questions follow every document, as many documents
at a time as memory allows. Nothing has a gradient. Symbols: see model.py.
"""
import torch
import torch.nn.functional as F

from attention import AT_ONCE, KeepTexts, Packing, Reading, forward, read_both, read_own, wide
from inject import check_llm, pack


LOGITS = 2**28  # numbers of a tensor of logits, of which about three are held at once


class ReadOneEach(Reading):
    """Every question behind every document: the questions' N rows once for the first of some documents, once more for the next.

    kept: the documents' keys and values, per layer (H_kv, K, M, d) each; some: a slice of the documents; absent: (K, M) bool, where a document has no such token;
    packing: of all rows.
    """

    def __init__(self, kept, some, absent, packing):
        self.kept, self.some, self.absent, self.packing = kept, some, absent[some, None], packing

    def __call__(self, layer, query, key, value, scaling):
        query = wide(query[0]) * scaling  # (H, rows, d)
        keys, values = (wide(x[:, None, self.some]) for x in self.kept[layer])  # (H_kv, 1, documents, M, d)
        rows = query.view(len(keys), -1, keys.shape[2], query.shape[1] // keys.shape[2], query.shape[2])  # heads that share keys apart
        logits = (rows @ keys.transpose(-1, -2)).masked_fill(self.absent, -torch.inf)  # (H_kv, H / H_kv, documents, N, M)
        lse = logits.logsumexp(-1, keepdim=True)
        document = (logits - lse).exp() @ values
        output, _ = read_both((document.reshape(query.shape), lse.reshape(*query.shape[:2], 1)), read_own(query, key[0], value[0], self.packing))
        return output[None].to(value)


@torch.no_grad()
def log_likelihoods(llm, contexts, input_ids, target_mask):
    """(B, K) float32: log p(y_b | d_k, q_b) of each whole target after each single document.

    contexts: K lists of token ids, each a document in its prompt; input_ids, target_mask: (B, T), right-padded.
    Raises BadInput if the LLM is not supported or its context too short.
    """
    lengths = torch.tensor([len(ids) for ids in contexts], device=llm.device)
    questions = pack(input_ids, target_mask)
    check_llm(llm, int(lengths.max() + questions.positions.max()) + 1)
    packing = Packing(lengths)
    documents = KeepTexts(packing)  # side by side
    forward(llm, documents, torch.tensor([i for ids in contexts for i in ids], device=llm.device), packing.positions)
    kept = []
    while documents.keys:  # what is laid apart is let go, a layer at a time
        kept.append((packing.apart(documents.keys.pop(0)), packing.apart(documents.values.pop(0))))
    absent = torch.arange(packing.token_at.shape[1], device=llm.device) >= lengths[:, None]
    rows, longest = len(questions.input_ids), questions.packing.token_at.shape[1]
    each = max(len(questions.targets) * llm.get_output_embeddings().weight.shape[0],  # of one document: at the end, or in attention
               llm.config.get_text_config().num_attention_heads * max(rows * absent.shape[1], len(input_ids) * longest**2))
    at_once = max(1, min(AT_ONCE[llm.device.type] // rows, LOGITS // each))
    columns = []
    for some in (slice(start, start + at_once) for start in range(0, len(contexts), at_once)):
        own = lengths[some]
        again = pack(input_ids.repeat(len(own), 1), target_mask.repeat(len(own), 1))  # the questions, once for each of them
        positions = again.positions + own.repeat_interleave(rows)
        reading = ReadOneEach(kept, some, absent, again.packing)
        logits = forward(llm, reading, again.input_ids, positions, logits_to_keep=again.predicts).logits[0]
        log_p = -F.cross_entropy(wide(logits), again.targets, reduction="none")
        pair = again.question_of[again.predicts]  # documents in turn, each with all questions
        columns.append(log_p.new_zeros(len(own) * len(input_ids)).index_add(0, pair, log_p).view(len(own), -1))
    return torch.cat(columns).T
