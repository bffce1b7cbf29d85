"""The modes of the command line, a row each: what a mode does, which flags it takes, how it treats its workdir."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """How an operation treats its workdir, and whose recipe it reads."""

    TRAIN = "writes its own workdir and continues the run that is there"
    ASK = "examines the run in its workdir"
    MAKE = "creates its workdir once all went well, and needs no earlier run"
    SHOW = "shows a training mode's recipe without training"
    PLAN = "builds a training mode's run for machines elsewhere; see `simclr_tf.commands.plan`"
    COMPARE = "reads the runs in one or several workdirs and changes none"
    SEQUENCE = "calls other operations, one after the other"


class Operation(NamedTuple):
    """A row of the table of modes.

    Attributes:
      summary: One line for the help.
      kind: The way in which it treats its workdir.
      configurable: The gin name of what runs; empty for a sequence.
      takes: Optional flags among `ABOUT_OTHERS`.
      needs: Required flags among `ABOUT_OTHERS`.
    """

    summary: str
    kind: Kind
    configurable: str = ""
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def shows_recipe(self) -> bool:
        """Whether it reads a training mode's recipe without training."""
        return self.kind in (Kind.SHOW, Kind.PLAN)

    @property
    def leaves_workdir(self) -> bool:
        """Whether it writes nothing into its workdir until all went well."""
        return self.kind in (Kind.COMPARE, Kind.MAKE) or "output" in self.needs


# Flags that name other runs and files; an operation says which of them it takes or needs.
ABOUT_OTHERS = (
    *("init_from", "teacher", "source", "output", "query"),
    *("topology", "price", "search", "plan_env", "make_plan_env", "batches"),
)

OPERATIONS = {
    "pretrain": Operation("learn from images without labels", Kind.TRAIN, "train", ("init_from",)),
    "finetune": Operation("train --init_from further on a few labels", Kind.TRAIN, "train", needs=("init_from",)),
    "supervised": Operation("train from scratch on the same labels, for comparison", Kind.TRAIN, "train"),
    "distill": Operation(
        "train a student to imitate --teacher without labels", Kind.TRAIN, "train", ("init_from",), ("teacher",)
    ),
    "linear_eval": Operation(
        "train a linear classifier on the frozen encoder of --init_from", Kind.TRAIN, "train", ("init_from",)
    ),
    "knn": Operation("classify by nearest neighbors with the encoder in --workdir", Kind.ASK, "knn"),
    "eval": Operation("measure the classifier in --workdir on the whole evaluation split", Kind.ASK, "evaluate"),
    "convert": Operation(
        "turn the published checkpoint --source into a workdir", Kind.MAKE, "convert", needs=("source",)
    ),
    "export": Operation(
        "write the network in --workdir as SavedModels, TFLite or ONNX", Kind.ASK, "export", ("output",)
    ),
    "embed": Operation(
        "write the vectors of --source's images to --output", Kind.ASK, "embed", needs=("source", "output")
    ),
    "neighbors": Operation(
        "show which images look like --query", Kind.ASK, "neighbors", ("output",), ("source", "query")
    ),
    "preview": Operation(
        "draw training images as a recipe's network will see them", Kind.SHOW, "preview", ("init_from",)
    ),
    "plan": Operation(
        "estimate, without a TPU, whether a recipe fits the TPU --topology and how long it takes",
        Kind.PLAN,
        "train",
        ("init_from", "teacher", "price", "search", "plan_env", "make_plan_env"),
        ("topology",),
    ),
    "export_step": Operation(
        "write a recipe's training step as an XLA program that JAX runs on its own",
        Kind.PLAN,
        "train",
        ("init_from", "teacher", "batches"),
    ),
    "report": Operation(
        "write one page about the run in --workdir, or several separated by commas",
        Kind.COMPARE,
        "report",
        ("output",),
    ),
    "all": Operation("pretrain, fine-tune and distill, one after the other", Kind.SEQUENCE),
    "demo": Operation(
        "pretrain, fine-tune, distill and compare on the embedded images, in 10 to 25 minutes", Kind.SEQUENCE
    ),
}

TRAINING_MODES = tuple(mode for mode, operation in OPERATIONS.items() if operation.kind is Kind.TRAIN)
