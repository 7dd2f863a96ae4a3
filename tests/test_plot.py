"""Pictures: what is drawn is what was measured."""
import builtins
import json
import shutil
import statistics

import pytest
import torch

import evaluate
import pictures
import plot
import train
from conftest import write_collection
from data import BadInput, load_collection, make_pools
from model import Retriever

pytest.importorskip("matplotlib", reason="pictures need matplotlib; make test installs it")


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """Two seeds of one run, and an InfoNCE run, as train.py leaves them; the first with its pictures."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_collection(folder / "collection")
    for name, flags in {"dream-0": ["--plot"], "dream-1": ["--seed", "1"], "other-0": ["--objective", "infonce"]}.items():
        train.main(["--backbone", tiny_folder, "--data", str(data), "--pool", "4", "--questions", "4", "--heads", "3", "--steps", "3",
                    "--lr", ".05", "--device", "cpu", "--out", str(folder / name), *flags])
    return folder


def result(folder):
    return json.loads((folder / "result.json").read_text())


def lines(ax):
    """{label or number: y-values} of an axis."""
    return [list(line.get_ydata()) for line in ax.lines]


def test_curves_are_the_records(runs):
    groups = plot.read_results([runs / "dream-0", runs / "dream-1", runs / "other-0"])
    assert {name: len(seeds) for name, seeds in groups.items()} == {"dream": 2, "other": 1}
    figure = pictures.curves(groups)
    source, accuracy, dream, infonce = figure.axes
    one, two, other = ([r["source_weight"] for r in result(runs / name)["curve"]] for name in ("dream-0", "dream-1", "other-0"))
    drawn = lines(source)
    assert one in drawn and two in drawn and other in drawn and [0.25, 0.25] in drawn  # by chance: one of four
    assert pytest.approx([statistics.fmean(pair) for pair in zip(one, two)]) in drawn
    assert [r["accuracy"] for r in result(runs / "other-0")["curve"]] in lines(accuracy)
    losses = [[r["loss"] for r in result(runs / name)["curve"]] for name in ("dream-0", "other-0")]
    assert losses[0] in lines(dream) and losses[1] in lines(infonce) and losses[1] not in lines(dream)


def test_chance_is_among_the_candidates_that_there_were(tiny_folder, tmp_path):
    """Five documents, where --pool asks for seven."""
    data = write_collection(tmp_path / "collection", documents=5)
    train.main(["--backbone", tiny_folder, "--data", str(data), "--pool", "7", "--questions", "4", "--heads", "3", "--steps", "2", "--device", "cpu",
                "--out", str(tmp_path / "run")])
    figure = pictures.curves(plot.read_results([tmp_path / "run"]))
    assert [0.2, 0.2] in lines(figure.axes[0])
    path = tmp_path / "run" / "result.json"
    for candidates in (5, 3):
        path.write_text(json.dumps({**json.loads(path.read_text()), "candidates": candidates}))
        assert len(plot.weights_of(tmp_path / "run", device="cpu").axes[0].get_yticklabels()) == candidates
    older = {**json.loads(path.read_text()), "processes": 2}
    del older["candidates"]
    assert pictures.candidates(older) == 7 and pictures.candidates({**older, "config": {**older["config"], "gather": True}}) == 14


def test_the_map_shows_all_scores_and_frames_the_chosen_heads(runs):
    written = json.loads((runs / "dream-0" / "heads.json").read_text())
    figure = pictures.heads(*plot.read_heads(runs / "dream-0"))
    image = torch.tensor(figure.axes[0].images[0].get_array().tolist())
    torch.testing.assert_close(image, torch.tensor(written["scores"]).T)
    framed = {(round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in figure.axes[0].patches}
    assert framed == {tuple(head) for head in written["heads"]} and len(framed) == 3


def test_weights_are_those_of_the_equation(runs):
    figure = plot.weights_of(runs / "dream-0", str(runs / "collection"), "colour is 2", device="cpu")
    retriever, collection = Retriever.load(runs / "dream-0", device="cpu"), load_collection(runs / "collection")
    names = [label.get_text().removeprefix("source: ") for label in figure.axes[0].get_yticklabels()]
    texts = [next(text for text in collection.corpus.values() if text.startswith(name)) for name in names]
    assert len(texts) == 4 and figure.axes[0].get_yticklabels()[names.index("Box 2")].get_text() == "source: Box 2"

    def expected():
        scores = (retriever.encode(["What colour is 2?"], "query") @ retriever.encode(texts, "document").T)[0]
        return ((scores / train.Config.temperature).exp() / (scores / train.Config.temperature).exp().sum()).tolist()

    after = expected()
    with retriever.adapters_off():
        before = expected()
    bars = {container.get_label(): [bar.get_width() for bar in container] for container in figure.axes[0].containers}
    assert bars == {"before training": pytest.approx(before, abs=1e-4), "after training": pytest.approx(after, abs=1e-4)}
    assert after == sorted(after, reverse=True)


def test_candidates_stand_together_as_they_did_in_training(runs, tmp_path, monkeypatch):
    drawn, trained, own = [], [], result(runs / "dream-0")
    monkeypatch.setattr("bm25.chain", lambda corpus: list(corpus)[::-1])  # so few documents stand in the file's order by BM25, too
    monkeypatch.setattr(plot, "make_pools", lambda examples, order, *more: drawn.append(order) or make_pools(examples, order, *more))
    monkeypatch.setattr(train, "make_pools", lambda examples, order, *more: trained.append(order) or make_pools(examples, order, *more))
    for order in ("file", "bm25"):
        run = train.Run(train.Config(**{**own["config"], "order": order}))
        next(run.pools(0))
        (tmp_path / "result.json").write_text(json.dumps({**own, "config": {**own["config"], "order": order}}))
        plot.weights_of(tmp_path, retriever=run.retriever)
    assert drawn == trained and drawn[0] == drawn[1][::-1]


def test_bars_are_the_metrics(runs):
    series = plot.read_bars(plot.read_results([runs / "dream-0", runs / "dream-1"]))
    one, two = result(runs / "dream-0"), result(runs / "dream-1")
    value = [r["after"]["collection"]["ndcg@10"] for r in (one, two)]
    assert series == {"BM25": {"collection": [one["bm25"]["collection"]["ndcg@10"]]},
                      "untrained": {"collection": [one["before"]["collection"]["ndcg@10"]]}, "dream": {"collection": value}}
    figure = pictures.bars(series)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([*series["BM25"]["collection"], *series["untrained"]["collection"],
                                                                               statistics.fmean(value)])


def test_an_untrained_retriever_that_reads_otherwise_is_another_one():
    def trained(before, **config):
        return {"config": {"backbone": "tiny", **config}, "before": {"c": {"ndcg@10": before}}, "after": {"c": {"ndcg@10": 0.9}}}

    found = plot.read_bars({"older": [trained(0.1)], "run": [trained(0.1, prompt="", query_prompt="")], "asked": [trained(0.2, prompt="", query_prompt="ask: {text}")]})
    assert found["untrained"] == {"c": [0.1]} and found["asked, untrained"] == {"c": [0.2]} and len(found) == 5  # and the three


def test_commands_write_whole_pictures(runs, tmp_path, tiny_folder, monkeypatch):
    drawn = []
    assert {path.name for path in (runs / "dream-0").glob("*.png")} == {"curves.png", "heads.png", "weights.png", "bars.png"}
    assert not list((runs / "dream-1").glob("*.png"))
    (other := tmp_path / "other").mkdir()
    shutil.copytree(runs / "dream-1", other / "run")
    plot.main(["run", str(other / "run")])
    assert {path.name for path in (other / "run").glob("*.png")} == {"curves.png", "heads.png", "weights.png", "bars.png"}
    plot.main(["curves", str(runs / "dream-0"), "--out", str(tmp_path / "curves.svg")])
    evaluate.main(["--model", tiny_folder, "--data", str(runs / "collection"), "--device", "cpu", "--plot", str(tmp_path / "bars.png")])
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append([label.get_text() for label in figure.axes[0].get_yticklabels()]))
    evaluate.main(["--model", "bm25", "--data", str(runs / "collection"), "--plot", str(tmp_path / "bm25.png")])
    assert drawn == [["BM25"]]  # once: a model is not its own baseline
    assert (tmp_path / "curves.svg").read_text().rstrip().endswith("</svg>")
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG" and len(list(tmp_path.iterdir())) == 3


def test_a_dollar_is_a_dollar(tmp_path):
    """And no beginning of a formula, in a title that the collection gives and in a name on an axis."""
    pictures.save(pictures.weights(["from $5 to $10", "C:\\$x$ \\frac $"], torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]), 0, "$5% of {x$?", 0.02),
                  tmp_path / "weights.svg")
    pictures.save(pictures.bars({"a $b$": {"c $\\frac$": [0.5]}}), tmp_path / "bars.svg")
    assert "from $5 to $10" in (tmp_path / "weights.svg").read_text() and "c $\\frac$" in (tmp_path / "bars.svg").read_text()


def test_a_training_run_and_an_evaluation_of_one_name_are_not_two_seeds(runs, tmp_path):
    (tmp_path / "dream.json").write_text(json.dumps({"metrics": {"collection": {"ndcg@10": 0.7}}}))
    for pair in ([runs / "dream-0", tmp_path / "dream.json"], [tmp_path / "dream.json", runs / "dream-0"]):
        with pytest.raises(BadInput, match="a training run is called 'dream', and an evaluation too; rename one"):
            plot.read_results(pair)


def test_seeds_of_one_name_may_differ_in_their_precision_alone(runs, tmp_path):
    """Seed 1 in bfloat16 is another seed of the same experiment; with another temperature it is another experiment."""
    one = result(runs / "dream-1")
    path = tmp_path / "dream-1.json"
    path.write_text(json.dumps(one | {"config": one["config"] | {"dtype": "bfloat16"}}))
    assert len(plot.read_results([runs / "dream-0", path])["dream"]) == 2
    path.write_text(json.dumps(one | {"config": one["config"] | {"temperature": 0.5}}))
    with pytest.raises(BadInput, match="another run is called 'dream"):
        plot.read_results([runs / "dream-0", path])


@pytest.mark.parametrize("arguments, says", [
    (["curves", "none.json"], "none.json: cannot be read"), (["heads", "."], "heads.json: no such file"),
    (["curves", "x", "--out", "curves.jpeg2"], "the name of a picture ends in"), (["weights", "."], "result.json: cannot be read")])
def test_bad_input(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        plot.main(arguments)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_command_to_install_it_is_named_before_any_work(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *args, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    for main, arguments in ((train.main, ["--plot", "--out", str(tmp_path / "run")]), (plot.main, ["heads", "."]),
                            (evaluate.main, ["--model", "bm25", "--data", ".", "--plot", str(tmp_path / "x.png")])):
        with pytest.raises(BadInput, match="pip install matplotlib"):
            main(arguments)
    assert not list(tmp_path.iterdir())
