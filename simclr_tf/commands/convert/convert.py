"""`--mode=convert`: a published checkpoint becomes a workdir that every other mode accepts."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

from simclr_tf.commands.convert import recognize
from simclr_tf.commands.convert.foreign_checkpoint import Source
from simclr_tf.commands.convert.recognize import Architecture, Found
from simclr_tf.commands.convert.saved_model_lists import read_lists
from simclr_tf.core import checks
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.files import write_json
from simclr_tf.core.text import magnitude
from simclr_tf.core.tf import tf
from simclr_tf.data.class_names import numbered_classes
from simclr_tf.models import cost
from simclr_tf.models.network import Network
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir import checkpoints, records

STAGE = "convert"
_WEIGHTS = ("auto", "trained", "ema")
# The checkpoint is written into such a folder first; it goes last, so that where it is a conversion was cut short.
_ASIDE = ".converting."
# Folders' names that tell which kind a published checkpoint is. SimCLRv2 fine-tunes from the head's first layer with a
# part of the labels (the first group) and from the encoder with all of them (Chen et al. 2020b, section 3.1; confirmed
# in google-research/simclr issue 109). Classifiers of SimCLRv1, linear probes, networks trained from scratch and
# students, which are trained without a head, read the encoder.
_KIND = re.compile(
    r"(?<![a-z0-9])(?:(finetuned)_(?!100pct)\d+pct|(?:finetuned?|distill)_\d+pct)(?![a-z0-9])"
    r"|^(?:pretrain(?:ed)?|supervised)$"
)
# Square images' sides that networks with either stem were published for, in pixels.
_IMAGE_SIZES = {"imagenet": 224, "cifar": 32}


def run_convert(
    context: RunContext,
    weights: str = "auto",
    classifier_layer: int | None = None,
    image_size: int | None = None,
    class_names: list[str] | None = None,
) -> dict:
    """Reads a published SimCLR checkpoint and writes a workdir with the same network.

    Args:
      context: its `source` is a TF1 checkpoint or hub module, a TF2 training checkpoint or a TF2 SavedModel; its
        `workdir` is made.
      weights: "trained", "ema" for the moving averages that training with a memory keeps, or "auto": the trained ones
        where they are.
      classifier_layer: the projection head's layer that the classifier reads, 0 for the encoder's output. Checkpoints
        do not tell where several are equally wide; None lets the path tell: 1 below a folder called "finetuned_Npct"
        with N under 100, 0 below "finetuned_100pct", "distill_Npct", "pretrained" or "supervised", the deepest of them
        counting. Where none does, 1 is assumed of a head of three layers or more, else 0; `architecture.json` keeps
        this assumption, and whatever uses the classifier repeats it.
      image_size: of the images that the network is for, in pixels; None takes 224 or, with the CIFAR stem, 32.
      class_names: names of the classes, in the order of the logits; None numbers them.

    Returns:
      What was recognized.

    Raises:
      UserError: for a checkpoint that cannot be placed whole; nothing is written then.
    """
    _check_settings(context, weights, image_size)
    source, found = _read(context.source, weights)
    architecture = recognize.understand(found, source.shapes, source.path)
    layer, why = _classifier_layer(architecture, classifier_layer, context.source)
    assumed = "" if why else _assumed(layer, architecture.classifier_layers, context.source)
    description = {
        "encoder": architecture.encoder,
        "head": architecture.head,
        "num_classes": architecture.num_classes,
        "classifier_layer": layer,
        "image_size": image_size or _IMAGE_SIZES[architecture.encoder["stem"]],
    }
    names = _class_names(class_names, architecture.num_classes)
    step = source.read_step(recognize.STEP_KEYS)
    context.settings.check_read()
    if not context.is_chief:
        return description
    print(_report(source, found, architecture, step, f"{_named(layer)} ({why or 'assumed'})"))
    if assumed:
        print(f"  assumed     {assumed}")
    if context.dry_run:
        return description
    _clear_unfinished(context.workdir)
    _check_new(context.workdir)
    network = Network.from_description(description)
    _fill(network, found, source)
    _write(context.workdir, network, step, names, context.source, assumed)
    print(
        f"  wrote {context.workdir} ({magnitude(cost.count_parameters(network))} parameters); it serves as "
        "--init_from, and as --workdir of the modes that look at a run"
    )
    return description


def _check_settings(context: RunContext, weights: str, image_size: int | None) -> None:
    if not context.source:
        raise UsageError("--source is missing; give --mode=convert the checkpoint to read")
    checks.choice("convert.weights", weights, _WEIGHTS)
    checks.whole("convert.image_size", image_size, least=8, optional=True, hint=", in pixels")
    if tf.io.gfile.exists(os.path.join(context.source, records.ARCHITECTURE)):
        raise UserError(
            f"--source={context.source} is a workdir of this project already; use it as it is, with --init_from"
        )


def _read(path: str, weights: str) -> tuple[Source, Found]:
    """Opens a checkpoint and finds a network's variables in it."""
    source = Source(path)
    found = recognize.read_names(source.shapes, source.path, weights) or read_lists(source.shapes, source.path)
    if found is None:
        raise UserError(
            f"{source.path} is no SimCLR checkpoint: none of its {len(source.shapes)} variables is named as there "
            f"(base_model/, resnet_model/, trainable_variables_list/), such as {sorted(source.shapes)[0]}; give another"
        )
    return source, found


