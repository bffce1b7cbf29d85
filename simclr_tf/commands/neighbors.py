"""`--mode=neighbors`: finds the images most like a given one in a file of vectors."""

from __future__ import annotations

import os

import numpy as np

from simclr_tf.analysis import contact_sheet, knn
from simclr_tf.analysis.features import encoder_fingerprint, vector
from simclr_tf.commands import vector_files
from simclr_tf.core import checks
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.files import write_bytes
from simclr_tf.core.precision import resolve_precision
from simclr_tf.core.tf import tf
from simclr_tf.data.host_crops import preprocess
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import Source
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir.networks import load_network


def run_neighbors(context: RunContext, num_neighbors: int = 8, cell_pixels: int = 128) -> dict[str, list[dict]]:
    """Finds the images whose vectors are most similar (by cosine) to those of `context.queries`.

    Prints them and draws a contact sheet with one row for each query.

    Args:
      context: The run's context. `source` is a file that `--mode=embed` wrote. Each of `queries` is an image file, or
        the name of an image in that file. `output` is the picture, None for `neighbors.png` in the workdir. `workdir`
        is the run that made the vectors; its network also computes those of image files.
      num_neighbors: The number of neighbors of each query, not counting the query itself.
      cell_pixels: The side of each image on the sheet, in pixels.

    Returns:
      Query -> rows of `name` and `similarity` (in [-1, 1]), the most similar first.

    Raises:
      UserError: A file cannot be read or used, or a setting makes no sense.
    """
    checks.whole("neighbors.num_neighbors", num_neighbors, hint=", such as 8")
    checks.whole("neighbors.cell_pixels", cell_pixels, **contact_sheet.CELL_PIXELS)
    output = context.output or os.path.join(context.workdir, "neighbors.png")
    if not output.lower().endswith(".png"):
        raise UsageError(f"--output={output} is not a PNG file; give a name that ends in .png")
    found = vector_files.read(context.source, "--source")
    bank = knn.normalize(found.columns["vector"])
    rows = {name: row for row, name in enumerate(found.names)}
    encoded = {query: _read(query) for query in context.queries if query not in rows}
    file_vectors = _file_vectors(context, found, encoded) if encoded else {}
    context.settings.check_read()
    if context.dry_run:
        context.say(f"neighbors: would compare {len(context.queries)} image(s) with {len(bank)} of {context.source}")
        return {}

    answers: dict[str, list[dict]] = {}
    for query in context.queries:
        similarity = bank @ (bank[rows[query]] if query in rows else file_vectors[query])
        if query in rows:
            similarity[rows[query]] = -np.inf
        nearest = np.argsort(-similarity, kind="stable")[: min(num_neighbors, len(bank) - (query in rows))]
        answers[query] = [{"name": found.names[row], "similarity": round(float(similarity[row]), 6)} for row in nearest]
        context.say(f"neighbors of {query}")
        for answer in answers[query]:
            context.say(f"  {answer['similarity']:7.4f}  {answer['name']}")
    if context.is_chief:
        _draw(context, found, answers, encoded, output, cell_pixels)
    return answers


def _read(path: str) -> bytes:
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise UserError(f"--query={path} is neither a file nor the name of an image in --source; give one of the two")
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _file_vectors(context: RunContext, found: vector_files.Vectors, encoded: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Computes the normalized vectors of image files with the network that made `found`."""
    details = found.details
    with context.strategy.scope():
        network, _, path = load_network(
            context.workdir, precision=resolve_precision(details.get("precision", "float32"))
        )
    if encoder_fingerprint(network) != details.get("network"):
        raise UserError(
            f"the vectors in --source={context.source} were made by {details.get('checkpoint')}, not by the network "
            f"{path}; give the --workdir that made them, or run --mode=embed again"
        )
    compute = tf.function(vector(network, details["layer"]), autograph=False)
    made = {}
    for query, content in encoded.items():
        try:
            images = preprocess(tf.constant([content]), details["image_size"], details.get("bit_depth"))
        except tf.errors.OpError:
            raise UserError(f"--query={query} cannot be read as an image; give a JPEG, PNG, BMP or GIF file") from None
        made[query] = knn.normalize(compute(images)["vector"].numpy())[0]
    return made


def _draw(
    context: RunContext,
    found: vector_files.Vectors,
    answers: dict[str, list[dict]],
    encoded: dict[str, bytes],
    output: str,
    cell_pixels: int,
) -> None:
    details = found.details
    try:
        source = open_source(
            details.get("source", ""), details.get("split", "all"), context.data_dir, bit_depth=details.get("bit_depth")
        )
    except UserError as error:
        print(f"  no contact sheet, since the images cannot be opened: {error}")
        return
    index_of = {name: i for i, name in enumerate(source.example_ids)}
    sheet = []
    for query, rows in answers.items():
        pixels = (
            source.decode(tf.constant(encoded[query])).numpy() if query in encoded else _pixels(source, index_of, query)
        )
        cells = [contact_sheet.Cell(pixels, os.path.basename(query), (200, 30, 30))]
        for row in rows:
            caption = f"{row['similarity']:.2f} {os.path.basename(row['name'])}"
            cells.append(contact_sheet.Cell(_pixels(source, index_of, row["name"]), caption))
        sheet.append(cells)
    columns = ["query", *(str(i + 1) for i in range(max(len(cells) for cells in sheet) - 1))]
    picture = contact_sheet.draw(sheet, columns=columns, title="Nearest by cosine similarity", cell_pixels=cell_pixels)
    write_bytes(output, contact_sheet.png(picture))
    print(f"  contact sheet in {output}")


def _pixels(source: Source, index_of: dict[str, int], name: str) -> np.ndarray:
    """Returns an image's pixels, or a gray square if it is gone."""
    if name in index_of:
        try:
            resident = source.resident()
            if resident is not None:
                return resident.images[index_of[name]]
            return source.decode(source.read(tf.constant(index_of[name], tf.int64))[0]).numpy()
        except tf.errors.OpError:
            pass
    return np.full([8, 8, 3], 200, np.uint8)
