"""Warnings of a run that learns nothing: said once, with the likely cause, and not of a run that does."""
import itertools

import pytest

import train
from watch import PATIENCE, symptom, unfulfilled

HEALTHY = {"spread": 0.4, "largest_weight": 0.7, "source_weight": 0.6}


@pytest.mark.parametrize("record, says", [
    ({"spread": 0.019, "largest_weight": 0.7}, "nearly one vector"), ({"spread": 0.4, "largest_weight": 0.9995, "source_weight": 0.5}, "all its weight to one"),
    ({"spread": 0.4, "largest_weight": 0.9995, "source_weight": 0.9995}, None),  # sure, and right
    ({"spread": 0.4, "largest_weight": 0.0635}, "alike"), (HEALTHY, None), ({"spread": 0.4, "largest_weight": 0.07}, None)])
def test_a_sign_must_last(record, says):
    assert symptom([record] * (PATIENCE - 1), 16) is None
    found = symptom([HEALTHY] * 5 + [record] * PATIENCE, 16)
    assert says in found if says else found is None
    assert symptom([record] * PATIENCE + [HEALTHY], 16) is None and symptom([record, HEALTHY] * PATIENCE, 16) is None


@pytest.mark.parametrize("flags, says", [
    ([], None), (["--objective", "infonce", "--budget", "keep", "--heads", "3"], "--heads, --budget"), (["--objective", "replug", "--head-choice", "all"], "--head-choice"),
    (["--head-choice", "all", "--heads", "2"], "no effect in this run: --heads"),
    (["--budget", "keep", "--head-rows", "question"], None), (["--gather"], "run: --gather")])
def test_options_that_nothing_reads_are_named(flags, says, tiny_folder, collection_folder, tmp_path, capsys):
    run = train.Run(train.parse(["--backbone", tiny_folder, "--data", str(collection_folder), "--pool", "4", "--questions", "4", "--device", "cpu",
                                 *([] if "--heads" in flags or "all" in flags or "replug" in flags else ["--heads", "3"]), *flags]))
    told = capsys.readouterr().err
    assert f"{says}\n" in told and len(unfulfilled(run)) == 1 if says else "effect" not in told and not unfulfilled(run)


@pytest.mark.parametrize("pool, questions", [(4, 4), (3, 6), (4, 5), (8, 16), (50, 50), (50, 4), (2, 30)])
def test_pools_that_the_rows_do_not_allow_are_named_with_what_they_do(pool, questions, tiny_folder, collection_folder):
    run = train.Run(train.parse(["--backbone", tiny_folder, "--data", str(collection_folder), "--device", "cpu", "--heads", "3",
                                 "--pool", str(pool), "--questions", str(questions)]))
    pools = list(itertools.islice(run.pools(0), 60))
    documents, most = len(pools[0].documents), max(len(p.examples) for p in pools)
    told = "".join(unfulfilled(run))
    if documents == pool and most == questions:
        assert told == ""
    else:
        assert f"pools of {documents} documents and at most {most} questions" in told


def test_a_judge_that_infonce_does_not_ask_is_named(tiny_folder, collection_folder, tmp_path):
    from conftest import save_tiny
    from test_train import tiny_run

    other = save_tiny(tmp_path / "other", seed=3)
    assert not unfulfilled(tiny_run(tiny_folder, collection_folder, "--llm", other))
    assert unfulfilled(tiny_run(tiny_folder, collection_folder, "--llm", other, "--objective", "infonce", "--heads", "16")) == [
        "--llm judges nothing with infonce: its tokenizer alone says which targets are cut"]


def test_what_the_retriever_cannot_read_is_told(tiny_folder, collection_folder):
    from test_train import tiny_run

    run = tiny_run(tiny_folder, collection_folder)
    run.retriever.max_tokens = run.config.document_tokens
    assert not unfulfilled(run)
    run.retriever.max_tokens -= 1
    assert unfulfilled(run) == ["--document-tokens 128: the retriever reads 127 tokens; what stands behind them it cannot learn to find"]


def test_queries_that_are_documents_are_told(tiny_folder, collection_folder):
    from test_train import tiny_run

    with open(collection_folder / "queries.jsonl", "a") as file:
        file.write('{"_id": "d1", "text": "The box number 1 is green."}\n')
    with open(collection_folder / "qrels" / "test.tsv", "a") as file:
        file.write("d1\td2\t1\n")
    told, = unfulfilled(tiny_run(tiny_folder, collection_folder))
    assert told.startswith(f"{collection_folder.name}: 1 queries are documents of the corpus") and "--drop-self" in told


def test_a_run_says_it_once(tiny_folder, collection_folder, capsys):
    """At a temperature of a thousand the softmax is uniform whatever the scores are."""
    from test_train import tiny_run

    run = tiny_run(tiny_folder, collection_folder, "--temperature", "1000", "--steps", "25")
    run.choose_heads()
    train.train(run)
    assert capsys.readouterr().err.count("weighs all documents alike") == 1
