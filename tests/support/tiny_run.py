"""A pretraining run on noise, small enough to be taken many times."""

from __future__ import annotations

import numpy as np
import small_networks  # noqa: F401 (registers depth 29)

from simclr_tf.core.tf import keras, tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.sources.source import Source
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.training.loop import Loop

BATCH, SIZE = 8, 16
TINY = {"depth": 10, "width": 0.0625, "stem": "cifar"}


class Noise:
    """Stands for `Data`: all that a stage asks of it but the images themselves."""

    image_size, max_bad_images, train_split, eval_split = SIZE, 0, "train", "test"

    def __init__(self, class_names=("a", "b", "c")):
        self._source = Source()
        self._source.name, self._source.num_examples = "noise", 64
        self._source.class_names, self._source.may_fail = class_names, False

    def open(self, split, data_dir=None):
        return self._source

    def open_labelled(self, data_dir=None):
        return self._source

    def describe(self):
        return {}


def batches(replicas: int, steps: int, first_step: int = 0):
    """The same global batches, cut for so many replicas."""
    rng = np.random.default_rng(0)
    rows = BATCH * steps
    tensors = {
        "view_1": rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8),
        "view_2": rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(-1, 3, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int64),
    }
    left = {name: value[first_step * BATCH :] for name, value in tensors.items()}
    return lambda context: tf.data.Dataset.from_tensor_slices({"images": left}).batch(
        BATCH // replicas, drop_remainder=True
    )


class TinyRun:
    """A stage, an optimizer and a loop; `run` takes steps."""

    def __init__(
        self, replicas: int = 1, *, precision: str = "float64", jit_compile: bool = False, encoder=None, **settings
    ):
        self.replicas = replicas
        one = replicas == 1
        self.strategy = make_strategy("one_device") if one else make_strategy("mirrored", virtual_devices=replicas)
        keras.utils.set_random_seed(0)
        encoder_settings = {**TINY, **(encoder or {})}
        with self.strategy.scope():
            self.stage = Pretrain(
                data=Noise(),
                augment=Augment(),
                make_encoder=lambda **kw: ResNet(**encoder_settings, **kw),
                make_head=lambda **kw: ProjectionHead(num_layers=2, output_dim=8, **kw),
                temperature=0.2,
                precision=precision,
                **settings,
            )
            self.optimizer = Lars(weight_decay=1e-4)
            self.optimizer.build(self.stage.trained_variables, self.stage.network.undecayed_variables())
            self.loop = Loop(
                self.stage,
                self.optimizer,
                lambda step: tf.constant(0.05),
                self.strategy,
                seed=3,
                jit_compile=jit_compile,
                steps_per_call=2,
            )

    def items(self) -> dict:
        """What a checkpoint of this run holds."""
        return {**self.stage.checkpoint_items(), "optimizer": self.optimizer, "step": self.loop.step}

    def run(self, last_step: int, steps: int | None = None) -> list[dict[str, float]]:
        """Goes on to `last_step`; returns its records. `steps` is the whole run's length."""
        first = int(self.loop.step.numpy())
        data = batches(self.replicas, steps or last_step, first)
        iterator = iter(self.strategy.distribute_datasets_from_function(data))
        return [record for chunk in self.loop.run(iterator, last_step) for record in chunk.records]

    def values(self) -> list[np.ndarray]:
        """All variables that a checkpoint holds, less the optimizer's."""
        return [v.numpy() for part in self.stage.checkpoint_items().values() for v in part.variables]


def assert_same_records(expected, actual, tolerance: float) -> None:
    """Compares two runs' records, relative to their size where that is above 1."""
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual):
        assert one.keys() == other.keys()
        for name in one:
            assert abs(one[name] - other[name]) <= tolerance * max(1, abs(one[name])), name
