"""`--mode=eval` and `--mode=knn`: measure a trained network."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from simclr_tf.analysis import collect, knn, metrics
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_json
from simclr_tf.core.precision import resolve_precision
from simclr_tf.core.tf import tf
from simclr_tf.data.class_names import disagreement, known_class_names
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources import overlap
from simclr_tf.settings.run_context import RunContext
from simclr_tf.training import opened
from simclr_tf.workdir.networks import load_network


def _open(
    data: Data, split: str, data_dir: str | None, num_classes: int | None = None, class_names: Sequence[str] = ()
) -> Input:
    """Opens a labeled split and checks that its classes are those of the classifier, if there is one."""
    source = data.open(split, data_dir)
    if not source.any_label():
        raise UserError(f"{source.name} has no labels to compare with; choose a labeled data set or split")
    if num_classes is not None and len(source.class_names) != num_classes:
        raise UserError(
            f"the classifier knows {num_classes} classes, but {source.name} has {len(source.class_names)}; "
            "choose the data set it was trained on"
        )
    differ = disagreement(class_names, source.class_names)
    if differ is not None:
        raise UserError(
            f"the classifier's classes are not those of {source.name} (it says {differ[0]!r} where the data says "
            f"{differ[1]!r}); choose the data set it was trained on, or give the classes their old names"
        )
    return Input(source, central(data.image_size))


def run_eval(context: RunContext, data: Data, batch_size: int = 256, precision: str = "auto") -> dict:
    """Measures a run's classifier on the whole evaluation split; writes `eval.json`.

    Args:
      context: The run's context; its `workdir` is the run to measure.
      data: The data, of which the evaluation split is used.
      batch_size: The batch size over all replicas; it changes only the speed.
      precision: "auto", "float32", "bfloat16" or "float64".

    Returns:
      The report of `metrics.classification`, with `calibration`, `confusion_matrix` (rows: the true class) and the
      checkpoint's path.

    Raises:
      UserError: The run has no classifier, or the data has no labels or other classes.
    """
    with context.strategy.scope():
        network, description, path = load_network(context.workdir, precision=resolve_precision(precision))
    if network.classifier is None:
        raise UserError(
            f"--workdir={context.workdir} has no classifier to measure (it was pretrained without labels); "
            f"train one with --mode=linear_eval or finetune and --init_from={context.workdir}"
        )
    examples = _open(data, data.eval_split, context.data_dir, network.num_classes, description["class_names"])
    context.settings.check_read()
    opened.tell(context, examples.source, purpose="to measure")
    shared = opened.of_run(context.workdir, "--workdir", examples.source, context.data_dir, with_probe=True)
    if shared is not None and shared.count:
        context.say(f"  trained on: {shared.words}; the result says little about new images")
    if context.dry_run:
        context.say(f"eval: would measure {path} on {examples.source.num_examples} images of {examples.source.name}")
        return {}

    def logits(batch):
        return {"logits": network.logits(unit_images(batch["image"]), training=False)}

    outputs = collect.collect(
        context.strategy, examples, logits, batch_size=batch_size, max_bad_images=data.max_bad_images
    )
    scored = (outputs["label"], outputs["logits"])
    report = {
        "checkpoint": path,
        "data": examples.source.name,
        **metrics.classification(
            *scored, known_class_names(description["class_names"]) or list(examples.source.class_names)
        ),
        "calibration": metrics.calibration(*scored),
        "confusion_matrix": metrics.confusion_matrix(*scored).tolist(),
        **{name: description[name] for name in ("assumed",) if name in description},
    }
    if shared is not None and shared.count:
        report["overlap"] = shared._asdict()
    if not context.is_chief:
        return report
    write_json(os.path.join(context.workdir, "eval.json"), report)
    top_5 = f", top-5 {100 * report['top_5']:.2f}%" if "top_5" in report else ""
    error = report["calibration"]["expected_calibration_error"]
    context.say(
        f"eval: {metrics.told(report)}{top_5}, calibration error {100 * error:.2f}% of "
        f"{report['examples']} images of {report['data']}; confusion matrix in {context.workdir}/eval.json"
    )
    for name, accuracy in report["per_class"].items():
        context.say(f"  {name:<20} {'no examples' if accuracy is None else f'{100 * accuracy:.1f}%'}")
    return report


def _places(
    bank: dict[str, np.ndarray], queries: dict[str, np.ndarray], unique: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the bank that vote (labeled, each image once) and each query's place among them, or -1.

    Unreadable images are missing from `bank` and `queries`, but `unique` and `own` count them; see `overlap.rows`.
    """
    once = np.flatnonzero((bank["label"] >= 0) & np.isin(bank["index"], unique))
    place_of = np.full(len(unique) + 1, -1)  # The last entry serves index -1: no image of the bank.
    place_of[np.searchsorted(unique, bank["index"][once])] = np.arange(len(once))
    return once, place_of[own[queries["index"]]]


def run_knn(
    context: RunContext,
    data: Data,
    num_neighbors: int = 200,
    temperature: float = 0.1,
    batch_size: int = 256,
    precision: str = "auto",
) -> dict:
    """Classifies the evaluation split by nearest neighbors in the training split; writes `knn.json`.

    Args:
      context: The run's context; its `workdir` is the run whose encoder is used.
      data: Labeled images; both splits take the evaluation's crop.
      num_neighbors: The number of neighbors that vote.
      temperature: The temperature of the votes' weights.
      batch_size: The batch size over all replicas; it changes only the speed.
      precision: "auto", "float32", "bfloat16" or "float64".

    Returns:
      The report of `metrics.classification`, with the settings.

    Raises:
      UserError: The data has no labels.
    """
    with context.strategy.scope():
        network, _, path = load_network(context.workdir, precision=resolve_precision(precision))
    splits = [_open(data, split, context.data_dir) for split in (data.train_split, data.eval_split)]
    context.settings.check_read()
    bank_source, query_source = (split.source for split in splits)
    opened.tell(context, bank_source, query_source)
    shared = overlap.between(bank_source, query_source, labels=True)
    if shared.count:
        context.say(f"  in both splits: {shared.words}; no image votes for itself")
    if context.dry_run:
        context.say(f"knn: would compare {query_source.name} with {bank_source.name}, using {path}")
        return {}

    def features(batch):
        return {
            "features": tf.cast(
                network.outputs(unit_images(batch["image"]), training=False)["final_avg_pool"], tf.float32
            )
        }

    bank, queries = (
        collect.collect(context.strategy, split, features, batch_size=batch_size, max_bad_images=data.max_bad_images)
        for split in splits
    )
    once, own = _places(bank, queries, *overlap.rows(bank_source, query_source))
    class_names = list(bank_source.class_names)
    scores = knn.predict(
        bank["features"][once],
        bank["label"][once],
        queries["features"],
        num_classes=len(class_names),
        num_neighbors=num_neighbors,
        temperature=temperature,
        own=own,
    )
    report = metrics.classification(queries["label"], scores, class_names)
    report = {"checkpoint": path, "num_neighbors": num_neighbors, "temperature": temperature, **report}
    if shared.count:
        report["overlap"] = shared._asdict()
    if context.is_chief:
        write_json(os.path.join(context.workdir, "knn.json"), report)
    context.say(f"knn: {metrics.told(report)} of {report['examples']} images ({num_neighbors} neighbors)")
    return report
