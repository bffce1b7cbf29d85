"""Update rules against NumPy and Keras, schedules against the published values, variable groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.models.heads import Classifier, ProjectionHead
from simclr_tf.models.network import undecayed_variables
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim import optimizers
from simclr_tf.optim.schedules import WarmupCosine, train_steps


def run(optimizer, steps=4, learning_rate=0.3, keras_optimizer=None):
    """Steps two variables, the second excluded, by fixed gradients; returns their values."""
    rng = np.random.default_rng(0)
    variables = [tf.Variable(rng.normal(size=(3, 2))), tf.Variable(rng.normal(size=(4,)))]
    gradients = [[rng.normal(size=v.shape) for v in variables] for _ in range(steps)]
    if keras_optimizer is not None:
        for row in gradients:
            keras_optimizer.apply_gradients(zip(map(tf.constant, row), variables))
        return [v.numpy() for v in variables]
    start = [v.numpy() for v in variables]
    optimizer.build(variables, {id(variables[1])})
    apply = tf.function(lambda step, *row: optimizer.apply(row, tf.constant(learning_rate, tf.float64), step))
    for step, row in enumerate(gradients):
        apply(tf.constant(step, tf.int64), *map(tf.constant, row))
    return [v.numpy() for v in variables], start, gradients


def test_lars_against_numpy():
    (kernel, bias), start, gradients = run(optimizers.Lars(momentum=0.8, weight_decay=0.01, trust_coefficient=0.002))
    w, b, vw, vb = start[0], start[1], 0.0, 0.0
    for gw, gb in gradients:
        update = gw + 0.01 * w
        vw = 0.8 * vw + 0.3 * 0.002 * np.linalg.norm(w) / np.linalg.norm(update) * update
        vb = 0.8 * vb + 0.3 * gb
        w, b = w - vw, b - vb
    np.testing.assert_allclose(kernel, w, rtol=1e-12)
    np.testing.assert_allclose(bias, b, rtol=1e-12)


def test_lars_keeps_the_ratio_without_decay_and_survives_zero_norms():
    (kernel, _), start, gradients = run(optimizers.Lars(momentum=0.0, weight_decay=0.0), steps=1)
    gradient = gradients[0][0]
    expected = start[0] - 0.3 * 0.001 * np.linalg.norm(start[0]) / np.linalg.norm(gradient) * gradient
    np.testing.assert_allclose(kernel, expected, rtol=1e-12)
    zero = tf.constant(0.0, tf.float64)
    one = tf.constant(1.0, tf.float64)
    for norms in ((zero, one), (one, zero), (zero, zero)):
        assert float(optimizers.trust_ratio(*norms, trust_coefficient=0.001)) == 1.0


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_keras_sgd(nesterov):
    ours, _, _ = run(optimizers.Sgd(momentum=0.9, nesterov=nesterov))
    theirs = run(None, keras_optimizer=keras.optimizers.SGD(0.3, momentum=0.9, nesterov=nesterov))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_sgd_decays_only_what_is_not_excluded():
    (kernel, bias), start, gradients = run(optimizers.Sgd(momentum=0.0, weight_decay=0.1), steps=1)
    np.testing.assert_allclose(kernel, start[0] - 0.3 * (gradients[0][0] + 0.1 * start[0]), rtol=1e-12)
    np.testing.assert_allclose(bias, start[1] - 0.3 * gradients[0][1], rtol=1e-12)


def test_adamw_is_keras_adamw():
    ours, _, _ = run(optimizers.AdamW(weight_decay=0.05))
    reference_optimizer = keras.optimizers.AdamW(0.3, weight_decay=0.05, epsilon=1e-8)
    theirs = run(None, keras_optimizer=reference_optimizer)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    plain = run(None, keras_optimizer=keras.optimizers.Adam(0.3, epsilon=1e-8))
    np.testing.assert_allclose(ours[1], plain[1], rtol=1e-4)


def test_lamb_against_numpy():
    pytest.importorskip("tensorflow_addons")
    optimizer = optimizers.Lamb(weight_decay=0.01)
    (kernel, bias), start, gradients = run(optimizer, steps=1)
    direction = [gradients[0][i] / (np.abs(gradients[0][i]) + 1e-6) for i in range(2)]
    update = direction[0] + 0.01 * start[0]
    ratio = np.linalg.norm(start[0]) / np.linalg.norm(update)
    np.testing.assert_allclose(kernel, start[0] - 0.3 * ratio * update, rtol=1e-5)
    np.testing.assert_allclose(bias, start[1] - 0.3 * direction[1], rtol=1e-5)
    # All that a step reads and writes: an exported step lists them.
    kept = {id(variable) for variable in optimizer.variables}
    for part in (optimizer.decayed, optimizer.plain):
        assert {id(v) for v in [*part.variables(), *part._hyper.values()] if isinstance(v, tf.Variable)} <= kept
    assert len(kept) >= 6  # Two moments of each variable, and both counters.


def test_lamb_without_addons_says_what_it_needs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    with pytest.raises(UserError, match="the LAMB optimizer needs tensorflow-addons"):
        optimizers.Lamb()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.Lars(momentum=2), "Lars.momentum is 2"),
        (lambda: optimizers.Sgd(weight_decay=-1), "Sgd.weight_decay is -1"),
        (lambda: optimizers.AdamW(epsilon="x"), "AdamW.epsilon is 'x'"),
        (lambda: WarmupCosine(-1.0), "base_learning_rate is -1"),
        (lambda: WarmupCosine(math.nan), "base_learning_rate is nan"),
        (lambda: WarmupCosine(1.0, scaling="cubic"), "none, linear, sqrt"),
        (lambda: WarmupCosine(1.0, warmup_epochs=1, warmup_fraction=0.1), "both"),
        (lambda: WarmupCosine(1.0, warmup_fraction=2), "from 0 to 1"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_groups_choose_by_layer():
    encoder = ResNet(18, 0.125, se_ratio=0.25, stem="cifar")
    head = ProjectionHead(encoder.feature_dim, num_layers=2)
    classifier = Classifier(3)
    classifier(head(encoder(tf.zeros([2, 32, 32, 3]))["final_avg_pool"])["head_layer_1"])
    excluded = undecayed_variables([encoder, head, classifier])
    kept = [v for part in (encoder, head, classifier) for v in part.trainable_variables if id(v) not in excluded]
    # A stem, two in each of eight blocks, four shortcuts, two for SE in each block; two dense layers.
    assert len(kept) == 1 + 2 * 8 + 4 + 2 * 8 + 2
    every_kernel = [v for part in (encoder, head) for v in part.trainable_variables if v.shape.rank > 1]
    assert {id(v) for v in kept} == {id(v) for v in every_kernel}


def published_schedules() -> list[dict]:
    path = reference.FOLDER / "ops.npz"
    if not path.exists():
        return []
    with np.load(path) as ops:
        return json.loads(str(ops["schedules"]))


@pytest.mark.parametrize("case", published_schedules(), ids=lambda case: f"{case['scaling']}-{case['batch_size']}")
def test_schedule_is_the_published_one(case):
    steps = train_steps(case["num_examples"], case["train_epochs"], case["batch_size"])
    assert steps == case["train_steps"]
    schedule = WarmupCosine(case["base_learning_rate"], scaling=case["scaling"], warmup_epochs=case["warmup_epochs"])
    schedule.configure(
        num_examples=case["num_examples"],
        epochs=case["train_epochs"],
        global_batch_size=case["batch_size"],
        num_steps=steps,
    )
    rates = [float(schedule(tf.constant(step, tf.int64))) for step in case["steps"]]
    np.testing.assert_allclose(rates, case["learning_rate"], rtol=1e-5, atol=1e-6 * schedule.peak)


def test_warmup_fraction_is_a_share_of_the_epochs():
    by_epochs, by_fraction = WarmupCosine(1.0, warmup_epochs=5), WarmupCosine(1.0, warmup_fraction=0.05)
    for schedule in (by_epochs, by_fraction):
        schedule.configure(num_examples=1000, epochs=100, global_batch_size=10, num_steps=10001)
    assert by_epochs.warmup_steps == by_fraction.warmup_steps == 500
