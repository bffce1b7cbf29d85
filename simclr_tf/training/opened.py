"""Tells the user what a run has opened before it begins: splits, classes, odd pictures, overlap of train and eval."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.dataset import Data
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources import overlap
from simclr_tf.data.sources.overlap import Overlap
from simclr_tf.data.sources.source import Source
from simclr_tf.settings.run_context import RunContext
from simclr_tf.stages.stage import Stage
from simclr_tf.workdir import records
from simclr_tf.workdir.networks import read_architecture

_LOOKED_AT, _LOOKED_AT_REMOTELY = 32, 8
# A picture is odd if it is more than this many times as long as wide, or as large as the network's images.
_LONG, _LARGE = 4, 8
_NAMED = 5


def tell(
    context: RunContext,
    source: Source,
    measured: Source | None = None,
    *,
    image_size: int | None = None,
    purpose: str = "to train on",
) -> None:
    """Says what a source holds, compared with another that is measured; with `image_size`, also its pictures' sizes."""
    if not context.is_chief:
        return
    remarks = [*source.remarks, *(measured.remarks if measured is not None else ())]
    told = [*_splits(source), *_classes(source, measured, purpose), *dict.fromkeys(remarks)]
    for line in [*told, *(_sizes(source, image_size) if image_size else ())]:
        context.say(f"  {line}")


def tell_run(
    context: RunContext, stage: Stage, inputs: dict[str, Input], measured: Source | None, global_batch_size: int
) -> dict[str, dict]:
    """Says what a training run has opened.

    Args:
      context: workdir and flags of the run.
      stage: stage to train.
      inputs: training streams of the stage.
      measured: source of the final evaluation, or None.
      global_batch_size: examples per step.

    Returns:
      Facts to add to the evaluation, as plain values: `overlap`, between training and evaluation images, and
      `overlap_of_start`, the same for the run in `--init_from` or `--teacher`. Each is missing if there is none.
    """
    if not context.is_chief:
        return {}
    source = next(iter(inputs.values())).source
    tell(context, source, measured, image_size=stage.network.image_size)
    for stream in inputs.values():
        size, count = stream.batch_size or global_batch_size, stream.source.num_examples
        if size > count:
            context.say(f"  a batch of {size:,} is larger than all {count:,} examples: each step repeats some")
    if measured is None:
        return {}
    found = {}
    learns = {"labelled"} if stage.first_stream != "images" or stage.network.classifier is None else {"images"}
    own = [overlap.between(one.source, measured, labels=name in learns) for name, one in inputs.items()]
    if (most := _worst(own)).count:
        context.say(f"  trained on: {most.words}; the result says little about new pictures")
        found["overlap"] = most._asdict()
    for flag, workdir in (("--init_from", context.init_from), ("--teacher", context.teacher)):
        takes_probe = flag == "--init_from" and "classifier" in stage.initial_items()
        before = of_run(workdir, flag, measured, context.data_dir, with_probe=takes_probe) if workdir else None
        if before is not None and before.count:
            context.say(f"  {flag} was trained on {before.words}")
            found["overlap_of_start"] = before._asdict()
    return found


def of_run(workdir: str, flag: str, measured: Source, data_dir: str | None, *, with_probe: bool) -> Overlap | None:
    """Returns how much of a source an earlier run was trained on; None if that cannot be known.

    Args:
      workdir: of the earlier run.
      flag: what `workdir` was given as, for messages.
      measured: what is measured now.
      data_dir: where data sets lie.
      with_probe: whether the probe of a pretraining run, which learns from labels, is in use, too.
    """
    if not tf.io.gfile.exists(os.path.join(workdir, records.ARCHITECTURE)):
        return None
    description = read_architecture(workdir, flag)
    if "source" not in description["data"]:  # A converted checkpoint.
        return None
    data = Data(**description["data"])
    # Pretraining's probe learns from labels, but the encoder that other runs start from does not.
    stage, found = description.get("stage"), []
    try:
        if stage in ("pretrain", "distill"):
            source, labels = data.open(data.train_split, data_dir), with_probe and stage == "pretrain"
            found.append(overlap.between(source, measured, labels=labels))
        if stage not in ("pretrain", "distill") or description.get("alpha", 1) < 1:
            found.append(overlap.between(data.open_labelled(data_dir), measured, labels=True))
    except UserError:  # Its data may be on another machine.
        return None
    return _worst(found)


