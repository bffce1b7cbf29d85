"""The modes of the command line: one row each of what it does, what it takes and how it treats its workdir."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """What an operation does to its workdir, and whose recipe it reads."""

    TRAIN = "writes a workdir of its own and goes on with what is there"
    ASK = "asks something of the run in its workdir"
    MAKE = "makes its workdir when all went well, and asks nothing of one before"
    SHOW = "shows a training mode's recipe without training"
    PLAN = "builds a training mode's run for machines elsewhere; see `simclr_tf.plan`"
    COMPARE = "reads the runs in one or several workdirs, and leaves them as they are"
    SEQUENCE = "calls other operations, one after the other"


class Operation(NamedTuple):
    """A row of the table of modes.

    Attributes:
      summary: one line for the help.
      kind: how it treats its workdir.
      configurable: what runs, by its gin name; empty for a sequence.
      takes: flags about other runs and files that it may be given.
      needs: the same that it must be given.
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
        """Whether it writes nothing into its workdir before all went well."""
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
    "knn": Operation("classify by nearest neighbours with the encoder in --workdir", Kind.ASK, "knn"),
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
        "whether a recipe fits the TPU --topology, and about how long it takes there, without one",
        Kind.PLAN,
        "train",
        ("init_from", "teacher", "price", "search", "plan_env", "make_plan_env"),
        ("topology",),
    ),
    "export_step": Operation(
        "write a recipe's training step as an XLA program that JAX runs alone",
        Kind.PLAN,
        "train",
        ("init_from", "teacher", "batches"),
    ),
    "report": Operation(
        "one page about the run in --workdir, or several with commas", Kind.COMPARE, "report", ("output",)
    ),
    "all": Operation("pretrain, fine-tune and distill, one after the other", Kind.SEQUENCE),
    "demo": Operation("the whole story on the embedded images, in 10 to 25 minutes", Kind.SEQUENCE),
}

TRAINING_MODES = tuple(mode for mode, operation in OPERATIONS.items() if operation.kind is Kind.TRAIN)
