"""mteb runs a retriever on one of its own task objects and finds what evaluate.py finds."""
import runpy

import pytest
from conftest import ROOT

from data import load_collection
from evaluate import evaluate
from model import Retriever

mteb = pytest.importorskip("mteb", reason="compares with mteb; make test installs it")


def local_task(collection):
    """A real AbsTaskRetrieval whose data are a collection's, instead of the hub's."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalRetrieval", description="a local collection", reference=None, dataset={"path": "local", "revision": "1"},
            type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
            dialect=None, sample_creation=None, bibtex_citation=None)

        def load_data(self, *args, **kwargs):
            rows = {name: Dataset.from_list([{"id": i, "text": text} for i, text in texts.items()])
                    for name, texts in (("corpus", collection.corpus), ("queries", collection.queries))}
            self.dataset = {"default": {"test": {**rows, "relevant_docs": collection.qrels, "top_ranked": None}}}
            self.data_loaded = True

    return Local()


def test_mteb_finds_the_same_ndcg(tiny_folder, collection_folder, measured):
    from mteb_run import run

    collection, retriever = load_collection(collection_folder), Retriever.load(tiny_folder, device="cpu")
    collection.qrels["q1"]["d2"] = 2
    retriever.set_prompt("say: {text}", "ask: {text}")
    found = run(retriever, [local_task(collection)])
    expected = evaluate(retriever, collection)["ndcg@10"]
    measured("a retrieval task of mteb over a local collection, by mteb_run.py: nDCG@10", "mteb", 1e-4, abs(found.pop("LocalRetrieval") - expected))
    assert not found and 0 < expected < 1
    retriever.set_prompt("ask: {text}", "say: {text}")
    assert evaluate(retriever, collection)["ndcg@10"] != pytest.approx(expected, abs=1e-4)  # which kind reads which prompt is seen


def test_an_unknown_task_is_one_line(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mteb_run.py", "--model", tiny_folder, "--tasks", "NoSuchTask"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "mteb_run.py"), run_name="__main__")
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "NoSuchTask" in told.splitlines()[-1] and "Traceback" not in told
