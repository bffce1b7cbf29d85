"""The k-nearest-neighbours classifier, against a loop over images and neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simclr_tf.analysis import knn
from simclr_tf.core.errors import UserError


def slow(bank, labels, queries, classes: int, k: int, temperature: float) -> np.ndarray:
    scores = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        similarities = [float(query @ one) / (np.linalg.norm(query) * np.linalg.norm(one)) for one in bank]
        for i in sorted(range(len(bank)), key=lambda i: -similarities[i])[:k]:
            scores[row, labels[i]] += math.exp((similarities[i] - max(similarities)) / temperature)
    return scores


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 0.5), (200, 0.1), (7, 0.001)])
@pytest.mark.parametrize("at_a_time", [2**27, 90, 1])
def test_votes_are_those_of_a_loop(k, temperature, at_a_time, monkeypatch):
    monkeypatch.setattr(knn, "_SIMILARITIES", at_a_time)
    rng = np.random.default_rng(k)
    bank, queries = rng.normal(size=(30, 5)), rng.normal(size=(11, 5))
    labels = rng.integers(0, 4, 30)
    scores = knn.predict(bank, labels, queries, num_classes=4, num_neighbors=k, temperature=temperature)
    np.testing.assert_allclose(scores, slow(bank, labels, queries, 4, k, temperature), rtol=2e-6 / temperature)


def test_rows_of_zeros_stay():
    np.testing.assert_array_equal(knn.normalize(np.array([[3.0, 4.0], [0.0, 0.0]])), np.float32([[0.6, 0.8], [0, 0]]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"num_neighbors": 0}, "knn.num_neighbors is 0"), ({"temperature": 0.0}, "knn.temperature is 0.0")],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(UserError, match=said):
        knn.predict(np.eye(2), np.arange(2), np.eye(2), num_classes=2, **settings)
