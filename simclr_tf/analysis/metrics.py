"""How good a classifier is: accuracies, calibration, confusion."""

from __future__ import annotations

import numpy as np

from simclr_tf.core.errors import UserError

CALIBRATION_BINS = 15


def classification(labels: np.ndarray, logits: np.ndarray, class_names: list[str]) -> dict:
    """Measures accuracy.

    Args:
      labels: [N] int; -1 means unlabelled and is left out.
      logits: [N, classes], or any scores; the highest wins.
      class_names: [classes].

    Returns:
      `examples`, `top_1`, `top_5` (in [0, 1]; top_5 only with more than five classes), `balanced_accuracy`, the mean
      of the classes' top-1 accuracies, over `balanced_classes` that have examples, and `per_class` and
      `per_class_examples`, class name -> top-1 accuracy (None for a class without examples) and number of examples.

    Raises:
      UserError: when nothing is labelled, or the logits are no numbers.
    """
    labels, logits = _labelled(labels, logits)
    # The label's rank among the logits; of equal logits the first counts as the higher, as in argmax.
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
    report = {"examples": int(len(labels)), "top_1": float(np.mean(rank == 0))}
    if logits.shape[1] > 5:
        report["top_5"] = float(np.mean(rank < 5))
    # ImageNet has two classes "crane".
    names = [name if class_names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(class_names)]
    counts = np.bincount(labels, minlength=len(names)).tolist()
    hits = np.bincount(labels[rank == 0], minlength=len(names)).tolist()
    accuracies = [hit / count if count else None for hit, count in zip(hits, counts)]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    report["balanced_accuracy"], report["balanced_classes"] = float(np.mean(known)), len(known)
    report["per_class"], report["per_class_examples"] = dict(zip(names, accuracies)), dict(zip(names, counts))
    return report


def told(report: dict) -> str:
    """Says what `classification` reports in a few words; the balanced accuracy only of classes of unequal sizes.

    >>> told({"top_1": 0.75, "balanced_accuracy": 0.5, "balanced_classes": 2, "per_class_examples": {"a": 9, "b": 3}})
    'top-1 75.00%, balanced 50.00% (mean of 2 classes of 3 to 9 images)'
    """
    said = f"top-1 {100 * report['top_1']:.2f}%"
    sizes = [count for count in report.get("per_class_examples", {}).values() if count]
    if len(set(sizes)) < 2:
        return said
    of = f"mean of {report['balanced_classes']} classes of {min(sizes)} to {max(sizes)} images"
    return f"{said}, balanced {100 * report['balanced_accuracy']:.2f}% ({of})"


def calibration(labels: np.ndarray, logits: np.ndarray, *, bins: int = CALIBRATION_BINS) -> dict:
    """Measures how far a classifier's confidence can be believed (Guo et al. 2017).

    Args:
      labels: [N] int; -1 means unlabelled and is left out.
      logits: [N, classes].
      bins: of equal width over confidence, the highest class probability.

    Returns:
      `expected_calibration_error` in [0, 1]: mean over the examples of the distance between their bin's accuracy and
      mean confidence; and `bins`, one for each that is not empty: `examples`, `confidence`, `accuracy`.
    """
    labels, logits = _labelled(labels, logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(shifted).sum(axis=1)
    correct = logits.argmax(axis=1) == labels
    # Upper edges belong to their bin, so that a confidence of 1 falls in the last one.
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
    """Returns [classes, classes] int64: how many examples of a class (row) were taken for which (column)."""
    labels, logits = _labelled(labels, logits)
    matrix = np.zeros([logits.shape[1]] * 2, np.int64)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix


def _labelled(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = labels >= 0
    if not np.any(known):
        raise UserError("none of the images to evaluate on has a label; choose a labelled split")
    spoilt = np.isnan(logits[known]).any(axis=1).sum()
    if spoilt:
        raise UserError(
            f"the network says nothing of {spoilt} of {known.sum()} images (its outputs are not numbers): its weights "
            "are spoilt; use an earlier checkpoint, or train again with a lower learning rate"
        )
    return labels[known], np.asarray(logits[known], np.float64)
