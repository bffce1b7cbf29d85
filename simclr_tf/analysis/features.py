"""What a network sees in a sample of images: features, nearest neighbors, a map in two dimensions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.analysis import collect, knn
from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import unit_images
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources import subset
from simclr_tf.data.sources.source import Source
from simclr_tf.models import means
from simclr_tf.models.network import Network, fingerprint, layers

THUMBNAIL = 48
_PRINCIPAL = 50  # Number of principal components that t-SNE and UMAP start from.


class Seen(NamedTuple):
    """A sample of images and a network's outputs for them.

    Attributes:
      names: [N], names of the images.
      labels: [N] int, -1 where unknown.
      features: [N, D] float32, the encoder's output.
      thumbnails: [N, T, T, 3] uint8.
      logits: [N, classes] float32, or None without a classifier.
    """

    names: list[str]
    labels: np.ndarray
    features: np.ndarray
    thumbnails: np.ndarray
    logits: np.ndarray | None


def look(
    strategy: tf.distribute.Strategy,
    network: Network,
    source: Source,
    *,
    image_size: int,
    max_images: int,
    batch_size: int,
    max_bad_images: int,
) -> Seen:
    """Runs a network over a sample of a source's images, with the evaluation's crop."""
    sample = subset.sample(source, max_images)
    thumbnail = min(THUMBNAIL, image_size)

    def compute(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        images = unit_images(batch["image"])
        outputs = network.outputs(images, training=False)
        small = tf.image.resize(images, [thumbnail, thumbnail], method="area") if thumbnail < image_size else images
        seen = {
            "features": tf.cast(outputs["final_avg_pool"], tf.float32),
            "thumbnail": tf.cast(tf.round(small * 255), tf.uint8),
        }
        if network.classifier is not None:
            logits = network.classifier(outputs[f"head_layer_{network.classifier_layer}"])
            seen["logits"] = tf.cast(logits, tf.float32)
        return seen

    rows = collect.collect(
        strategy, Input(sample, central(image_size)), compute, batch_size=batch_size, max_bad_images=max_bad_images
    )
    ids = sample.example_ids
    names = [str(ids[i]) for i in rows["index"]]
    return Seen(names, rows["label"], rows["features"], rows["thumbnail"], rows.get("logits"))


def nearest(features: np.ndarray, queries: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest neighbors of some images among all others.

    Args:
      features: [N, D].
      queries: [Q] indices of images.
      count: number of neighbors of each query, at most N - 1.

    Returns:
      [Q, count] indices of images, the most similar first, and [Q, count] cosine similarities.
    """
    unit = knn.normalize(features)
    similarity = unit[np.asarray(queries)] @ unit.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    count = min(count, len(unit) - 1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(similarity, order, axis=1)


def choose_queries(labels: np.ndarray, count: int) -> list[int]:
    """Chooses `count` images to show: from each class in turn, or evenly spaced if no image has a label."""
    known = [label for label in np.unique(labels) if label >= 0]
    if not known:
        return sorted({int(i) for i in np.linspace(0, len(labels) - 1, min(count, len(labels)))})
    queries: list[int] = []
    rounds = 0
    while len(queries) < min(count, int(np.sum(labels >= 0))):
        for label in known:
            rows = np.flatnonzero(labels == label)
            if rounds < len(rows) and len(queries) < count:
                queries.append(int(rows[rounds]))
        rounds += 1
    return queries


def principal_components(features: np.ndarray, count: int) -> np.ndarray:
    """Projects features onto their principal components.

    Args:
      features: [N, D].
      count: number of components.

    Returns:
      [N, count] float64; surplus columns are 0 if there are fewer components.
    """
    centered = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    directions = directions[:count]
    # The SVD leaves signs open. Fixing them makes maps repeatable: each direction's largest entry is positive.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    projected = centered @ (directions * signs[:, None]).T
    return np.pad(projected, ((0, 0), (0, count - projected.shape[1])))


def _tsne(features: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(features) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def _umap(features: np.ndarray) -> np.ndarray:
    from umap import UMAP

    return UMAP(n_neighbors=min(15, len(features) - 1), random_state=0, n_jobs=1).fit_transform(features)


class _Kind(NamedTuple):
    title: str
    package: str  # Module to import; "" for none.
    install: str
    compute: Callable[[np.ndarray], np.ndarray]


_KINDS = {
    "umap": _Kind("UMAP", "umap", "umap-learn", _umap),
    "tsne": _Kind("t-SNE", "sklearn", "scikit-learn", _tsne),
    "pca": _Kind("PCA", "", "", lambda features: principal_components(features, 2)),
}


def check_map(kind: str) -> None:
    """Raises a UserError if a kind of map is unknown or needs a package that is not installed."""
    checks.choice("report.map", kind, ("auto", *_KINDS))
    if kind != "auto" and not _installed(_KINDS[kind]):
        install = _KINDS[kind].install
        raise UserError(
            f"report.map is {kind!r} and needs {install}, which is not installed; pip install {install}, or use 'pca'"
        )


def _installed(kind: _Kind) -> bool:
    return not kind.package or importlib.util.find_spec(kind.package) is not None


def flat(features: np.ndarray, kind: str) -> tuple[np.ndarray, str]:
    """Lays features out on a plane.

    Args:
      features: [N, D], N at least 2.
      kind: "umap", "tsne", "pca", or "auto" for t-SNE if scikit-learn is installed, else PCA.

    Returns:
      [N, 2] float64 positions, and a description of the method for readers.
    """
    check_map(kind)
    why = ""
    if kind == "auto":
        kind = "tsne" if _installed(_KINDS["tsne"]) else "pca"
        if kind == "pca":
            why = "; install scikit-learn for a t-SNE map"
    # Fewer points have no neighborhoods that these methods could preserve.
    if kind != "pca" and len(features) < 8:
        kind, why = "pca", "; there are too few images for another kind of map"
    unit = knn.normalize(features)
    if kind != "pca":
        unit = principal_components(unit, min(_PRINCIPAL, *unit.shape))
    points = np.asarray(_KINDS[kind].compute(unit), np.float64)
    return points, f"{_KINDS[kind].title} of the encoder's output, scaled to length 1{why}"


def check_layer(network: Network, layer: str, configurable: str) -> None:
    """Raises a UserError if a network has no such output."""
    checks.choice(f"{configurable}.layer", layer, layers(network))


def encoder_fingerprint(network: Network) -> str:
    """Returns a hash of all variables that vectors depend on: those of the encoder and the head."""
    parts = [part for name, part in network.parts().items() if name != "classifier"]
    return fingerprint([variable for part in parts for variable in part.variables])[:16]


def vector(network: Network, layer: str) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns a function from images in [0, 1] to `vector` [B, D] and, with a classifier, `probabilities` [B, C]."""

    def compute(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = network.outputs(images, training=False)
        columns = {"vector": tf.cast(means.flat(outputs[layer]), tf.float32)}
        if network.classifier is not None:
            logits = network.classifier(outputs[f"head_layer_{network.classifier_layer}"])
            columns["probabilities"] = tf.cast(tf.nn.softmax(logits), tf.float32)
        return columns

    return compute
