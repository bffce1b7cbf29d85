"""The stages after pretraining against numbers of the published implementation: two steps each, in float64.

The stages, the loop and the optimizers are those of a run. What they compute is looked at from outside: the loop's
records, what it hands to the optimizer, and what the classifier returns.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from tiny_run import Noise

from simclr_tf.commands.convert import published
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars, Sgd
from simclr_tf.stages import distill
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.supervised import Supervised
from simclr_tf.training.loop import Loop

TOLERANCE = 1e-8
# The published moving averages decay by a float32 constant: its digits of 0.1.
AVERAGES_TOLERANCE = 1e-7
UNTOUCHED = Augment(flip=False, jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0)

pytestmark = pytest.mark.skipif(not reference.stage_cases(), reason=f"no stage cases in {reference.FOLDER}")


class Told:
    """A teacher that says what the case says."""

    image_size, takes_any_size, class_names, variables = None, True, [], []

    def __init__(self, logits: np.ndarray):
        self.num_classes = logits.shape[1]
        self._logits = tf.constant(logits, tf.float64)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        return self._logits

    def describe(self) -> dict:
        return {}


def make_stage(case: dict, arrays: dict, monkeypatch):
    """The stage that a case is of, as a run would build it."""
    data = Noise([f"class {i}" for i in range(case["num_classes"])])
    data.image_size = case["image_size"]
    parts = {
        "data": data,
        "augment": UNTOUCHED,
        "make_encoder": lambda **kwargs: ResNet(
            case["depth"],
            case["width"],
            case["sk_ratio"],
            stem="cifar" if case["cifar_stem"] else "imagenet",
            **kwargs,
        ),
        "make_head": lambda **kwargs: ProjectionHead(num_layers=case["head_layers"], **kwargs),
        "head_layer": case["head_layer"],
        "weight_decay": case["weight_decay"],
        "precision": "float64",
    }
    if case["stage"] == "distill":
        monkeypatch.setattr(distill, "load_teacher", lambda path, precision: Told(arrays["teacher_logits"]))
        return Distill(teacher="told", temperature=case["temperature"], **parts)
    layer = case["head_layer"]
    frozen = f"head_layer_{layer}" if layer else "final_avg_pool"
    return Supervised(case["stage"], freeze_up_to=frozen if case["stage"] == "linear" else None, **parts)


def watched(kind: type, **settings):
    """An optimizer that keeps the gradients it is given."""

    class Watched(kind):
        def build(self, variables, excluded):
            super().build(variables, excluded)
            self.seen = {id(v): tf.Variable(tf.zeros_like(v), trainable=False) for v in variables}

        def apply(self, gradients, learning_rate, step):
            for seen, gradient in zip(self.seen.values(), gradients):
                seen.assign(gradient)
            super().apply(gradients, learning_rate, step)

    return Watched(**settings)


def watch_logits(classifier, shape) -> tf.Variable:
    """Returns a variable that follows what the classifier returns."""
    seen, call = tf.Variable(tf.zeros(shape, tf.float64), trainable=False), classifier.call

    def watched_call(features):
        logits = call(features)
        seen.assign(logits)
        return logits

    classifier.call = watched_call
    return seen


def named_variables(network) -> dict[str, tf.Variable]:
    """Published name -> variable."""
    head = published.head_variables(network.head) if network.head is not None else {}
    encoder = published.encoder_variables(network.encoder)
    return {**encoder, **head, **published.classifier_variables(network.classifier)}


def heads(tensors) -> np.ndarray:
    """The first eight numbers of each."""
    return np.stack([np.pad(np.ravel(t)[:8], (0, max(0, 8 - np.size(t)))) for t in tensors])


def norms(tensors) -> np.ndarray:
    return np.array([np.linalg.norm(t) for t in tensors])


@pytest.mark.parametrize("path", reference.stage_cases(), ids=lambda path: path.stem)
def test_a_stage_trains_as_published(path, monkeypatch):
    case, arrays = reference.load(path)
    stage = make_stage(case, arrays, monkeypatch)
    named = named_variables(stage.network)
    assert {name: list(variable.shape) for name, variable in named.items()} == case["variables"]
    for name, variable in named.items():
        variable.assign(reference.value(name, variable.shape))
    variables = [named[name] for name in arrays["train/names"]]
    assert {id(v) for v in variables} == {id(v) for v in stage.trained_variables}

    linear = case["stage"] == "linear"
    optimizer = watched(Sgd, nesterov=True) if linear else watched(Lars, weight_decay=case["weight_decay"])
    optimizer.build(stage.trained_variables, stage.network.undecayed_variables())
    rate = tf.constant(case["learning_rate"], tf.float64)
    loop = Loop(stage, optimizer, lambda step: rate, tf.distribute.get_strategy(), seed=0, steps_per_call=1)
    logits = watch_logits(stage.network.classifier, arrays["train/logits"].shape)
    batch = {
        "image": reference.images(case["seed"], case["batch"], case["image_size"]),
        "label": np.array(case["labels"], np.int32),
        "index": np.arange(case["batch"], dtype=np.int64),
    }
    iterator = iter(tf.data.Dataset.from_tensors({next(iter(stage.train_inputs())): batch}).repeat())
    start, frozen = [v.numpy() for v in variables], {id(v): v.numpy() for v in stage.frozen_variables}

    for step in range(3):
        (record,) = next(loop.run(iterator, step + 1)).records
        decay = record.get("weight_decay", 0.0)
        loss = record["distillation" if case["stage"] == "distill" else "cross_entropy"]
        assert reference.relative(loss, arrays[f"train/loss_step_{step}"]) < TOLERANCE
        assert reference.relative(decay, arrays[f"train/decay_step_{step}"]) < TOLERANCE
        assert record["loss"] == pytest.approx(loss + decay, rel=1e-12)
        if step == 0:
            assert reference.relative(logits, arrays["train/logits"]) < TOLERANCE
            check_gradients(arrays, [optimizer.seen[id(v)].numpy() for v in variables])
            averages = {name: v for name, v in arrays.items() if name.startswith("train/after_step_1/")}
            for name, expected in averages.items():
                actual = named[name[len("train/after_step_1/") :]]
                assert reference.relative(actual, expected) < AVERAGES_TOLERANCE, name
            assert bool(averages) != linear
        if step < 2:
            values = [v.numpy() for v in variables]
            moved = norms(value - before for value, before in zip(values, start))
            assert reference.relative(moved, arrays[f"train/delta_norm_step_{step + 1}"]) < TOLERANCE
            expected = np.nan_to_num(arrays[f"train/weight_head_step_{step + 1}"])
            assert reference.relative(heads(values), expected) < TOLERANCE
    assert all(np.array_equal(v, frozen[id(v)]) for v in stage.frozen_variables)


def check_gradients(arrays: dict, gradients: list[np.ndarray]) -> None:
    expected_norms, expected_heads = arrays["train/grad_norm"], np.nan_to_num(arrays["train/grad_head"])
    assert reference.relative(norms(gradients), expected_norms) < TOLERANCE
    for name, norm, head, total, expected in zip(
        arrays["train/names"], norms(gradients), heads(gradients), expected_norms, expected_heads
    ):
        assert abs(norm - total) < TOLERANCE * total + 1e-12, name
        assert np.linalg.norm(head - expected) < TOLERANCE * total + 1e-12, name
