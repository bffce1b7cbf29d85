"""A tiny run as if trained, and its exports."""

from __future__ import annotations

import os

import numpy as np
from tiny_run import TINY

from simclr_tf.commands.export.export import run_export
from simclr_tf.core.files import write_json
from simclr_tf.core.tf import tf
from simclr_tf.models.network import Network
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir import checkpoints, records

CLASSES = ["cat", "dog", "a\nlong name"]
ENCODER = {**TINY, "sk_ratio": 0.0, "se_ratio": 0.0}


def make_network(encoder=None, *, head=True, layer=1, classes=3, size=16) -> Network:
    network = Network.from_description(
        {
            "encoder": encoder or ENCODER,
            "head": {"num_layers": 2, "output_dim": 8} if head else None,
            "num_classes": classes,
            "classifier_layer": layer if head else 0,
            "image_size": size,
        }
    )
    rng = np.random.default_rng(0)
    for part in network.parts().values():
        for variable in part.variables:  # As if trained: nothing at its first value.
            spread = 0.2 if variable.shape.rank == 1 else 0.05
            variable.assign(variable + spread * np.abs(rng.standard_normal(variable.shape)))
    return network


def make_run(workdir, network: Network, step: int = 7) -> str:
    checkpoints.Checkpoints(str(workdir), network.parts(), keep=3).save(step)
    names = CLASSES if network.num_classes == len(CLASSES) else []
    description = {"stage": "finetune", "network": network.describe(), "class_names": names, "data": {"image_size": 16}}
    write_json(os.path.join(workdir, records.ARCHITECTURE), description)
    return str(workdir)


def export(workdir, output=None, **settings):
    return run_export(RunContext(str(workdir), tf.distribute.get_strategy(), output=output), **settings)


def images(count=4, height=16, width=16) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(count, height, width, 3)).astype(np.float32)
