"""Our networks, loss and LARS against numbers of the published implementation."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from simclr_tf.commands.convert import published
from simclr_tf.core.tf import tf
from simclr_tf.losses.nt_xent import nt_xent
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars

pytestmark = pytest.mark.skipif(not reference.cases(), reason=f"no reference cases in {reference.FOLDER}")


class Case:
    """A network filled with the reference's weights."""

    def __init__(self, path, precision: str):
        self.settings, self.arrays = reference.load(path)
        s = self.settings
        layers = sum(name.endswith("dense/kernel") and "head_contrastive" in name for name in s["variables"])
        stem = "cifar" if s["cifar_stem"] else "imagenet"
        self.network = Network(
            make_encoder=lambda **kwargs: ResNet(s["depth"], s["width"], s["sk_ratio"], stem=stem, **kwargs),
            make_head=lambda **kwargs: ProjectionHead(num_layers=layers, **kwargs),
            num_classes=s["num_classes"],
            classifier_layer=1,
            image_size=s["image_size"],
            precision=precision,
        )
        self.named = {
            **published.encoder_variables(self.network.encoder),
            **published.head_variables(self.network.head),
            **published.classifier_variables(self.network.classifier),
        }
        assert {name: list(v.shape) for name, v in self.named.items()} == s["variables"]
        for name, variable in self.named.items():
            variable.assign(reference.value(name, variable.shape))
        self.images = tf.cast(reference.images(s["seed"], 2 * s["batch"], s["image_size"]), precision)

    def inference(self) -> dict[str, float]:
        """Relative errors of every output in inference mode."""

        @tf.function
        def outputs(images):
            named = self.network.outputs(images, training=False)
            return {**named, "logits_from_head_layer_1": self.network.classifier(named["head_layer_1"])}

        actual = outputs(self.images)
        errors = {}
        for name, expected in self.arrays.items():
            kind, _, name = name.partition("/")
            if kind != "eval":
                continue
            pooled = name.endswith("_mean")
            value = actual[name[: -len("_mean")] if pooled else name]
            errors[name] = reference.relative(tf.reduce_mean(value, [1, 2]) if pooled else value, expected)
        return errors


@pytest.fixture(scope="module", params=reference.cases(), ids=lambda path: path.stem)
def double(request) -> Case:
    return Case(request.param, "float64")


@pytest.mark.parametrize("path", reference.cases(), ids=lambda path: path.stem)
def test_outputs_in_single_precision(path):
    errors = Case(path, "float32").inference()
    assert len(errors) >= 9
    assert max(errors.values()) < 1e-5, errors


def test_outputs_in_double_precision(double):
    errors = double.inference()
    assert max(errors.values()) < 1e-7, errors


def test_training_in_double_precision(double):
    """Loss, per-variable gradients, moving averages, and two LARS steps."""
    settings, arrays, network, named = double.settings, double.arrays, double.network, double.named
    if "train/names" not in arrays:
        pytest.skip("this case is for evaluation only")
    variables = [named[name] for name in arrays["train/names"]]
    assert {id(v) for v in variables} == {
        id(v) for part in (network.encoder, network.head) for v in part.trainable_variables
    }
    optimizer = Lars(momentum=0.9, weight_decay=1e-4)
    optimizer.build(variables, network.undecayed_variables())

    def forward():
        projection = network.outputs(double.images, training=True)["projection"]
        contrast = nt_xent(*tf.split(projection, 2), temperature=settings["temperature"])
        return projection, tf.reduce_mean(contrast.loss)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            projection, loss = forward()
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients, tf.constant(settings["learning_rate"], tf.float64), tf.constant(0))
        return projection, loss, gradients

    def heads(tensors):
        return np.stack([np.pad(np.ravel(t)[:8], (0, max(0, 8 - np.size(t)))) for t in tensors])

    before = [v.numpy() for v in variables]
    projection, loss, gradients = step()
    assert reference.relative(projection, arrays["train/projection"]) < 1e-7
    assert reference.relative(loss, arrays["train/loss_step_0"]) < 1e-7
    assert reference.relative([np.linalg.norm(g) for g in gradients], arrays["train/grad_norm"]) < 1e-7
    for name, actual, norm, expected, total in zip(
        arrays["train/names"],
        heads(gradients),
        [np.linalg.norm(g) for g in gradients],
        np.nan_to_num(arrays["train/grad_head"]),
        arrays["train/grad_norm"],
    ):
        assert abs(norm - total) < 1e-7 * total + 1e-12, name
        assert np.linalg.norm(actual - expected) < 1e-7 * total + 1e-12, name
    for key, expected in arrays.items():
        if key.startswith("train/after_step_1/"):
            # The published decay is a float32 constant, so its averages agree to float32's digits of 0.1.
            assert reference.relative(named[key[len("train/after_step_1/") :]], expected) < 1e-7, key
    for count in (1, 2):
        moved = [np.linalg.norm(v.numpy() - start) for v, start in zip(variables, before)]
        assert reference.relative(moved, arrays[f"train/delta_norm_step_{count}"]) < 1e-7
        expected = np.nan_to_num(arrays[f"train/weight_head_step_{count}"])
        assert reference.relative(heads(v.numpy() for v in variables), expected) < 1e-7
        loss = step()[1] if count == 1 else forward()[1]
        assert reference.relative(loss, arrays[f"train/loss_step_{count}"]) < 1e-7