def _classifier_layer(architecture: Architecture, asked: int | None, path: str) -> tuple[int, str]:
    """Chooses which output the classifier reads; returns it with the reason, "" where nothing tells."""
    layers = architecture.classifier_layers
    if not layers:
        if asked is not None:
            raise UserError(
                f"convert.classifier_layer is {asked!r}, but --source={path} has no classifier; set it to None"
            )
        return 0, "there is none"
    if asked is not None:
        if asked not in layers:
            raise UserError(
                f"convert.classifier_layer is {asked!r}, but the classifier fits only layer(s) "
                f"{', '.join(map(str, layers))}"
            )
        return asked, "as asked"
    if len(layers) == 1:
        return layers[0], "the only one of its width"
    # The deepest one tells: the folder of a whole collection may have any name.
    for name in reversed((path if "://" in path else os.path.abspath(path)).split("/")):
        kind = _KIND.search(name)
        layer = 1 if kind and kind[1] else 0
        if kind and layer in layers:
            return layer, f"as in published checkpoints of the kind {kind[0]}"
    head = architecture.head
    if head["used_layers"] < head["num_layers"] and head["used_layers"] in layers:
        return head["used_layers"], "the last one that the checkpoint keeps"
    return (1 if head["num_layers"] >= 3 and 1 in layers else layers[0]), ""


def _named(layer: int) -> str:
    return f"head layer {layer}" if layer else "the encoder's output"


def _assumed(layer: int, layers: tuple[int, ...], path: str) -> str:
    """What is told, now and later, of a layer that was not known."""
    others = " or ".join(f"={other} ({_named(other)})" for other in layers if other != layer)
    return (
        f"the classifier reads {_named(layer)}, since --source={path} does not tell its kind (such as finetuned_10pct, "
        "finetuned_100pct, distill_10pct or pretrained); a wrong layer gives wrong classes, and --mode=convert into a "
        f"new --workdir with --gin_param=convert.classifier_layer{others} chooses another"
    )


def _class_names(names: list[str] | None, num_classes: int) -> list[str]:
    if names is None:
        return numbered_classes(num_classes)
    if len(names) != num_classes:
        raise UserError(
            f"convert.class_names has {len(names)} names, but the classifier tells {num_classes} classes apart"
        )
    return [str(name) for name in names]


