"""`--mode=report`: reads runs, shows images to their networks, and writes one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from simclr_tf import __version__
from simclr_tf.analysis import contact_sheet, features, training_views
from simclr_tf.commands.report import sections
from simclr_tf.commands.report.page import document, figure, picture, text
from simclr_tf.commands.report.runs import Run, find, read, short_names
from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_text
from simclr_tf.core.precision import resolve_precision
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.class_names import disagreement
from simclr_tf.data.dataset import Data
from simclr_tf.data.sources.source import Source
from simclr_tf.models.network import Network
from simclr_tf.settings.run_context import RunContext
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.supervised import Supervised
from simclr_tf.workdir.networks import load_network

FILE, COMPARISON = "report.html", "comparison.html"


def _normal(path: str) -> str:
    """Returns the same path for a folder however it was written."""
    return path.rstrip("/") if "://" in path else os.path.normpath(path)


def run_report(
    context: RunContext,
    max_images: int = 1000,
    map: str = "auto",  # noqa: A002  (users write report.map)
    num_queries: int = 10,
    num_neighbors: int = 8,
    sheet_images: int = 5,
    batch_size: int = 256,
    precision: str = "auto",
) -> dict:
    """Writes a self-contained page about runs of any stage, finished or not.

    Args:
      context: The run's context. Its `workdir` is a run, several runs separated by commas, or a folder of runs. Its
        `output` is the page. Without it, the page goes into the folder, or into the first run as `report.html` about
        one run or `comparison.html` about several.
      max_images: The number of images of the evaluation split that the networks see, drawn at random.
      map: The method for the map of the embedding: "tsne", "umap", "pca", or "auto" for t-SNE if scikit-learn is
        installed, else PCA.
      num_queries: The number of images whose neighbors are shown; 0 for none.
      num_neighbors: The number of neighbors of each image.
      sheet_images: The number of images on the augmentation sheet; 0 for none.
      batch_size: The batch size over all replicas; it changes only the speed.
      precision: "auto", "float32", "bfloat16" or "float64".

    Returns:
      `path`, the page's, and `runs`, the workdirs.

    Raises:
      UserError: There is no run, one of its files cannot be read, or a setting makes no sense.
    """
    for name, value, least in (
        ("max_images", max_images, 2),
        ("num_queries", num_queries, 0),
        ("num_neighbors", num_neighbors, 1),
        ("sheet_images", sheet_images, 0),
        ("batch_size", batch_size, 1),
    ):
        checks.whole(f"report.{name}", value, least=least)
    features.check_map(map)
    chosen = resolve_precision(precision)
    workdirs = find(context.workdir)
    runs = [read(workdir, name) for workdir, name in zip(workdirs, short_names(workdirs))]
    whole_folder = len(workdirs) > 1 and os.path.dirname(workdirs[0]) == _normal(context.workdir)
    folder = context.workdir if whole_folder else workdirs[0]
    path = context.output or os.path.join(folder, FILE if whole_folder or len(runs) == 1 else COMPARISON)
    context.settings.check_read()
    if context.dry_run:
        context.say(f"report: would write {path} about {', '.join(workdirs)}")
        return {}

    networks: dict[str, Network] = {}
    notes: dict[str, list[str]] = {run.name: [] for run in runs}
    for run in runs:
        if run.checkpoint is None:
            notes[run.name].append("There is no checkpoint yet, so the page shows nothing about its network.")
            continue
        with context.strategy.scope():
            networks[run.name], _, _ = load_network(run.workdir, precision=chosen)
    bodies = [
        _about(
            context,
            i,
            run,
            networks.get(run.name),
            notes[run.name],
            max_images=max_images,
            map_kind=map,
            num_queries=num_queries,
            num_neighbors=num_neighbors,
            sheet_images=sheet_images,
            batch_size=batch_size,
        )
        for i, run in enumerate(runs)
    ]
    title = f"{runs[0].name}: {runs[0].description.get('stage', 'run')}" if len(runs) == 1 else f"{len(runs)} runs"
    body = "\n".join(
        (
            f"<h1>{text(title)}</h1>",
            f'<p class="faint">simclr-tf {text(__version__)}; {text(", ".join(workdirs))}</p>',
            sections.overview(runs, networks),
            "<h2>Curves</h2>",
            sections.curves(runs),
            "<h2>Configuration</h2>",
            sections.configuration(runs),
            *bodies,
        )
    )
    if context.is_chief:
        write_text(path, document(title, body))
    context.say(f"report: {len(runs)} run(s); open {path}")
    return {"path": path, "runs": workdirs}


def _about(
    context: RunContext,
    number: int,
    run: Run,
    network: Network | None,
    notes: list[str],
    *,
    max_images: int,
    map_kind: str,
    num_queries: int,
    num_neighbors: int,
    sheet_images: int,
    batch_size: int,
) -> str:
    """Returns the section about one run."""
    data = Data(**run.description["data"])
    class_names: Sequence[str] = run.description.get("class_names") or ()
    parts, seen = [], None
    if network is not None:
        parts.append(sections.cost(run, network))
    says_data = "source" in run.description["data"]
    if run.description.get("assumed"):
        notes.append(f"It is assumed that {run.description['assumed']}.")
    if not says_data:  # A converted checkpoint.
        notes.append("The run does not say what images it was trained on, so none are shown.")
    if sheet_images and says_data:
        try:
            parts.append(_sheet(run, data, context.data_dir, sheet_images))
        except UserError as error:  # The data may be on another machine; the rest of the page needs none.
            notes.append(f"No augmentation sheet: {error}.")
    if network is not None and says_data:
        try:
            source = _source(data, context.data_dir)
            seen = features.look(
                context.strategy,
                network,
                source,
                image_size=data.image_size,
                max_images=max_images,
                batch_size=batch_size,
                max_bad_images=data.max_bad_images,
            )
        except UserError as error:
            notes.append(f"No images to look at: {error}.")
    if seen is not None:
        known = class_names or source.class_names or ()
        if not _same_classes(class_names, source):
            seen = seen._replace(labels=np.full_like(seen.labels, -1))
            notes.append(
                f"The classes of {source.name} are no longer those that the run was trained on, so labels are not used."
            )
        if num_queries:
            parts.append(sections.neighbors(seen, known, num_images=num_queries, num_neighbors=num_neighbors))
        if len(seen.features) > 1:
            parts.append(sections.embedding_map(*features.flat(seen.features, map_kind), seen, known))
    notes += sections.overlaps(run)
    head = f'<h2 id="run{number}">{text(run.name)}</h2><p>{text(sections.status(run))}.</p>'
    head += "".join(f"<p>{text(note)}</p>" for note in notes)
    return f'{head}<div class="cards">{"".join(parts)}</div>{sections.classification(seen, run, class_names)}'


def _same_classes(trained: Sequence[str], source: Source) -> bool:
    """Returns whether labels mean the same as in training; True if either side has no classes."""
    found = source.class_names or ()
    if not trained or not found:
        return True
    return len(trained) == len(found) and disagreement(trained, found) is None


def _source(data: Data, data_dir: str | None) -> Source:
    """Opens the evaluation split or, without one (as in a folder without labels), the training split."""
    try:
        return data.open(data.eval_split, data_dir)
    except UserError:
        return data.open(data.train_split, data_dir)


def _sheet(run: Run, data: Data, data_dir: str | None, count: int) -> str:
    described = run.description.get("augment")
    if described is None:
        return ""
    augment = Augment(**described)
    seed = run.setting("train.seed", 0)
    stage = {"pretrain": Pretrain, "distill": Distill}.get(run.description.get("stage"), Supervised)
    found = training_views.views(
        data, augment, stream=stage.first_stream, num_images=count, seed=seed, data_dir=data_dir
    )
    class_names = data.open(data.train_split, data_dir).class_names
    sheet = training_views.sheet(found, class_names, title=f"The first images of step 0, seed {seed}", cell_pixels=72)
    image = picture(contact_sheet.png(sheet), "training images, their views, and each augmentation alone")
    return figure("What training sees", f'<div class="wide">{image}</div>', whole_row=True)
