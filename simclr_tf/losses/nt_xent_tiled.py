"""One direction of NT-Xent without its similarity matrix: tile by tile, with a running log-sum-exp.

The forward pass keeps three numbers per query; the backward pass computes each tile's similarities again (as Milakov &
Gimelshein 2018 do for softmax and Dao et al. 2022 for attention). Values and gradients differ from those of the whole
matrix only in the order of summation.
"""

from __future__ import annotations

from typing import NamedTuple

from simclr_tf.core.tf import tf

# Similarity of a masked candidate. Its exp() is exactly 0 in every type, and unlike with minus infinity the difference
# of two of them is a number.
MASKED = -1e9
# Size limit of one tile of similarities; a few tensors of this size are alive at a time.
_TILE_BYTES = 2**23


class Scores(NamedTuple):
    """Summary of each query's similarities.

    Attributes:
      logsumexp: [B], the log-sum-exp of the similarities to all candidates that count.
      best: [B] int32, the index of the most similar candidate; the first of equals.
      mean: [B], the mean similarity under the softmax; `logsumexp - mean` is the softmax's entropy in nats.
    """

    logsumexp: tf.Tensor
    best: tf.Tensor
    mean: tf.Tensor


def tile_size(rows: int, candidates: int, itemsize: int) -> int:
    """Returns the number of candidates per tile: a power of two, at least 64, that keeps a tile within 8 MiB if any."""
    limit = max(64, min(_TILE_BYTES // (rows * itemsize), candidates))
    return 2 ** (limit.bit_length() - 1)


def scores(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    *,
    temperature: float,
    own: tf.Tensor | None = None,
    valid: tf.Tensor | int | None = None,
    details: bool = False,
    tile: int | None = None,
) -> Scores:
    """Scores candidates by their scalar products with each query, divided by the temperature.

    Args:
      queries: [B, D] float32 or float64, B known when traced.
      candidates: [C, D] of the same type, C known when traced.
      temperature: divisor of the scalar products.
      own: [B] int32, the index of a candidate to leave out for each query; None leaves out none.
      valid: number of candidates that count, the first ones; None for all. With 0, `logsumexp` is about -1e9.
      details: whether to compute `best` and `mean`; otherwise both are 0.
      tile: number of candidates per tile; None for `tile_size`.

    Returns:
      The scores. Gradients flow only through `logsumexp`, into queries and candidates.
    """
    rows, dim = queries.shape
    count = candidates.shape[0]
    tile = tile or tile_size(rows, count, queries.dtype.size)
    tiles = -(-count // tile)
    limit = tf.constant(count, tf.int32) if valid is None else tf.cast(valid, tf.int32)
    # Tiles need no mask when all are full and every candidate counts; `valid` may be known only when the step runs.
    bounded = valid is not None or count % tile != 0
    masked = tf.constant(MASKED, queries.dtype)

    def similarities(scaled: tf.Tensor, padded: tf.Tensor, i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns tile i of the candidates, [tile, D], and its similarities, [B, tile]."""
        part = tf.slice(padded, [i * tile, 0], [tile, dim])
        logits = tf.matmul(scaled, part, transpose_b=True)
        columns = i * tile + tf.range(tile)
        if bounded:
            logits = tf.where((columns < limit)[None], logits, masked)
        if own is not None:
            logits = tf.where(columns[None] == own[:, None], masked, logits)
        return part, logits

    def pad(values: tf.Tensor) -> tf.Tensor:
        return tf.pad(values, [[0, tiles * tile - count], [0, 0]]) if tiles * tile > count else values

    def loop(body, state):
        # One tile at a time: parallel iterations would each hold a tile in memory.
        state = tf.while_loop(
            lambda i, *_: i < tiles,
            lambda i, *values: (i + 1, *body(i, *values)),
            (tf.constant(0), *state),
            parallel_iterations=1,
            maximum_iterations=tiles,
        )
        return state[1:]

    def forward(queries: tf.Tensor, candidates: tf.Tensor) -> Scores:
        scaled, padded = queries / temperature, pad(candidates)

        def body(i, highest, total, best, weighted):
            _, logits = similarities(scaled, padded, i)
            peak = tf.reduce_max(logits, axis=1)
            # Sums are relative to the highest similarity so far, so that exp() cannot overflow.
            new = tf.maximum(highest, peak)
            rescale = tf.exp(highest - new)
            weights = tf.exp(logits - new[:, None])
            if details:
                index = i * tile + tf.argmax(logits, axis=1, output_type=tf.int32)
                best = tf.where(peak > highest, index, best)
                weighted = weighted * rescale + tf.reduce_sum(weights * logits, axis=1)
            return new, total * rescale + tf.reduce_sum(weights, axis=1), best, weighted

        zeros = tf.zeros([rows], queries.dtype)
        # The running maximum starts below every similarity, `MASKED` included.
        state = (zeros + 2 * masked, zeros, tf.zeros([rows], tf.int32), zeros)
        highest, total, best, weighted = loop(body, state)
        return Scores(highest + tf.math.log(total), best, weighted / total)

    def backward(queries, candidates, logsumexp, upstream):
        scaled, padded = queries / temperature, pad(candidates)
        weighted = upstream[:, None] * scaled

        def body(i, query_gradients, candidate_gradients):
            part, logits = similarities(scaled, padded, i)
            weights = tf.exp(logits - logsumexp[:, None])
            candidate_gradients = candidate_gradients.write(i, tf.matmul(weights, weighted, transpose_a=True))
            return query_gradients + tf.matmul(weights, part), candidate_gradients

        tensors = tf.TensorArray(queries.dtype, size=tiles, element_shape=[tile, dim])
        query_gradients, candidate_gradients = loop(body, (tf.zeros_like(queries), tensors))
        candidate_gradients = tf.reshape(candidate_gradients.stack(), [tiles * tile, dim])[:count]
        return upstream[:, None] * query_gradients / temperature, candidate_gradients

    # TensorFlow's own gradient of the loop would keep every tile in memory.
    found = Scores(*map(tf.stop_gradient, forward(tf.stop_gradient(queries), tf.stop_gradient(candidates))))

    @tf.custom_gradient
    def attach(queries, candidates):
        return tf.identity(found.logsumexp), lambda upstream: backward(queries, candidates, found.logsumexp, upstream)

    return found._replace(logsumexp=attach(queries, candidates))
