"""Warnings of a run that learns nothing: said once, with the likely cause, and not of a run that does."""
import pytest

import train
from watch import PATIENCE, symptom

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


def test_a_run_says_it_once(tiny_folder, collection_folder, capsys):
    """At a temperature of a thousand the softmax is uniform whatever the scores are."""
    from test_train import tiny_run

    run = tiny_run(tiny_folder, collection_folder, "--temperature", "1000", "--steps", "25")
    run.choose_heads()
    train.train(run)
    assert capsys.readouterr().err.count("weighs all documents alike") == 1
