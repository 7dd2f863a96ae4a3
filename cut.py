"""What is lost when documents are cut (--document-tokens): targets that the LLM never reads.

An example whose target stands in its source document, but only where that is cut off, teaches DREAM nothing: no document of
the pool tells the target, and whatever the loss then asks for is noise. infonce does not notice, since its label says which
document is the source.
"""
import sys

from data import flat
from files import BadInput
from processes import processes


def visible(prompts, text):
    """What the LLM reads of a document."""
    n = prompts.document_tokens
    return prompts.tokenizer.decode(prompts.document(text[: 32 * n])[:n])  # no token is that long, but a book is longer


def unread(examples, corpus, prompts):
    """Those examples whose target stands in its document, as data.py:flat compares, but not in what the LLM reads of it.

    A target that stands nowhere in its document, such as "yes", is not among them: the LLM may infer it."""
    whole, read = {}, {}  # of the documents that are cut
    for d in {e.document for e in examples}:
        if len(prompts.document(corpus[d])) > prompts.document_tokens:
            whole[d], read[d] = flat(corpus[d]), flat(visible(prompts, corpus[d]))
    return [e for e in examples if flat(e.target) in whole.get(e.document, "") and flat(e.target) not in read[e.document]]


def readable(examples, corpus, prompts, cut_targets):
    """Say on stderr how many documents and targets are cut off -> the examples to train on.

    cut_targets: "keep" or "drop". Raises BadInput if fewer than two documents are left."""
    documents, lost = {e.document for e in examples}, unread(examples, corpus, prompts)
    cut = sum(corpus[d] in prompts.truncated for d in documents)
    say = f"{cut} of {len(documents)} documents are longer than {prompts.document_tokens} tokens and are cut (--document-tokens)"
    if lost:
        say += (f"; {len(lost)} of {len(examples)} targets are cut off with them, " +
                ("and their examples left out" if cut_targets == "drop" else "and teach dream nothing (--cut-targets drop)"))
    if processes()[0] == 0:
        print(say, file=sys.stderr)
    if lost and cut_targets == "drop":
        missing = set(map(id, lost))
        examples = [e for e in examples if id(e) not in missing]
        if len({e.document for e in examples}) < 2:
            raise BadInput(f"--cut-targets drop leaves {len(examples)} examples; use a larger --document-tokens")
    return examples
