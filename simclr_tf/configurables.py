"""The only list of what gin can bind.

Everything is registered under the name that gin files use; called from Python, none of it looks at gin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gin

from simclr_tf import config, verbs
from simclr_tf.convert.verb import run_convert
from simclr_tf.data.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.embed import run_embed
from simclr_tf.export.verb import run_export
from simclr_tf.memory import Memory
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.neighbors import run_neighbors
from simclr_tf.optim.optimizers import AdamW, Lamb, Lars, Sgd
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.preview import run_preview
from simclr_tf.report.run import run_report
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.supervised import Supervised
from simclr_tf.train import Training

# The name that gin files use -> what it stands for.
CONFIGURABLES = {
    "Data": Data,
    "Augment": Augment,
    "ResNet": ResNet,
    "ProjectionHead": ProjectionHead,
    "Pretrain": Pretrain,
    "Memory": Memory,
    "Supervised": Supervised,
    "Distill": Distill,
    "Lars": Lars,
    "Sgd": Sgd,
    "AdamW": AdamW,
    "Lamb": Lamb,
    "WarmupCosine": WarmupCosine,
    "train": Training,
    "evaluate": verbs.run_eval,
    "knn": verbs.run_knn,
    "convert": run_convert,
    "export": run_export,
    "embed": run_embed,
    "neighbors": run_neighbors,
    "preview": run_preview,
    "report": run_report,
}

config.register(CONFIGURABLES)


def configured(name: str) -> Callable[..., Any]:
    """Returns a configurable with its gin bindings applied."""
    return gin.get_configurable(f"{config.MODULE}.{name}")