def _worst(found: Sequence[Overlap]) -> Overlap:
    return max(found, key=lambda one: (one.count > 0 and one.labels, one.count))


def _splits(source: Source) -> list[str]:
    parts = [f"{name} {count:,}" for name, count in source.splits.items()]
    return [f"splits: {', '.join(parts)}"] if parts else []


def _classes(source: Source, measured: Source | None, purpose: str) -> list[str]:
    names = source.class_names
    if not names:
        return []
    if not source.labels_at_hand:  # Reading all labels may take as long as an epoch.
        return [f"classes: {len(names):,}"]
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(names))
    order = [i for i in np.argsort(counts, kind="stable") if counts[i]]
    if not order:
        return ["no picture has a label"]
    extremes = [order[0], order[-1]] if len(order) > _NAMED else order[::-1]
    told = [f"{names[i]} {counts[i]:,}" for i in extremes]
    without = int(np.sum(source.labels < 0))
    lines = [
        f"classes: {len(names):,}, {' to '.join(told) if len(order) > _NAMED else ', '.join(told)}"
        + (f"; {without:,} without a label" if without else "")
    ]
    lines += _missing(names, counts, purpose)
    if measured is not None and measured.labels_at_hand and measured.class_names == names:
        lines += _missing(names, np.bincount(measured.labels[measured.labels >= 0], minlength=len(names)), "to measure")
    return lines


def _missing(names: Sequence[str], counts: np.ndarray, purpose: str) -> list[str]:
    missing = [name for name, count in zip(names, counts) if not count]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return [f"no picture of {', '.join(missing[:_NAMED])}{more} {purpose}"] if missing else []


def _sizes(source: Source, image_size: int) -> list[str]:
    """Describes the sizes of a few pictures, spread over the source, from their headers."""
    if not source.may_fail:
        return []
    count = min(_LOOKED_AT_REMOTELY if source.remote else _LOOKED_AT, source.num_examples)
    rows = np.unique(np.linspace(0, source.num_examples - 1, count, dtype=np.int64))
    found = {row: size for row in rows if (size := _size(source, row)) is not None}
    lines = []
    unlike = [row for row in rows if row not in found]
    if unlike:
        lines.append(f"{len(unlike)} of {len(rows)} looked at are not pictures, like {source.example_ids[unlike[0]]}")
    sides = np.array(list(found.values()))
    if not len(sides):
        return lines
    small, large = sides[np.argmin(sides.prod(1))], sides[np.argmax(sides.prod(1))]
    told = f"{small[0]} x {small[1]}"
    told = f"from {told} to {large[0]} x {large[1]}" if len(np.unique(sides, axis=0)) > 1 else told
    odd = {
        f"smaller than the network's {image_size}, so enlarged": sides.min(1) < image_size,
        f"more than {_LARGE} times larger than the network's {image_size}: a shrunken copy trains faster": sides.min(1)
        > _LARGE * image_size,
        f"over {_LONG} times as long as wide: only their middle is measured": sides.max(1) > _LONG * sides.min(1),
    }
    several = [f"{int(mask.sum())} {what}" for what, mask in odd.items() if mask.any()]
    return [*lines, "; ".join([f"sizes of {len(sides)} looked at: {told} pixels", *several])]


def _size(source: Source, row: int) -> tuple[int, int] | None:
    """Returns width and height from a picture's header; None if it is not a picture."""
    try:
        with tf.device("CPU:0"), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(source.read(tf.constant(row, tf.int64))[0].numpy())).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, tf.errors.OpError):
        return None
