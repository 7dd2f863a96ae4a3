"""How likely the untouched LLM finds each target after each single document: what replug and emdr learn from.

    log p( y_b | d_k, q_b )        for all B questions and K documents of a pool

Every document is read alone, and once: K texts side by side. Then all questions follow every document, as many documents
at a time as memory allows. Nothing has a gradient. Symbols: see model.py.
"""
import torch
import torch.nn.functional as F

from attention import AT_ONCE, Enough, Packing, ReadTexts, Reading, forward, read_both, read_own, wide
from inject import check_llm, pack


LOGITS = 2**28  # numbers of a tensor of logits, of which about three are held at once


class KeepTexts(ReadTexts):
    """Texts read side by side, whose keys and values are kept: per layer (H_kv, K, M, d)."""

    def __init__(self, packing, layers):
        super().__init__(packing)
        self.layers, self.kept = layers, []

    def __call__(self, layer, query, key, value, scaling):
        self.kept.append((self.packing.apart(key[0]), self.packing.apart(value[0])))
        if len(self.kept) == self.layers:
            raise Enough
        return super().__call__(layer, query, key, value, scaling)


class ReadOneEach(Reading):
    """Questions that follow one document each: all N rows behind the first of some documents, all again behind the next.

    kept: see KeepTexts; some: a slice of the documents; absent: (K, M) bool, where a document has no such token;
    packing: of all rows.
    """

    def __init__(self, kept, some, absent, packing):
        super().__init__()
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
    questions = pack((), input_ids, target_mask)  # behind nothing
    check_llm(llm, int(lengths.max() + questions.positions.max()) + 1)
    packing = Packing(lengths)
    documents = KeepTexts(packing, llm.config.get_text_config().num_hidden_layers)
    forward(llm, documents, torch.tensor([i for ids in contexts for i in ids], device=llm.device), packing.positions)
    absent = torch.arange(packing.token_at.shape[1], device=llm.device) >= lengths[:, None]
    each = max(len(questions.targets) * llm.get_output_embeddings().weight.shape[0],  # of one document, at the end or in attention
               llm.config.get_text_config().num_attention_heads * len(questions.input_ids) * absent.shape[1])
    at_once = max(1, min(AT_ONCE[llm.device.type] // len(questions.input_ids), LOGITS // each))
    columns = []
    for some in (slice(start, start + at_once) for start in range(0, len(contexts), at_once)):
        own = lengths[some]
        rows = pack((), input_ids.repeat(len(own), 1), target_mask.repeat(len(own), 1))
        positions = rows.positions + own.repeat_interleave(len(questions.input_ids))
        reading = ReadOneEach(documents.kept, some, absent, rows.packing)
        logits = forward(llm, reading, rows.input_ids, positions, logits_to_keep=rows.predicts).logits[0]
        log_p = -F.cross_entropy(wide(logits), rows.targets, reduction="none")
        pair = rows.question_of[rows.predicts]  # documents in turn, each with all questions
        columns.append(log_p.new_zeros(len(own) * len(input_ids)).index_add(0, pair, log_p).view(len(own), -1))
    return torch.cat(columns).T
