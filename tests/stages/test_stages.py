"""Supervised training and distillation: what is frozen, what is minimized, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from PIL import Image
from tiny_run import BATCH, SIZE, TINY, Noise

from simclr_tf.core import randomness
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.class_names import numbered_classes
from simclr_tf.data.dataset import Data
from simclr_tf.losses import classification as losses
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars
from simclr_tf.stages import distill
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.supervised import Supervised
from simclr_tf.training.loop import Loop

AUGMENT = {"color_strength": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}


def encoder(**kwargs):
    return ResNet(**TINY, **kwargs)


def head(**kwargs):
    return ProjectionHead(num_layers=3, output_dim=8, **kwargs)


def stream(seed: int, rows: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int64),
    }


def supervised(**settings) -> Supervised:
    keras.utils.set_random_seed(0)
    defaults = {"head_layer": 1, "make_head": head, "precision": "float64"}
    return Supervised("finetune", Noise(), Augment(**AUGMENT), encoder, **{**defaults, **settings})


def steps(stage, batch, count: int = 2, rate=lambda step: tf.constant(0.5)) -> list[dict[str, float]]:
    optimizer = Lars()
    optimizer.build(stage.trained_variables, stage.network.undecayed_variables())
    loop = Loop(stage, optimizer, rate, tf.distribute.get_strategy(), seed=3, steps_per_call=count)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    return [record for chunk in loop.run(iterator, count) for record in chunk.records]


def values(modules) -> list[np.ndarray]:
    return [variable.numpy() for module in modules for variable in module.variables]


@pytest.mark.parametrize("freeze_up_to, changing", [("block_group2", 2), ("head_layer_1", 0)])
def test_frozen_parts_keep_their_bits_and_the_rest_moves(freeze_up_to, changing):
    stage = supervised(freeze_up_to=freeze_up_to)
    sections = list(stage.network.encoder.sections().values())
    frozen = [layer for layers in sections[: len(sections) - changing] for layer in layers]
    free = [layer for layers in sections[len(sections) - changing :] for layer in layers]
    # Whoever trains a head layer leaves it free, unless it is named.
    (free if changing else frozen).append(stage.network.head.projections[0])
    free.append(stage.network.classifier)
    before = values(frozen), values(free)
    assert {id(v) for v in stage.frozen_variables} == {id(v) for layer in frozen for v in layer.variables}
    steps(stage, {"labelled": stream(0)})
    for old, new in zip(before[0], values(frozen)):
        np.testing.assert_array_equal(old, new)
    unchanged = [np.array_equal(old, new) for old, new in zip(before[1], values(free))]
    assert not any(unchanged)


def test_later_head_layers_are_thrown_away():
    stage = supervised(head_layer=2)
    assert len(stage.network.head.projections) == 2
    assert stage.network.describe()["head"] == {"num_layers": 3, "output_dim": 8, "used_layers": 2}
    assert stage.network.head.projections[1].norm.beta is not None  # A hidden layer, not the projection.
    assert supervised(head_layer=0).network.head is None


def test_zero_initialized_logits_are_equal_at_first():
    stage = supervised(zero_init_classifier=True)
    record = steps(stage, {"labelled": stream(0)}, 1)[0]
    assert record["cross_entropy"] == pytest.approx(np.log(3), rel=1e-12)


def test_weight_decay_is_that_of_the_classifier():
    stage = supervised(weight_decay=0.25)
    kernel = stage.network.classifier.dense.kernel.numpy()
    assert float(stage.penalties()["weight_decay"]) == pytest.approx(0.125 * np.sum(kernel**2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"head_layer": 4}, "no layer 4, only 3 layer"),
        ({"head_layer": -1}, "Supervised.head_layer is -1"),
        ({"head_layer": 1, "make_head": None}, "there is no projection head"),
        (
            {"freeze_up_to": "block_group5"},
            "no output 'block_group5' to freeze up to; choose None or one of initial_max_pool",
        ),
        ({"weight_decay": -1}, "Supervised.weight_decay is -1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        supervised(**settings)


def test_labels_are_needed(monkeypatch, tmp_path):
    for i in range(3):
        Image.fromarray(np.full([20, 20, 3], i, np.uint8)).save(tmp_path / f"{i}.png")
    data = Data(f"folder:{tmp_path}", "all", "all")
    with pytest.raises(UserError, match="has no labels"):
        Supervised("finetune", data, Augment(**AUGMENT), encoder)
    with pytest.raises(UserError, match="has no labels"):
        student(monkeypatch, data, alpha=0.5)


# --- Distillation ----------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_distillation_loss_by_its_formula(temperature):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 6, 5))
    with tf.GradientTape() as tape:
        sides = [tf.Variable(teacher), tf.Variable(student)]
        loss = losses.distillation(*sides, temperature=temperature)
        total = tf.reduce_sum(loss)
    wanted, given = softmax(teacher / temperature), softmax(student / temperature)
    np.testing.assert_allclose(loss, -(temperature**2) * np.sum(wanted * np.log(given), axis=1), rtol=1e-12)
    gradients = tape.gradient(total, sides)
    assert gradients[0] is None
    np.testing.assert_allclose(gradients[1], temperature * (given - wanted), atol=1e-12)


def test_divergence_by_its_formula():
    teacher, student = np.random.default_rng(0).normal(size=(2, 6, 5))
    wanted, given = softmax(teacher), softmax(student)
    expected = np.sum(wanted * np.log(wanted / given), axis=1)
    np.testing.assert_allclose(losses.divergence(tf.constant(teacher), tf.constant(student)), expected, rtol=1e-12)
    np.testing.assert_array_equal(losses.divergence(tf.constant(teacher), tf.constant(teacher)), np.zeros(6))
    # Classes that are as good as impossible for one side, as with logits of a hundred.
    certain = tf.constant([[200.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.divergence(certain, tf.zeros([1, 3])), [np.log(3)], rtol=1e-6)


class FakeTeacher:
    """Sees what the student sees and answers with the mean colors."""

    num_classes, image_size, class_names, variables = 3, SIZE, ["a", "b", "c"], []
    takes_any_size = True

    def logits(self, images):
        return 10 * tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])

    def describe(self):
        return {"kind": "fake"}


def student(monkeypatch, data=None, **settings) -> Distill:
    monkeypatch.setattr(distill, "load_teacher", lambda path, precision: FakeTeacher())
    keras.utils.set_random_seed(0)
    return Distill(data or Noise(), Augment(**AUGMENT), encoder, "teacher", precision="float64", **settings)


def test_mixed_loss_by_its_formula(monkeypatch):
    stage = student(monkeypatch, temperature=2.0, alpha=0.7, labelled_batch_size=4)
    assert {name: stream.batch_size for name, stream in stage.train_inputs().items()} == {
        "unlabelled": None,
        "labelled": 4,
    }
    batch = {"unlabelled": stream(0), "labelled": stream(1, 4)}
    record = steps(stage, batch, 1)[0]

    stage = student(monkeypatch)  # The same first weights.
    seen = [
        Augment(**AUGMENT)(
            part["image"], randomness.example_seed(3, randomness.stream(f"device/{name}"), 0, part["index"])
        )
        for name, part in batch.items()
    ]
    logits = stage.network.logits(tf.concat(seen, axis=0), training=True).numpy()
    wanted = softmax(FakeTeacher().logits(seen[0]).numpy().astype(np.float64) / 2)
    distillation = -(2**2) * np.mean(np.sum(wanted * np.log(softmax(logits[:BATCH] / 2)), axis=1))
    labels = batch["labelled"]["label"]
    cross_entropy = -np.mean(np.log(softmax(logits[BATCH:]))[np.arange(4), labels])
    assert record["distillation"] == pytest.approx(0.7 * distillation, rel=1e-6)
    assert record["cross_entropy"] == pytest.approx(0.3 * cross_entropy, rel=1e-6)
    assert record["loss"] == pytest.approx(0.7 * distillation + 0.3 * cross_entropy, rel=1e-6)
    agreement = np.mean(wanted.argmax(1) == logits[:BATCH].argmax(1))
    assert record["teacher_agreement"] == pytest.approx(agreement)
    sides = [softmax(side.astype(np.float64)) for side in (FakeTeacher().logits(seen[0]).numpy(), logits[:BATCH])]
    divergence = np.mean(np.sum(sides[0] * np.log(sides[0] / sides[1]), axis=1))
    assert record["teacher_divergence"] == pytest.approx(divergence, rel=1e-6)


@pytest.mark.slow
def test_self_distillation_stays_stable_at_the_rate_of_the_paper(monkeypatch):
    """Temperature 0.1, rate 6.4 after warm-up: without T^2 batch norm and the classifier see 100 times the gradient."""
    rows, warmup = 32, 100
    images = (255 * reference.images(0, rows, SIZE)).astype(np.uint8)
    keras.utils.set_random_seed(1)
    teacher = Network(make_encoder=encoder, num_classes=3, image_size=SIZE)
    seen = teacher.logits(tf.constant(images) / 255, training=False)
    # Spread by the images, as a trained network's logits are.
    center = tf.reduce_mean(seen, axis=0)
    scale = 0.5 / tf.math.reduce_std(seen - center)
    monkeypatch.setattr(
        FakeTeacher, "logits", lambda self, images: scale * (teacher.logits(images, training=False) - center)
    )
    stage = student(monkeypatch, temperature=0.1)
    batch = {"unlabelled": {**stream(0, rows), "image": images}}
    records = steps(stage, batch, warmup + 100, lambda step: 6.4 * tf.minimum(tf.cast(step, tf.float32) / warmup, 1))
    assert records[-1]["learning_rate"] == pytest.approx(6.4)
    assert max(record["distillation"] for record in records[warmup:]) < records[0]["distillation"]


def test_unlabelled_images_alone_need_no_labels(monkeypatch):
    stage = student(monkeypatch, Noise(None))
    assert list(stage.train_inputs()) == ["unlabelled"]
    assert stage.eval_input() is None
    assert stage.describe()["class_names"] == ["a", "b", "c"]
    batch = stream(0)
    batch["label"][:] = -1
    record = steps(stage, {"unlabelled": batch}, 1)[0]
    assert "accuracy" not in record and record["loss"] == record["distillation"] > 0


def test_the_probe_decays_through_the_loss(monkeypatch):
    stage = Pretrain(Noise(), Augment(), encoder, head, probe_weight_decay=0.5)
    kernel = stage.network.classifier.dense.kernel
    kernel.assign(tf.ones_like(kernel))
    assert float(stage.penalties()["weight_decay"]) == pytest.approx(0.25 * kernel.shape.num_elements())
    assert Pretrain(Noise(), Augment(), encoder, head).penalties() == {}
    with pytest.raises(UserError, match="Pretrain.probe_weight_decay is -1"):
        Pretrain(Noise(), Augment(), encoder, head, probe_weight_decay=-1)


def test_the_probe_looks_at_labelled_images_alone():
    data = Noise()
    stage = Pretrain(data, Augment(**AUGMENT), encoder, head, precision="float64")
    batch = {"view_1": stream(0)["image"], "view_2": stream(1)["image"], "label": np.array([2, 1] + [-1] * 6, np.int32)}

    def probed(part):
        images = {name: tf.constant(value[part]) for name, value in batch.items()}
        parts, metrics = stage.train_batch({"images": images}, {"images": tf.zeros([BATCH, 2], tf.int32)[part]})
        return tf.reduce_mean(parts["probe"]), tf.reduce_mean(metrics["probe_accuracy"])

    whole = probed(slice(None))
    data.open("train").partly_labelled = True
    np.testing.assert_allclose(probed(slice(None)), 4 * np.array(whole), rtol=1e-12)
    np.testing.assert_array_equal(probed(slice(2, None)), [0, 0])  # None has a label.


def test_the_labelled_subset_of_distillation_is_told(monkeypatch):
    data = Data(image_size=SIZE, labels_per_class=2)
    monkeypatch.setattr(FakeTeacher, "num_classes", 10)
    monkeypatch.setattr(FakeTeacher, "class_names", [])
    named = student(monkeypatch, data, alpha=0.5).files()
    assert [len(text.split()) for text in named.values()] == [20]
    assert student(monkeypatch, data).files() == {}


def test_accuracies_of_distillation_are_those_of_labelled_images(monkeypatch):
    data = Noise()
    stage = student(monkeypatch, data)
    batch = {**stream(0), "label": np.array([2, 1] + [-1] * 6, np.int32)}

    def measured():
        images = {name: tf.constant(value) for name, value in batch.items()}
        _, found = stage.train_batch({"unlabelled": images}, {"unlabelled": tf.zeros([BATCH, 2], tf.int32)})
        return [float(tf.reduce_mean(found[name])) for name in ("accuracy", "teacher_accuracy")]

    diluted = measured()
    data.open("train").partly_labelled = True
    assert measured() == pytest.approx([4 * value for value in diluted])
    assert any(diluted)


def test_a_teacher_names_classes_that_are_only_numbered(monkeypatch):
    assert student(monkeypatch, Noise(numbered_classes(3))).describe()["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alpha": 0.0}, "Distill.alpha is 0.0"),
        ({"alpha": 1.5}, "Distill.alpha is 1.5"),
        ({"temperature": 0}, "Distill.temperature is 0"),
        ({"data": Noise(("a", "b"))}, "the teacher has 3 classes, but noise has 2"),
        ({"data": Noise(("a", "b", "d"))}, "it says 'c' where the data says 'd'"),
    ],
)
def test_impossible_distillation_is_refused(monkeypatch, settings, message):
    with pytest.raises(UserError, match=message):
        student(monkeypatch, **settings)
