"""Weighted k-nearest-neighbors classification, which measures a frozen encoder without training (Wu et al. 2018)."""

from __future__ import annotations

import numpy as np

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError

# Similarities between queries and bank that are held at a time: half a gigabyte, and twice that for their order.
_SIMILARITIES = 2**27


def normalize(features: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, D] float32 with rows of length 1; rows of zeros stay zeros."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    *,
    num_classes: int,
    num_neighbors: int = 200,
    temperature: float = 0.1,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Scores classes by the votes of the most similar training images.

    Args:
      train_features: [N, D] of any norm.
      train_labels: [N] int in [0, num_classes).
      features: [M, D] of any norm.
      num_classes: number of classes.
      num_neighbors: number of neighbors that vote, at least 1; all N vote if there are fewer.
      temperature: divisor of the cosine similarity in a vote's weight exp(similarity / temperature), above 0. The
        nearest neighbor's vote has the weight 1.
      own: [M] int, the index of an image itself among the N, where it does not vote; -1 if it is not among them.

    Returns:
      [M, num_classes] float64 scores; the class with the highest score wins.

    Raises:
      UserError: for a setting out of range, or a bank that holds nothing but the image to classify.
    """
    checks.whole("knn.num_neighbors", num_neighbors, hint=", such as 200")
    checks.number("knn.temperature", temperature, above=0, hint=", such as 0.1")
    bank, queries = normalize(train_features), normalize(features)
    own = np.full(len(queries), -1) if own is None else np.asarray(own)
    if len(bank) == 1 and np.any(own >= 0):
        raise UserError("k-NN has one training image, and it is the image to classify; use a larger Data.train_split")
    labels, k = np.asarray(train_labels), min(num_neighbors, len(bank))
    scores = np.zeros((len(queries), num_classes))
    rows = max(1, _SIMILARITIES // len(bank))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        themselves = np.flatnonzero(own[start : start + rows] >= 0)
        similarity[themselves, own[start + themselves]] = -np.inf  # If all N vote, this vote has weight 0.
        nearest = np.argpartition(similarity, len(bank) - k, axis=1)[:, len(bank) - k :]
        votes = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # Relative to the nearest neighbor's, so that exp() cannot overflow at low temperatures.
        weights = np.exp((votes - votes.max(axis=1, keepdims=True)) / temperature)
        np.add.at(scores, (np.arange(start, start + len(weights))[:, None], labels[nearest]), weights)
    return scores
