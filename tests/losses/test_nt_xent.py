"""NT-Xent and cross-entropy against the published numbers and a slow oracle."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import reference

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.losses import nt_xent_tiled
from simclr_tf.losses.classification import cross_entropy, top_1
from simclr_tf.losses.nt_xent import Contrast, NtXentKeys, nt_xent, nt_xent_chance


def oracle(view_1: np.ndarray, view_2: np.ndarray, temperature: float) -> dict[str, np.ndarray]:
    """NT-Xent one pair at a time, by the paper's formula."""
    z = np.concatenate([view_1, view_2])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n = len(view_1)
    loss, hits, entropy = np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        scores = {j: math.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j != i}
        loss[i % n] -= math.log(scores[positive] / sum(scores.values()))
        other = range(n, 2 * n) if i < n else range(n)
        hits[i % n] += 0.5 * (max(other, key=lambda j: scores[j]) == positive)
        total = sum(scores[j] if j != i else 0 for j in other)
        entropy[i % n] -= 0.5 * sum(scores[j] / total * math.log(scores[j] / total) for j in other)
    first = z[:n]
    potentials = [math.exp(-2 * np.sum((first[i] - first[j]) ** 2)) for i in range(n) for j in range(n) if i != j]
    return {
        "loss": loss,
        "accuracy": hits,
        "entropy": entropy,
        "alignment": np.sum((z[:n] - z[n:]) ** 2, axis=1),
        "uniformity": np.full(n, math.log(np.mean(potentials))),
    }


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_nt_xent_against_the_formula(temperature):
    rng = np.random.default_rng(0)
    anchor = rng.normal(size=(9, 5))
    views = anchor + 0.7 * rng.normal(size=(9, 5)), anchor + 0.7 * rng.normal(size=(9, 5))
    actual = nt_xent(*map(tf.constant, views), temperature=temperature)
    for name, expected in oracle(*views, temperature).items():
        np.testing.assert_allclose(getattr(actual, name), expected, rtol=1e-10, err_msg=name)


def reference_cases() -> list[str]:
    path = reference.FOLDER / "ops.npz"
    if not path.exists():
        return []
    with np.load(path) as ops:
        return sorted({name.rsplit("/", 1)[0] for name in ops.files if name.startswith("nt_xent/")})


@pytest.mark.parametrize("case", reference_cases())
def test_nt_xent_is_the_published_one(case):
    with np.load(reference.FOLDER / "ops.npz") as ops:
        expected = {name: ops[f"{case}/{name}"] for name in ("projection", "loss", "gradient", "accuracy")}
    temperature = float(re.search(r"_t([\d.]+)$", case).group(1))
    projection = tf.constant(expected["projection"])
    with tf.GradientTape() as tape:
        tape.watch(projection)
        contrast = nt_xent(*tf.split(projection, 2), temperature=temperature)
        loss = tf.reduce_mean(contrast.loss)
    assert reference.relative(loss, expected["loss"]) < 1e-5
    assert reference.relative(tape.gradient(loss, projection), expected["gradient"]) < 1e-5
    # The published accuracy is that of the first view's predictions; ours averages both directions.
    first = oracle(*np.split(np.float64(expected["projection"]), 2), temperature)["accuracy"].mean()
    assert abs(float(tf.reduce_mean(contrast.accuracy)) - first) < 1e-6


def test_collapse_shows():
    views = tf.ones([8, 4], tf.float64)
    contrast = nt_xent(views, views, temperature=0.1)
    np.testing.assert_allclose(contrast.loss, nt_xent_chance(8), rtol=1e-12)
    np.testing.assert_allclose(contrast.uniformity, 0, atol=1e-12)
    np.testing.assert_allclose(contrast.entropy, math.log(8), rtol=1e-12)


def test_nt_xent_depends_on_directions_only():
    rng = np.random.default_rng(1)
    views = [tf.constant(rng.normal(size=(6, 4))) for _ in range(2)]
    scaled = [view * 7.0 for view in views]
    np.testing.assert_allclose(
        nt_xent(*views, temperature=0.3).loss, nt_xent(*scaled, temperature=0.3).loss, rtol=1e-12
    )


