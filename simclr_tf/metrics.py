"""How good a classifier is: accuracies, calibration, confusion."""

from __future__ import annotations

import numpy as np

from simclr_tf.errors import UserError

CALIBRATION_BINS = 15


def classification(labels: np.ndarray, logits: np.ndarray, class_names: list[str]) -> dict:
    """Measures accuracy.

    Args:
      labels: [N] int; -1 means unlabelled and is left out.
      logits: [N, classes], or any scores; the highest wins.
      class_names: [classes].

    Returns:
      `examples`, `top_1`, `top_5` (in [0, 1]; top_5 only with more than five classes) and `per_class`, class name ->
      top-1 accuracy (None for a class without examples).

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
    report["per_class"] = {
        # ImageNet has two classes "crane".
        name if class_names.count(name) == 1 else f"{name} ({i})": float(np.mean(rank[labels == i] == 0))
        if np.any(labels == i)
        else None
        for i, name in enumerate(class_names)
    }
    return report


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
