"""`--mode=embed`: writes the vectors of images to a file, in order; resumes where it was stopped."""

from __future__ import annotations

import hashlib
import time

import numpy as np

from simclr_tf.analysis import collect
from simclr_tf.analysis.features import check_layer, encoder_fingerprint, vector
from simclr_tf.commands import vector_files
from simclr_tf.core import checks
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.precision import resolve_precision
from simclr_tf.core.progress import Progress
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import bad_image_counter
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import Source
from simclr_tf.data.sources.subset import Subset
from simclr_tf.distribute import cluster
from simclr_tf.models.network import Network
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir.networks import load_network


def run_embed(
    context: RunContext,
    layer: str = "final_avg_pool",
    split: str = "all",
    image_size: int | None = None,
    batch_size: int = 256,
    images_per_part: int = 8192,
    max_bad_images: int = 100,
    precision: str = "float32",
    bit_depth: int | None = None,
) -> dict:
    """Writes the vectors of `context.source`'s images to `context.output`.

    The images take the evaluation's crop. A folder's rows are sorted by name; other sources keep their order.
    Unreadable images are left out and named. Finished parts stay in `OUTPUT.parts` until the file is complete; the same
    command resumes from them.

    Args:
      context: The run's context; its `workdir` is the run whose network is used.
      layer: The output to write: "final_avg_pool", "head_layer_1" .., or a map, which is averaged over its positions.
      split: The split of the source; "all" for everything.
      image_size: The side of the images in pixels; None takes the run's.
      batch_size: The batch size over all replicas; it changes only the speed.
      images_per_part: The most images to compute again after a kill.
      max_bad_images: The number of unreadable images to leave out before stopping.
      precision: "auto", "float32", "bfloat16" or "float64".
      bit_depth: The images' bit depth, like `Data.bit_depth`; None takes the run's.

    Returns:
      `rows`, `bad_images` and the vectors' `details`.

    Raises:
      UserError: The images, the network or the output cannot be used, or a setting makes no sense.
    """
    for name, value in {"batch_size": batch_size, "images_per_part": images_per_part}.items():
        checks.whole(f"embed.{name}", value)
    checks.whole("embed.image_size", image_size, least=8, optional=True, hint=", in pixels")
    if ":" not in context.source:
        raise UsageError(
            f"--source={context.source} does not say what kind it is; write folder:{context.source}, or tfds:NAME"
        )
    vector_files.check_path(context.output, "--output")
    with context.strategy.scope():
        network, description, path = load_network(context.workdir, precision=resolve_precision(precision))
    check_layer(network, layer, "embed")
    size = image_size or network.image_size
    if bit_depth is None:
        bit_depth = description["data"].get("bit_depth")
    trained_on = description["data"]
    # The same data must have the same splits as in training.
    group_by = trained_on.get("group_by") if context.source == trained_on.get("source") else None
    source = open_source(context.source, split, context.data_dir, bit_depth=bit_depth, group_by=group_by)
    context.remark(source.remarks)
    rows = _order(source, context.source)
    names = [source.example_ids[row] for row in rows]
    details = {
        "source": context.source,
        "split": split,
        "layer": layer,
        "image_size": size,
        "checkpoint": path,
        "network": encoder_fingerprint(network),
        "precision": network.precision,
        **({} if bit_depth is None else {"bit_depth": bit_depth}),
        "class_names": list(description.get("class_names") or ()) if network.classifier is not None else [],
        "num_examples": len(names),
        "names": hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16],
    }
    context.settings.check_read()
    if context.dry_run:
        context.say(f"embed: would write {len(names)} vectors of {source.name}, made by {path}, to {context.output}")
        return {"rows": len(names), "details": details}
    if tf.io.gfile.exists(context.output):
        if vector_files.read(context.output, "--output").details == details:
            context.say(f"embed: nothing to do: {context.output} already has these vectors")
            return {"rows": len(names), "details": details}
        raise UserError(
            f"--output={context.output} exists and holds something else; delete it, or give another --output"
        )

    writes = context.is_chief
    parts = vector_files.Parts(context.output, details, writes=writes)
    done = parts.done()
    if done:
        context.say(f"embed: resuming after {done} of {len(names)} images")
    if done < len(names):
        _compute(
            context,
            network,
            source,
            rows,
            done,
            parts if writes else None,
            max_bad_images,
            layer=layer,
            size=size,
            batch_size=batch_size,
            images_per_part=images_per_part,
        )
    if not writes:
        return {"rows": len(names), "details": details}
    return _finish(context, parts, names, details)