def test_cross_entropy_leaves_unlabelled_examples_out():
    logits = tf.constant([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0]], tf.float64)
    loss = cross_entropy(tf.constant([0, -1, 2]), logits)
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, [-math.log(probabilities[0, 0]), 0.0, math.log(3)], rtol=1e-12)
    np.testing.assert_allclose(top_1(tf.constant([0, -1, 2]), logits), [1, 0, 0])


def random_keys(rng, count: int, queue: int, filled: int) -> NtXentKeys:
    parts = (tf.math.l2_normalize(tf.constant(rng.normal(size=(rows, 6))), axis=1) for rows in (count, count, queue))
    return NtXentKeys(*parts, tf.constant(filled))


def value_and_gradient(views, **settings):
    with tf.GradientTape() as tape:
        tape.watch(views)
        contrast = nt_xent(*views, **settings)
        loss = tf.reduce_sum(contrast.loss * tf.linspace(tf.constant(0.5, tf.float64), 1.5, views[0].shape[0]))
    return contrast, tape.gradient(loss, views)


@pytest.mark.parametrize("tile", [7, 64, None])
@pytest.mark.parametrize("queue", [None, (200, 0), (200, 77), (200, 200)])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_tiles_agree_with_the_matrix(monkeypatch, tile, queue, temperature):
    """At sizes that tiles divide and do not divide, with queues that are empty, partly filled and full."""
    rng = np.random.default_rng(0)
    if tile is not None:
        monkeypatch.setattr(nt_xent_tiled, "tile_size", lambda *_: tile)
    anchor = rng.normal(size=(70, 6))
    views = [tf.constant(anchor + 0.3 * rng.normal(size=anchor.shape)) for _ in range(2)]
    keys = random_keys(rng, 70, *queue) if queue is not None else None
    plain, tiled = (
        value_and_gradient(views, temperature=temperature, keys=keys, kind=kind) for kind in ("plain", "tiled")
    )
    for name, expected, actual in zip(Contrast._fields, plain[0], tiled[0]):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12, err_msg=name)
    for expected, actual in zip(plain[1], tiled[1]):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_tiles_break_ties_as_the_matrix_does():
    views = [tf.ones([70, 4], tf.float64)] * 2
    for name, value in nt_xent(*views, temperature=0.1, kind="tiled")._asdict().items():
        expected = getattr(nt_xent(*views, temperature=0.1, kind="plain"), name)
        np.testing.assert_allclose(value, expected, atol=1e-10, err_msg=name)


def test_no_matrix_is_made_above_a_size(monkeypatch):
    """Under "auto" a large batch is tiled: no product has the size of the matrix."""
    made, matmul = [], tf.matmul

    def watched(*args, **kwargs):
        made.append(matmul(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tf, "matmul", watched)

    def largest(images: int) -> int:
        made.clear()

        @tf.function(input_signature=[tf.TensorSpec([images, 8])] * 2)
        def run(view_1, view_2):
            with tf.GradientTape() as tape:
                tape.watch([view_1, view_2])
                contrast = nt_xent(view_1, view_2, temperature=0.1)
            return tape.gradient(contrast.loss, [view_1, view_2]), contrast

        run.get_concrete_function()
        return max(product.shape.num_elements() for product in made)

    assert largest(512) == 512**2
    assert largest(16384) <= 2**23 // 4


def test_tiles_under_xla():
    rng = np.random.default_rng(0)
    views = [tf.constant(rng.normal(size=(70, 6))) for _ in range(2)]
    keys = random_keys(rng, 70, 200, 77)
    expected = value_and_gradient(views, temperature=0.5, keys=keys, kind="tiled")
    actual = tf.function(
        lambda *views: value_and_gradient(list(views), temperature=0.5, keys=keys, kind="tiled"), jit_compile=True
    )(*views)
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(actual)):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


def test_an_unknown_way_is_refused():
    with pytest.raises(UserError, match="nt_xent is 'fast'"):
        nt_xent(tf.ones([2, 3]), tf.ones([2, 3]), temperature=0.1, kind="fast")
