"""Metrics of a classifier: accuracies, calibration, confusion."""

from __future__ import annotations

import numpy as np

from simclr_tf.core.errors import UserError

CALIBRATION_BINS = 15


def classification(labels: np.ndarray, logits: np.ndarray, class_names: list[str]) -> dict:
    """Measures accuracies.

    Args:
      labels: [N] int; unlabeled examples have -1 and are left out.
      logits: [N, classes] logits or other scores; the highest wins.
      class_names: names of all classes.

    Returns:
      A dictionary with
        `examples`: the number of labeled examples;
        `top_1` and, with more than five classes, `top_5`: accuracies in [0, 1];
        `balanced_accuracy`: the mean top-1 accuracy of the `balanced_classes` classes that have examples;
        `per_class`: class name -> top-1 accuracy, or None for a class without examples;
        `per_class_examples`: class name -> number of examples.

    Raises:
      UserError: if no example has a label, or some logits are not numbers.
    """
    labels, logits = _labelled(labels, logits)
    # The label's rank among the logits. Of equal logits the first ranks higher, as in argmax.
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
    report = {"examples": int(len(labels)), "top_1": float(np.mean(rank == 0))}
    if logits.shape[1] > 5:
        report["top_5"] = float(np.mean(rank < 5))
    # Names may repeat: ImageNet has two classes "crane".
    names = [name if class_names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(class_names)]
    counts = np.bincount(labels, minlength=len(names)).tolist()
    hits = np.bincount(labels[rank == 0], minlength=len(names)).tolist()
    accuracies = [hit / count if count else None for hit, count in zip(hits, counts)]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    report["balanced_accuracy"], report["balanced_classes"] = float(np.mean(known)), len(known)
    report["per_class"], report["per_class_examples"] = dict(zip(names, accuracies)), dict(zip(names, counts))
    return report


def told(report: dict) -> str:
    """Sums up a report of `classification` in a few words; balanced accuracy appears if class sizes are unequal.

    >>> told({"top_1": 0.75, "balanced_accuracy": 0.5, "balanced_classes": 2, "per_class_examples": {"a": 9, "b": 3}})
    'top-1 75.00%, balanced 50.00% (mean of 2 classes of 3 to 9 images)'
    """
    text = f"top-1 {100 * report['top_1']:.2f}%"
    sizes = [count for count in report.get("per_class_examples", {}).values() if count]
    if len(set(sizes)) < 2:
        return text
    classes = f"mean of {report['balanced_classes']} classes of {min(sizes)} to {max(sizes)} images"
    return f"{text}, balanced {100 * report['balanced_accuracy']:.2f}% ({classes})"


def calibration(labels: np.ndarray, logits: np.ndarray, *, bins: int = CALIBRATION_BINS) -> dict:
    """Measures how well a classifier's confidence predicts its accuracy (Guo et al. 2017).

    Args:
      labels: [N] int; unlabeled examples have -1 and are left out.
      logits: [N, classes].
      bins: number of bins of equal width over confidence, the highest class probability.

    Returns:
      A dictionary with
        `expected_calibration_error`: the mean over all examples of |accuracy - confidence| of their bin, in [0, 1];
        `bins`: `examples`, `confidence` and `accuracy` of each bin that is not empty.

    Raises:
      UserError: if no example has a label, or some logits are not numbers.
    """
    labels, logits = _labelled(labels, logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(shifted).sum(axis=1)
    correct = logits.argmax(axis=1) == labels
    # A bin includes its upper edge, so that a confidence of 1 falls into the last one.
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = [
        {
            "examples": int(np.sum(number == i)),
            "confidence": float(confidence[number == i].mean()),
            "accuracy": float(correct[number == i].mean()),
        }
        for i in range(bins)
        if np.any(number == i)
    ]
    error = sum(row["examples"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(labels)
    return {"expected_calibration_error": float(error), "bins": rows}


def confusion_matrix(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns [classes, classes] int64: the number of examples with each label (row) and prediction (column)."""
    labels, logits = _labelled(labels, logits)
    matrix = np.zeros([logits.shape[1]] * 2, np.int64)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix


def _labelled(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = labels >= 0
    if not np.any(known):
        raise UserError("none of the evaluation images has a label; choose a labeled split")
    bad = np.isnan(logits[known]).any(axis=1).sum()
    if bad:
        raise UserError(
            f"the network's outputs for {bad} of {known.sum()} images are not numbers, so its weights are useless; use "
            "an earlier checkpoint, or train again with a lower learning rate"
        )
    return labels[known], np.asarray(logits[known], np.float64)
