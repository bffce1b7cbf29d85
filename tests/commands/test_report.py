"""The report: one sound page for any run, what it shows checked against what lies in the workdirs."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from command import simclr
from PIL import Image
from tensorflow.core.util import event_pb2

from simclr_tf.analysis.features import check_map, choose_queries, flat, nearest, principal_components
from simclr_tf.commands.report import charts, page, sections
from simclr_tf.commands.report.charts import Level, Series
from simclr_tf.commands.report.runs import find, read
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.sources import subset
from simclr_tf.data.sources.open import open_source

_VOID = {"meta", "br", "img", "line", "rect", "circle", "polyline", "polygon"}


class Page(html.parser.HTMLParser):
    """Reads a page strictly: every tag is closed in order, and nothing comes from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())
        for tag, name, value in self.attributes:
            assert not name.startswith("on"), f"{tag} has a handler"
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#")), f"{tag} loads {value[:50]}"
        assert not {tag for tag, _, _ in self.attributes} & {"script", "link", "iframe", "object"}

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs] or [(tag, "", "")]
        if tag not in _VOID or (tag in ("rect", "circle", "polygon") and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def train(mode: str, workdir, *arguments: str) -> None:
    outcome = simclr(
        f"--mode={mode}", f"--workdir={workdir}", "--gin_file=embedded_small", "--gin_file=smoke",
        "--gin_param=train.steps=3", "--gin_param=Data.label_fraction=None", *arguments,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err


def report(workdir, *params: str) -> tuple[str, str]:
    """Makes a report, and returns its text and what was printed."""
    settings = ("max_images=24", "map='pca'", "num_queries=3", "num_neighbors=4", "sheet_images=2", *params)
    outcome = simclr("--mode=report", f"--workdir={workdir}", *(f"--gin_param=report.{param}" for param in settings))
    assert outcome.code == 0, outcome.err
    path = re.search(r"open (\S+)", outcome.out)[1]
    with open(path, encoding="utf-8") as file:
        return file.read(), outcome.out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining and a training from scratch, side by side."""
    folder = tmp_path_factory.mktemp("runs")
    train("pretrain", folder / "pretrain")
    train("supervised", folder / "scratch", "--gin_param=LEARNING_RATE=0.01")
    return folder


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A pretraining on photographs without labels, whose names would be HTML."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        image.save(folder / "photos" / f"<b onload=x>&{i}.png")
    data = ("source", f"folder:{folder}/photos"), ("train_split", "all"), ("eval_split", "all")
    train("pretrain", folder / "run", *(f"--gin_param=Data.{name}={value!r}" for name, value in data))
    return folder / "run"


@pytest.mark.slow
def test_tensorboard_has_pictures_and_a_projector(runs, tmp_path):
    """And they change nothing in the run."""
    params = ("--gin_param=train.board_images=12", "--gin_param=train.checkpoint_every_steps=1")
    train("pretrain", tmp_path / "run", *params)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (runs / "pretrain" / "metrics.jsonl").read_text()
    board = tmp_path / "run" / "tensorboard"
    shown = []
    for path in board.glob("events*.images"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            shown += [(value.tag, event.step, value.tensor.string_val) for value in event.summary.value]
    tags = [(tag, step) for tag, step, _ in shown]
    assert tags == [("what training sees", 0), *(("nearest neighbors", step) for step in (1, 2, 3))]
    for _, _, (width, height, png) in shown:
        image = tf.io.decode_png(png)
        assert image.shape == (int(height), int(width), 3)
    features = np.loadtxt(board / "features.tsv", delimiter="\t")
    names = (board / "names.tsv").read_text().splitlines()
    assert len(features) == len(names) - 1 == 12
    assert names[0] == "class\tname"
    with Image.open(board / "sprite.png") as sprite:
        assert sprite.size == (64, 64)  # Four times four of 16 pixels.
    config = (board / "projector_config.pbtxt").read_text()
    for name in ("features.tsv", "names.tsv", "sprite.png"):
        assert f'"{name}"' in config


def test_page_of_one_run(runs):
    text, _ = report(runs / "scratch")
    shown = Page(text)
    records = [json.loads(line) for line in (runs / "scratch" / "metrics.jsonl").read_text().splitlines()]
    assert f"last: {charts.number(records[-1]['loss'])}" in shown.text
    result = json.loads((runs / "scratch" / "result.json").read_text())
    assert f"{100 * result['evaluation']['top_1']:.2f}%" in shown.text
    assert f"{result['encoder_parameters']:,}" in shown.text
    for title in ("Loss", "Accuracy on training batches", "Learning rate", "Images per second", "Nearest neighbors",
                  "Waiting for data, share of the time", "Map of 24 images", "Confusion matrix", "Calibration",
                  "Classes, worst first", "Parameters and cost", "What training sees"):  # fmt: skip
        assert title in shown.text, title
    assert "chance 10%" in shown.text
    assert "finished after 3 steps" in shown.text
    assert "PCA of the encoder's output" in shown.text
    assert "WarmupCosine.base_learning_rate" in shown.text
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text


def test_page_of_a_pretraining_draws_chance(runs):
    shown = Page(report(runs / "pretrain")[0])
    record = json.loads((runs / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"chance {record['chance_loss']:.2f}" in shown.text
    for title in ("Contrastive loss", "Linear probe while training", "Alignment", "Uniformity"):
        assert title in shown.text, title


@pytest.mark.slow
def test_whole_evaluation_is_preferred(runs, tmp_path):
    run = shutil.copytree(runs / "scratch", tmp_path / "run")
    assert "Measured here on a sample of 24 images" in Page(report(run)[0]).text
    assert simclr("--mode=eval", f"--workdir={run}").code == 0
    evaluated = json.loads((run / "eval.json").read_text())
    shown = Page(report(run)[0])
    assert f"All {evaluated['examples']} images" in shown.text
    assert "Measured here on a sample" not in shown.text
    error = evaluated["calibration"]["expected_calibration_error"]
    assert f"Expected calibration error {100 * error:.2f}%" in shown.text


@pytest.mark.slow
def test_runs_are_compared(runs):
    text, out = report(f"{runs}/pretrain,{runs}/scratch")
    assert f"{runs}/pretrain/comparison.html" in out
    shown = Page(text)
    differing = shown.text.split("Different settings")[1].split("settings, in common")[0]
    assert "train.make_stage @Pretrain @Supervised" in differing
    assert "ResNet.width" not in differing
    assert re.search(r"last: [\d.]+ \(pretrain\), [\d.]+ \(scratch\)", shown.text)


@pytest.mark.slow
def test_a_folder_of_runs(runs):
    text, out = report(runs)
    assert f"{runs}/report.html" in out
    assert "2 runs" in Page(text).text


def test_output_flag_and_dry_run_leave_the_runs_alone(runs, tmp_path):
    before = sorted(path.name for path in (runs / "scratch").iterdir())
    wanted = tmp_path / "page.html"
    outcome = simclr("--mode=report", f"--workdir={runs}/scratch", f"--output={wanted}", "--dry_run")
    assert outcome.code == 0, outcome.err
    assert str(wanted) in outcome.out
    assert not wanted.exists()
    assert sorted(path.name for path in (runs / "scratch").iterdir()) == before


@pytest.mark.slow
def test_without_labels_and_with_wild_names(unlabelled):
    text, _ = report(unlabelled)
    shown = Page(text)
    assert "<b onload=x>&" in shown.text + " ".join(value for _, _, value in shown.attributes)
    assert "Map of 20 images" in shown.text
    for absent in ("Confusion matrix", "Calibration", "Linear probe"):
        assert absent not in shown.text, absent


def test_a_run_that_is_still_going(runs, tmp_path):
    run = shutil.copytree(runs / "pretrain", tmp_path / "run")
    (run / "result.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": null}\n{"step": 4, "lo')
    shown = Page(report(run)[0])
    assert "not finished: 4 of 3 steps recorded" in shown.text
    assert re.search(r"the last \d+s ago", shown.text)


def test_a_run_before_its_first_checkpoint(runs, tmp_path):
    run = shutil.copytree(runs / "pretrain", tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    for name in ("result.json", "metrics.jsonl", "throughput.jsonl"):
        (run / name).unlink()
    shown = Page(report(run)[0])
    assert "started; nothing recorded yet" in shown.text
    assert "There is no checkpoint yet" in shown.text


def test_data_that_is_elsewhere_costs_only_its_sections(unlabelled, tmp_path):
    run = shutil.copytree(unlabelled, tmp_path / "run")
    path = run / "architecture.json"
    path.write_text(path.read_text().replace("/photos", "/gone"))
    shown = Page(report(run)[0])
    assert "No images to look at:" in shown.text
    assert "Loss" in shown.text
    assert "Map of" not in shown.text


def rewritten(run, folder, **changes):
    """A copy of a run whose `architecture.json` says something else."""
    run = shutil.copytree(run, folder)
    path = run / "architecture.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return run


def test_labels_that_no_longer_mean_the_same_are_not_used(runs, tmp_path):
    names = json.loads((runs / "scratch" / "architecture.json").read_text())["class_names"]
    run = rewritten(runs / "scratch", tmp_path / "run", class_names=["aardvark", *names[:-1]])
    shown = Page(report(run)[0])
    assert "are no longer those that the run was trained on" in shown.text
    assert "Map of 24 images" in shown.text
    assert "Measured here on a sample" not in shown.text


def test_images_of_a_converted_network_are_not_made_up(runs, tmp_path):
    run = rewritten(runs / "scratch", tmp_path / "run", data={"image_size": 16})
    shown = Page(report(run)[0])
    assert "does not say what images it was trained on" in shown.text
    for absent in ("Map of", "Measured here on a sample", "What training sees"):
        assert absent not in shown.text, absent


@pytest.mark.parametrize("setting", ["max_images=1", "num_neighbors=0", "map='mds'", "batch_size=0"])
def test_settings_that_make_no_sense(setting, runs):
    outcome = simclr("--mode=report", f"--workdir={runs}", f"--gin_param=report.{setting}")
    assert outcome.code == 1
    assert f"report.{setting.split('=')[0]} is {setting.split('=')[1]}" in outcome.err


def test_neighbours_are_the_most_similar():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(30, 5)).astype(np.float32)
    found, similarity = nearest(features, [4, 17], 6)
    for query, row, values in zip([4, 17], found, similarity):
        cosine = [float(a @ features[query] / np.linalg.norm(a) / np.linalg.norm(features[query])) for a in features]
        expected = sorted((i for i in range(30) if i != query), key=lambda i: -cosine[i])[:6]
        assert list(row) == expected
        np.testing.assert_allclose(values, [cosine[i] for i in expected], rtol=1e-5)


def test_principal_components_against_eigenvectors():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 100
    found = principal_components(features, 2)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    expected = (features - features.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.var(0, ddof=1), values[::-1][:2])
    np.testing.assert_array_equal(found, principal_components(features.copy(), 2))
    assert principal_components(features[:2], 4).shape == (2, 4)


def test_map_is_drawn_with_what_is_installed():
    rng = np.random.default_rng(3)
    centers = np.repeat(np.eye(3, 12) * 20, 15, axis=0)
    points, how = flat(centers + rng.normal(size=centers.shape), "auto")
    assert points.shape == (45, 2)
    if importlib.util.find_spec("sklearn"):
        assert how.startswith("t-SNE")
    else:
        assert how.startswith("PCA")
        assert "scikit-learn" in how
    groups = points.reshape(3, 15, 2)
    spread = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    apart = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i in range(3) for j in range(i))
    assert apart > spread


def test_a_map_that_needs_a_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs umap-learn, which is not installed; pip install umap-learn"):
        check_map("umap")
    assert flat(np.eye(9), "auto")[1].startswith("PCA")


def test_samples_are_drawn_by_lot_and_read_right():
    source = open_source("embedded:cifar10_mini", "test")
    sample = subset.sample(source, 300)
    assert sample.num_examples == 300
    rows = [list(source.example_ids).index(name) for name in sample.example_ids]
    assert len(set(rows)) == 300 and rows == sorted(rows)
    counts = np.bincount(sample.labels, minlength=10)
    assert counts.min() > 10, counts  # Every tenth image is of one class; even steps would miss some.
    np.testing.assert_array_equal(sample.resident().images[7], source.resident().images[rows[7]])
    assert subset.sample(source, 10**6).num_examples == source.num_examples


def test_queries_take_classes_in_turn():
    labels = np.array([2, 2, 2, 0, 0, 1, -1])
    assert choose_queries(labels, 4) == [3, 5, 0, 4]
    assert len(choose_queries(labels, 50)) == 6
    assert choose_queries(np.full(10, -1), 3) == [0, 4, 9]


def test_runs_beyond_the_colors_have_dashes():
    ten, more = (charts.legend([str(i) for i in range(count)]) for count in (charts.COLORS, charts.COLORS + 1))
    assert "dasharray" not in ten and more.count("dasharray") == 1
    lines = [Series(str(i), np.arange(2), np.arange(2.0), color=i) for i in (0, charts.COLORS)]
    assert charts.lines(lines, label="l").count("dasharray") == 1


def test_lines_go_through_their_points():
    series = Series("a", np.array([0, 1, 2, 3]), np.array([1.0, np.nan, 3.0, 2.0]))
    chart = charts.lines([series], label="l", levels=[Level("chance", 2.0)], y_range=(1.0, 3.0))
    left, right, top, bottom = 46, charts.WIDTH - 10, 10, charts.HEIGHT - 24
    assert f'<circle cx="{left:.1f}" cy="{bottom:.1f}"' in chart  # A point before a gap stands alone.
    third = left + (right - left) * 2 / 3
    middle = (top + bottom) / 2
    assert f'points="{third:.1f},{top:.1f} {right:.1f},{middle:.1f}"' in chart
    assert f'y1="{middle:.1f}" y2="{middle:.1f}" class="level"' in chart


def test_many_points_are_averaged():
    x, y = np.arange(1000), np.sin(np.arange(1000))
    thin_x, mean, low, high = charts.thinned(x, y, buckets=10)
    for i in range(10):
        part = y[i * 100 : (i + 1) * 100]
        assert (thin_x[i], mean[i], low[i], high[i]) == (
            i * 100 + 49.5, pytest.approx(part.mean()), part.min(), part.max()
        )  # fmt: skip
    assert np.isnan(charts.thinned(x, np.full(1000, np.nan), buckets=10)[1]).all()


def test_confusion_matrix_shows_every_count():
    matrix = np.array([[5, 1], [0, 7]])
    shown = Page(page.document("t", charts.confusion(matrix, ["cat", "a<b"], label="l")))
    assert "cat taken for a<b: 1 (17%)" in shown.text
    assert "a<b taken for a<b: 7 (100%)" in shown.text


def test_what_cannot_be_a_run(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        find(f"{tmp_path}/none")
    with pytest.raises(UserError, match="is not a run's folder and has none in it"):
        find(str(tmp_path))
    with pytest.raises(UserError, match="is not a run's folder and has none in it"):
        find(f"{tmp_path},")
    (tmp_path / "architecture.json").write_text("{}")
    assert find(str(tmp_path)) == [str(tmp_path)]
    assert find(f"{tmp_path},{tmp_path}/") == [str(tmp_path)]
    with pytest.raises(UserError, match="cannot be understood"):
        read(str(tmp_path), "x")


def test_broken_json_of_a_run_is_named(runs, tmp_path):
    run = shutil.copytree(runs / "scratch", tmp_path / "run")
    (run / "result.json").write_text('{"top')
    with pytest.raises(UserError, match=r"result\.json is not JSON"):
        read(str(run), "run")


def test_classes_of_an_evaluation_without_a_network():
    evaluation = {"top_1": 0.5, "examples": 4, "per_class": {"x": 0.5, "y": None}}
    run = SimpleNamespace(evaluation=None, checkpoint=None, result={"evaluation": evaluation})
    text = Page(page.document("t", sections.classification(None, run, ["x", "y"]))).text
    assert "x – 50.0%" in text
    assert "y – no images" in text
