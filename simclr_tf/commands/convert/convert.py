"""`--mode=convert`: turns a published checkpoint into a workdir that every other mode accepts."""

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
# The checkpoint is first written into a folder of this name. It is deleted last, so it marks an unfinished conversion.
_ASIDE = ".converting."
# Names of folders that tell the kind of a published checkpoint. SimCLRv2 fine-tunes from the head's first layer with
# some of the labels (the first group), and from the encoder with all of them (Chen et al. 2020b, section 3.1; confirmed
# in google-research/simclr issue 109). SimCLRv1 classifiers, linear probes, networks trained from scratch and students
# (trained without a head) read the encoder.
_KIND = re.compile(
    r"(?<![a-z0-9])(?:(finetuned)[-_]?(?!100pct)\d+pct|(?:finetuned?|distill(?:ed)?)[-_]?\d+pct)(?![a-z0-9])"
    r"|^(?:pretrain(?:ed)?|supervised)$",
    re.IGNORECASE,
)
# The image sizes in pixels that networks with either stem were published for.
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
      context: The run's context. Its `source` is a TF1 checkpoint or hub module, a TF2 training checkpoint or a TF2
        SavedModel. Its `workdir` is created.
      weights: "trained", "ema" for the moving averages that training with a memory keeps, or "auto" for the trained
        weights if the checkpoint has them, else the averages.
      classifier_layer: The layer of the projection head that the classifier reads, 0 for the encoder's output. If
        several layers are equally wide, the checkpoint does not tell which. None then decides by the deepest folder in
        the path with a known name: 1 for "finetuned_Npct" with N under 100; 0 for "finetuned_100pct", "distill_Npct",
        "pretrained" or "supervised". Without one, 1 is assumed for a head of three layers or more, else 0;
        `architecture.json` keeps this assumption, and every mode that uses the classifier repeats it.
      image_size: The side of the images that the network is for, in pixels; None takes 224 or, with the CIFAR stem, 32.
      class_names: The names of the classes, in the order of the logits; None numbers them.

    Returns:
      The description of the recognized network.

    Raises:
      UserError: The checkpoint is not, as a whole, a network that this project knows. Nothing is written.
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
        f"  wrote {context.workdir} ({magnitude(cost.count_parameters(network))} parameters); use it as "
        "--init_from, or as --workdir of the modes that examine a run"
    )
    return description


def _check_settings(context: RunContext, weights: str, image_size: int | None) -> None:
    if not context.source:
        raise UsageError("--source is missing; give --mode=convert the checkpoint to read")
    checks.choice("convert.weights", weights, _WEIGHTS)
    checks.whole("convert.image_size", image_size, least=8, optional=True, hint=", in pixels")
    if tf.io.gfile.exists(os.path.join(context.source, records.ARCHITECTURE)):
        raise UserError(
            f"--source={context.source} is already a workdir of this project; use it as it is, with --init_from"
        )


def _read(path: str, weights: str) -> tuple[Source, Found]:
    """Opens a checkpoint and finds a network's variables in it."""
    source = Source(path)
    found = recognize.read_names(source.shapes, source.path, weights) or read_lists(source.shapes, source.path)
    if found is None:
        raise UserError(
            f"{source.path} is not a SimCLR checkpoint: none of its {len(source.shapes)} variables (such as "
            f"{sorted(source.shapes)[0]}) has the name of one (base_model/, resnet_model/, trainable_variables_list/); "
            "give another"
        )
    return source, found


def _classifier_layer(architecture: Architecture, asked: int | None, path: str) -> tuple[int, str]:
    """Chooses the layer that the classifier reads; returns it with the reason, or with "" if nothing tells."""
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
    # The deepest folder decides: one that holds a whole collection may have any name.
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
    """Says which layer was assumed and how to choose another; shown now and whenever the classifier is used."""
    others = " or ".join(f"={other} ({_named(other)})" for other in layers if other != layer)
    return (
        f"the classifier reads {_named(layer)}, since --source={path} does not say its kind (such as finetuned_10pct, "
        "finetuned_100pct, distill_10pct or pretrained); a wrong layer gives wrong classes, and --mode=convert into a "
        f"new --workdir with --gin_param=convert.classifier_layer{others} chooses another"
    )