def _report(source: Source, found: Found, architecture: Architecture, step: int, reads: str) -> str:
    lines = [f"convert: {source.path} ({found.layout} names, {len(source.shapes)} variables)"]
    encoder = sum(len(group.keys) for group in [*found.convs, *found.norms])
    averages = " (moving averages of the weights)" if found.variant else ""
    lines.append(f"  encoder     {recognize.describe_encoder(architecture.encoder)}: {encoder} variables{averages}")
    head = architecture.head
    if head is None:
        lines.append("  head        none there; fine-tuning from a layer of it will not be possible")
    else:
        used = (
            "" if head["used_layers"] == head["num_layers"] else f", of which the first {head['used_layers']} are there"
        )
        lines.append(f"  head        {head['num_layers']} layers to {head['output_dim']}{used}")
    if architecture.num_classes:
        lines.append(f"  classifier  {architecture.num_classes} classes, reads {reads}")
    else:
        lines.append("  classifier  none there; --mode=linear_eval or fine-tuning makes one")
    for kind, count in sorted(found.ignored.items()):
        lines.append(f"  ignored     {count} {kind}" + (f" (at step {step})" if kind == "steps" else ""))
    if found.others:
        lines.append(f"  also there  {', '.join(found.others)} weights; convert.weights chooses")
    return "\n".join(lines)


def _clear_unfinished(workdir: str) -> None:
    """Deletes what a conversion left that was killed before the workdir was one; a run's files are never touched."""
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(workdir)] if tf.io.gfile.exists(workdir) else []
    left = [name for name in names if name.startswith(_ASIDE)]
    if left and records.ARCHITECTURE not in names:
        for name in ["checkpoints", *left]:
            if name in names:
                tf.io.gfile.rmtree(os.path.join(workdir, name))


def _check_new(workdir: str) -> None:
    holds = [name for name in (records.ARCHITECTURE, "checkpoints") if tf.io.gfile.exists(os.path.join(workdir, name))]
    if holds:
        raise UserError(f"--workdir={workdir} holds a run already ({', '.join(holds)}); use a new --workdir")


def _variables(network: Network, found: Found) -> Iterator[tuple[tf.Variable, str]]:
    """Yields each of the network's variables with its key."""
    units = list(network.encoder.units())
    convs = [unit for unit in units if hasattr(unit, "kernel")]
    norms = [unit for unit in units if not hasattr(unit, "kernel")]
    layers = [*zip(convs, found.convs), *zip(norms, found.norms)]
    if network.head is not None:
        layers += zip([layer.dense for layer in network.head.projections], found.dense)
        layers += zip([layer.norm for layer in network.head.projections], found.dense_norms)
    if network.classifier is not None:
        layers.append((network.classifier.dense, found.classifier))
    for layer, group in layers:
        for leaf, key in group.keys.items():
            yield getattr(layer, leaf), key


def _fill(network: Network, found: Found, source: Source) -> None:
    filled = set()
    for variable, key in _variables(network, found):
        variable.assign(source.read(key))
        filled.add(id(variable))
    missing = [v.name for part in network.parts().values() for v in part.variables if id(v) not in filled]
    if missing:
        raise RuntimeError(f"{len(missing)} variables got no value, such as {missing[0]}")


def _write(workdir: str, network: Network, step: int, class_names: list[str], source: str, assumed: str) -> None:
    """Writes the checkpoint aside and renames it; then `architecture.json`, which makes it a workdir."""
    aside = os.path.join(workdir, f"{_ASIDE}{uuid.uuid4().hex[:8]}")
    checkpoints.Checkpoints(aside, network.parts(), keep=1).save(step)
    tf.io.gfile.rename(os.path.join(aside, "checkpoints"), os.path.join(workdir, "checkpoints"))
    description = {
        "stage": STAGE,
        "network": network.describe(),
        "class_names": class_names,
        # What it was trained on is not known; the size is all that later stages take over.
        "data": {"image_size": network.image_size},
        "source": source,
        **({"assumed": assumed} if assumed else {}),
    }
    write_json(os.path.join(workdir, records.ARCHITECTURE), description)
    tf.io.gfile.rmtree(aside)
