"""Weighted k-nearest-neighbours: what a frozen encoder knows, without training anything (Wu et al. 2018)."""

from __future__ import annotations

import numpy as np

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError

# Of queries with the bank at a time: half a gigabyte, and twice that for their order.
_SIMILARITIES = 2**27


def normalize(features: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, D] float32 rows of length 1 (rows of zeros stay)."""
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
    """Scores classes by the most similar training images.

    Args:
      train_features: [N, D], any norm.
      train_labels: [N] int in [0, num_classes).
      features: [M, D].
      num_classes: how many classes there are.
      num_neighbors: how many neighbours vote; all of them where there are fewer.
      temperature: a neighbour's vote weighs exp(cosine similarity / temperature), relative to the nearest one's.
      own: [M] int, where an image itself is among the N, which is no neighbour of its own; -1 where it is not.

    Returns:
      [M, num_classes] float64 scores; the class with the highest wins.

    Raises:
      UserError: for a setting that makes no sense.
    """
    checks.whole("knn.num_neighbors", num_neighbors, hint=", such as 200")
    checks.number("knn.temperature", temperature, above=0, hint=", such as 0.1")
    bank, queries = normalize(train_features), normalize(features)
    own = np.full(len(queries), -1) if own is None else np.asarray(own)
    if len(bank) == 1 and np.any(own >= 0):
        raise UserError("k-NN has one training image, which is to be classified itself; use a larger Data.train_split")
    labels, k = np.asarray(train_labels), min(num_neighbors, len(bank))
    scores = np.zeros((len(queries), num_classes))
    rows = max(1, _SIMILARITIES // len(bank))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        themselves = np.flatnonzero(own[start : start + rows] >= 0)
        similarity[themselves, own[start + themselves]] = -np.inf  # A vote of weight 0, where all others vote.
        nearest = np.argpartition(similarity, len(bank) - k, axis=1)[:, len(bank) - k :]
        votes = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # Less than the nearest one's, as large numbers have no exponential.
        weights = np.exp((votes - votes.max(axis=1, keepdims=True)) / temperature)
        np.add.at(scores, (np.arange(start, start + len(weights))[:, None], labels[nearest]), weights)
    return scores