def _class_names(names: list[str] | None, num_classes: int) -> list[str]:
    if names is None:
        return numbered_classes(num_classes)
    if len(names) != num_classes:
        raise UserError(f"convert.class_names has {len(names)} names, but the classifier has {num_classes} classes")
    return [str(name) for name in names]


def _report(source: Source, found: Found, architecture: Architecture, step: int, reads: str) -> str:
    lines = [f"convert: {source.path} ({found.layout} names, {len(source.shapes)} variables)"]
    encoder = sum(len(group.keys) for group in [*found.convs, *found.norms])
    averages = " (moving averages of the weights)" if found.variant else ""
    lines.append(f"  encoder     {recognize.describe_encoder(architecture.encoder)}: {encoder} variables{averages}")
    head = architecture.head
    if head is None:
        lines.append("  head        none; fine-tuning from one of its layers will not be possible")
    else:
        used = "" if head["used_layers"] == head["num_layers"] else f", of which it has the first {head['used_layers']}"
        lines.append(f"  head        {head['num_layers']} layers to {head['output_dim']}{used}")
    if architecture.num_classes:
        lines.append(f"  classifier  {architecture.num_classes} classes, reads {reads}")
    else:
        lines.append("  classifier  none; --mode=linear_eval or fine-tuning makes one")
    for kind, count in sorted(found.ignored.items()):
        lines.append(f"  ignored     {count} {kind}" + (f" (at step {step})" if kind == "steps" else ""))
    if found.others:
        lines.append(f"  also there  {', '.join(found.others)} weights; convert.weights chooses")
    return "\n".join(lines)


def _clear_unfinished(workdir: str) -> None:
    """Deletes what a killed conversion left before it wrote `architecture.json`; never touches the files of a run."""
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(workdir)] if tf.io.gfile.exists(workdir) else []
    left = [name for name in names if name.startswith(_ASIDE)]
    if left and records.ARCHITECTURE not in names:
        for name in ["checkpoints", *left]:
            if name in names:
                tf.io.gfile.rmtree(os.path.join(workdir, name))


def _check_new(workdir: str) -> None:
    holds = [name for name in (records.ARCHITECTURE, "checkpoints") if tf.io.gfile.exists(os.path.join(workdir, name))]
    if holds:
        raise UserError(f"--workdir={workdir} already holds a run ({', '.join(holds)}); use a new --workdir")


def _variables(network: Network, found: Found) -> Iterator[tuple[tf.Variable, str]]:
    """Yields each variable of the network with its key in the checkpoint."""
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
        raise RuntimeError(f"the checkpoint has no value for {len(missing)} variables, such as {missing[0]}")


def _write(workdir: str, network: Network, step: int, class_names: list[str], source: str, assumed: str) -> None:
    """Writes the checkpoint under a temporary name, renames it, and adds `architecture.json`, which makes a workdir."""
    aside = os.path.join(workdir, f"{_ASIDE}{uuid.uuid4().hex[:8]}")
    checkpoints.Checkpoints(aside, network.parts(), keep=1).save(step)
    tf.io.gfile.rename(os.path.join(aside, "checkpoints"), os.path.join(workdir, "checkpoints"))
    description = {
        "stage": STAGE,
        "network": network.describe(),
        "class_names": class_names,
        # The training data is unknown; later stages take over only the image size.
        "data": {"image_size": network.image_size},
        "source": source,
        **({"assumed": assumed} if assumed else {}),
    }
    write_json(os.path.join(workdir, records.ARCHITECTURE), description)
    tf.io.gfile.rmtree(aside)