def _order(source: Source, spec: str) -> np.ndarray:
    """Returns the order of the rows; a folder is sorted by name, since its source may list files in another order."""
    if spec.startswith("folder:"):
        return np.array(sorted(range(source.num_examples), key=lambda row: source.example_ids[row]), np.int64)
    return np.arange(source.num_examples)


def _compute(
    context: RunContext,
    network: Network,
    source: Source,
    rows: np.ndarray,
    first: int,
    parts: vector_files.Parts | None,
    max_bad_images: int,
    *,
    layer: str,
    size: int,
    batch_size: int,
    images_per_part: int,
) -> None:
    rest = Subset(source, rows[first:], source.name)
    bad = bad_image_counter(max_bad_images, rest, elsewhere=cluster.reads_elsewhere(context.strategy))
    compute = vector(network, layer)
    replicas = context.strategy.num_replicas_in_sync
    step = max(1, batch_size // replicas) * replicas
    batches = collect.stream(
        context.strategy,
        Input(rest, central(size)),
        lambda batch: compute(unit_images(batch["image"])),
        batch_size=batch_size,
        bad_images=bad,
    )
    total = -(-len(rows) // step)  # Rounded up.
    progress = Progress(
        "embed",
        total_steps=total,
        first_step=total - -(-rest.num_examples // step),
        images_per_step=step,
        silent=parts is None,
    )
    held: list[dict[str, np.ndarray]] = []
    start = covered = first
    before = time.monotonic()

    def flush() -> None:
        if parts is not None and covered > start:
            columns = {name: np.concatenate([batch[name] for batch in held]) for name in held[0]}
            parts.add(start, covered, columns)

    try:
        for outputs in batches:
            index = outputs.pop("index") + first
            order = np.argsort(index, kind="stable")
            held.append({**{name: value[order] for name, value in outputs.items()}, "row": index[order]})
            # Counts rows by batches, since outputs lack unreadable images.
            covered = min(covered + step, len(rows))
            if covered - start >= images_per_part:
                flush()
                held.clear()
                start = covered
            now = time.monotonic()
            progress.update(1, seconds=now - before)
            before = now
        flush()
    finally:
        progress.close()


def _finish(context: RunContext, parts: vector_files.Parts, names: list[str], details: dict) -> dict:
    found, shapes, labeled = [], {}, False
    for part in parts.read():
        found.append(part["row"])
        shapes = {name: part[name].shape[1:] for name in vector_files.COLUMNS if name in part}
        labeled = labeled or bool(np.any(part["label"] >= 0))
    kept = np.concatenate(found) if found else np.zeros(0, np.int64)
    missing = sorted(set(range(len(names))) - set(kept.tolist()))
    if not len(kept):
        raise UserError(f"{context.source} has no readable image; choose another --source")
    if not labeled:
        shapes.pop("label", None)
    layout = vector_files.Layout([names[row] for row in kept], shapes, details)
    vector_files.write(context.output, layout, parts.read)
    parts.delete()
    context.say(f"embed: {len(kept)} vectors of {shapes['vector'][0]} numbers in {context.output}")
    if missing:
        shown = ", ".join(names[row] for row in missing[:5])
        context.say(f"  {len(missing)} unreadable image(s) were left out: {shown}{' ..' if len(missing) > 5 else ''}")
    return {"rows": len(kept), "bad_images": len(missing), "details": details}
