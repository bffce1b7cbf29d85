"""The only list of what gin can bind.

Each class or function is registered under the name that gin files use. Called from Python, it ignores gin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gin

from simclr_tf.commands import evaluate
from simclr_tf.commands.convert.convert import run_convert
from simclr_tf.commands.embed import run_embed
from simclr_tf.commands.export.export import run_export
from simclr_tf.commands.neighbors import run_neighbors
from simclr_tf.commands.preview import run_preview
from simclr_tf.commands.report.report import run_report
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import AdamW, Lamb, Lars, Sgd
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.settings import gin_config
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.memory import Memory
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.supervised import Supervised
from simclr_tf.training.train import Training

# Name in gin files -> class or function.
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
    "evaluate": evaluate.run_eval,
    "knn": evaluate.run_knn,
    "convert": run_convert,
    "export": run_export,
    "embed": run_embed,
    "neighbors": run_neighbors,
    "preview": run_preview,
    "report": run_report,
}

gin_config.register(CONFIGURABLES)


def configured(name: str) -> Callable[..., Any]:
    """Returns a configurable with its gin bindings applied."""
    return gin.get_configurable(f"{gin_config.MODULE}.{name}")
