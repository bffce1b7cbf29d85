"""A gradient accumulated over parts of a batch is the whole batch's."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_run import TINY, assert_same_records

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.losses.classification import cross_entropy, top_1
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars
from simclr_tf.stages.stage import Stage
from simclr_tf.training.loop import Loop

BATCH, SIZE, STEPS = 8, 8, 2


class Classify(Stage):
    """Cross-entropy with batch norm in inference mode, so that examples do not see each other."""

    def __init__(self, training: bool = False):
        super().__init__(name="classify")
        self.network = Network(
            make_encoder=lambda **kw: ResNet(**TINY, **kw), num_classes=3, image_size=SIZE, precision="float64"
        )
        self._training = training

    @property
    def trained_variables(self):
        return [v for part in self.network.parts().values() for v in part.trainable_variables]

    def train_batch(self, batch, seeds):
        del seeds
        images, labels = batch["images"]["image"], batch["images"]["label"]
        logits = self.network.logits(images, training=self._training)
        return {"cross_entropy": cross_entropy(labels, logits)}, {"accuracy": top_1(labels, logits)}

    def penalties(self):
        return {"decay": 0.1 * tf.nn.l2_loss(self.network.classifier.dense.kernel)}


def train(replicas: int = 1, *, accumulation_steps: int = 1, jit_compile: bool = False, training: bool = False):
    """Returns the records and all variables."""
    rng = np.random.default_rng(0)
    rows = BATCH * STEPS
    tensors = {
        "image": rng.random((rows, SIZE, SIZE, 3)),
        "label": rng.integers(-1, 3, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int64),
    }
    strategy = make_strategy("one_device") if replicas == 1 else make_strategy("mirrored", virtual_devices=replicas)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        stage = Classify(training)
        optimizer = Lars()
        optimizer.build(stage.trained_variables, stage.network.undecayed_variables())
        loop = Loop(
            stage,
            optimizer,
            lambda step: tf.constant(0.5),
            strategy,
            seed=3,
            jit_compile=jit_compile,
            steps_per_call=STEPS,
            accumulation_steps=accumulation_steps,
        )
    data = tf.data.Dataset.from_tensor_slices({"images": tensors}).batch(BATCH // replicas, drop_remainder=True)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: data))
    records = [record for chunk in loop.run(iterator, STEPS) for record in chunk.records]
    return records, [v.numpy() for v in stage.network.variables]


@pytest.fixture(scope="module")
def whole():
    return train()


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation_steps": 4},
        pytest.param({"accumulation_steps": 2, "jit_compile": True}, marks=pytest.mark.slow),
        {"replicas": 2, "accumulation_steps": 2},
    ],
)
def test_parts_make_the_whole(whole, settings):
    records, variables = train(**settings)
    assert_same_records(whole[0], records, 1e-12)
    for expected, actual in zip(whole[1], variables):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_batch_norm_in_training_sees_parts(whole):
    records, _ = train(accumulation_steps=2, training=True)
    at_once, _ = train(training=True)
    assert abs(records[0]["loss"] - at_once[0]["loss"]) > 1e-9


def test_losses_over_a_batch_refuse():
    class Contrast(Classify):
        name, separable, instead_of_accumulation = "contrast", False, ", and do something else"

    with pytest.raises(UserError, match="accumulation_steps is 2, but the contrast loss .* do something else"):
        Loop(Contrast(), Lars(), lambda step: 0.1, tf.distribute.get_strategy(), seed=0, accumulation_steps=2)
