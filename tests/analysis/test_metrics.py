"""Accuracies, calibration and confusion against slow counting."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_tf.analysis import metrics
from simclr_tf.core.errors import UserError


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 7, 400)
    logits = rng.normal(size=(400, 8)) * 2
    logits[np.arange(400), np.maximum(labels, 0)] += 1.5
    return labels, logits


def test_classes_of_one_name_are_kept_apart():
    found = metrics.classification(np.array([0, 1, 2]), np.eye(3)[[0, 0, 2]], ["crane", "crane", "gull"])["per_class"]
    assert found == {"crane (0)": 1.0, "crane (1)": 0.0, "gull": 1.0}


def test_accuracy_counts_labelled_examples(scored):
    labels, logits = scored
    names = [f"class {i}" for i in range(8)]
    report = metrics.classification(labels, logits, names)
    known = [i for i in range(400) if labels[i] >= 0]
    order = [list(np.argsort(-logits[i])) for i in range(400)]
    assert report["examples"] == len(known)
    assert report["top_1"] == pytest.approx(np.mean([order[i][0] == labels[i] for i in known]))
    assert report["top_5"] == pytest.approx(np.mean([labels[i] in order[i][:5] for i in known]))
    threes = [order[i][0] == 3 for i in known if labels[i] == 3]
    assert report["per_class"]["class 3"] == pytest.approx(np.mean(threes))
    assert report["per_class"]["class 7"] is None
    recalls = [np.mean([order[i][0] == c for i in known if labels[i] == c]) for c in range(7)]
    assert report["balanced_accuracy"] == pytest.approx(np.mean(recalls)) and report["balanced_classes"] == 7
    assert report["per_class_examples"] == {name: int(np.sum(labels == i)) for i, name in enumerate(names)}


def test_balanced_accuracy_is_told_of_unequal_classes():
    def told(labels):
        return metrics.told(metrics.classification(np.array(labels), np.eye(3)[[0] * len(labels)], ["a", "b", "c"]))

    assert told([0, 0, 0, 1, -1]) == "top-1 75.00%, balanced 50.00% (mean of 2 classes of 1 to 3 images)"
    assert told([0, 1, 2]) == "top-1 33.33%"
    assert metrics.told({"top_1": 0.5, "per_class": {"a": 0.5}}) == "top-1 50.00%"  # Of an earlier version.


def test_what_is_no_number_has_no_accuracy(scored):
    labels, logits = scored
    spoilt = logits.copy()
    spoilt[np.flatnonzero(labels >= 0)[3], 2] = np.nan
    with pytest.raises(UserError, match="outputs for 1 of .* are not numbers"):
        metrics.classification(labels, spoilt, ["x"] * 8)


def test_equal_scores_count_once():
    report = metrics.classification(np.array([0, 1, 2]), np.zeros((3, 3)), ["a", "b", "c"])
    assert report["top_1"] == pytest.approx(1 / 3)
    assert "top_5" not in report


def test_calibration_by_hand(scored):
    labels, logits = scored
    report = metrics.calibration(labels, logits, bins=10)
    bins = [[] for _ in range(10)]
    for label, row in zip(labels, logits):
        if label >= 0:
            p = np.exp(row) / np.exp(row).sum()
            bins[min(9, max(0, int(np.ceil(p.max() * 10)) - 1))].append((p.max(), p.argmax() == label))
    total = sum(map(len, bins))
    expected = sum(
        len(rows) / total * abs(np.mean([c for _, c in rows]) - np.mean([p for p, _ in rows])) for rows in bins if rows
    )
    assert report["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)
    assert sum(row["examples"] for row in report["bins"]) == total


def test_certain_and_right_is_calibrated():
    logits = np.full((5, 3), -1e4)
    logits[np.arange(5), [0, 1, 2, 0, 1]] = 1e4
    report = metrics.calibration(np.array([0, 1, 2, 0, 1]), logits)
    assert report == {
        "expected_calibration_error": 0.0,
        "bins": [{"examples": 5, "confidence": 1.0, "accuracy": 1.0}],
    }


def test_confusion_matrix_has_true_classes_in_rows():
    logits = np.eye(3)[[1, 1, 2, 0]]
    matrix = metrics.confusion_matrix(np.array([0, 1, 2, -1]), logits)
    np.testing.assert_array_equal(matrix, [[0, 1, 0], [0, 1, 0], [0, 0, 1]])


def test_nothing_labelled_is_said():
    with pytest.raises(UserError, match="choose a labeled split"):
        metrics.classification(np.array([-1, -1]), np.zeros((2, 3)), ["a", "b", "c"])
