"""Decodes images of the common formats into RGB, by TensorFlow operations alone.

The size in the header is checked before anything is decoded, so that a small file cannot claim all memory.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

from simclr_tf.core.tf import tf

MAX_PIXELS = 2**27  # 134 million: larger than any camera's picture.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
READS_WEBP = hasattr(tf.io, "decode_webp")

_HEADER = 54  # Bytes of a BMP file's header.
_PNG_DEPTH = 24  # Byte of a PNG file that holds the bits per sample.
DEEP_START = _PNG_DEPTH + 1
_SIGNATURES = (
    ("JPEG", ((0, b"\xff\xd8\xff"),)),
    ("PNG", ((0, b"\x89PNG\r\n\x1a\n"),)),
    ("BMP", ((0, b"BM"),)),
    ("GIF", ((0, b"GIF8"),)),
    ("WebP", ((0, b"RIFF"), (8, b"WEBP"))),
)


def _require(encoded: tf.Tensor, condition: tf.Tensor, message: str) -> tf.Tensor:
    """Returns `encoded` after checking the condition; operations that use the result run after the check."""
    # A single operation, where an assertion of tf.debugging adds a dozen.
    check = tf.raw_ops.Assert(condition=condition, data=[message])
    with tf.control_dependencies([] if tf.executing_eagerly() else [check]):
        return tf.identity(encoded)


def _bytes(encoded: tf.Tensor, start: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    """Returns bytes of the file, [count] int64 in [0, 255]; fails beyond its end."""
    start, count = tf.cast(start, tf.int32), tf.cast(count, tf.int32)
    encoded = _require(encoded, start + count <= tf.strings.length(encoded), "the image's file ends early")
    return tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, start, count), tf.uint8), tf.int64)


def _number(values: tf.Tensor, *, big_endian: bool = False) -> tf.Tensor:
    """Joins bytes, [n] int64, into one unsigned number."""
    values = tf.reverse(values, [0]) if big_endian else values
    return tf.reduce_sum(values * 256 ** tf.range(tf.size(values, tf.int64), dtype=tf.int64))


def _format(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the row of `_SIGNATURES` that matches, or the number of rows if none does."""
    start = tf.strings.substr(encoded, 0, 12)
    start = tf.strings.substr(tf.strings.join([start, "\0" * 12]), 0, 12)
    found = tf.constant(len(_SIGNATURES))
    for row, (_, marks) in enumerate(_SIGNATURES):
        fits = tf.reduce_all([tf.equal(tf.strings.substr(start, at, len(mark)), mark) for at, mark in marks])
        found = tf.where(fits, row, found)
    return found


def _require_size(encoded: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns `encoded` after checking that its size is sensible."""
    height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    encoded = _require(encoded, tf.minimum(height, width) > 0, "the image's header gives a size of 0")
    # Two sides of 32 bits can overflow a signed 64-bit product, so each side is checked, too.
    few = (height <= MAX_PIXELS) & (width <= MAX_PIXELS) & (height * width <= MAX_PIXELS)
    return _require(encoded, few, f"the image has over {MAX_PIXELS} pixels")


def _jpeg(encoded: tf.Tensor) -> tf.Tensor:
    shape = tf.image.extract_jpeg_shape(encoded, tf.int64)
    return tf.io.decode_jpeg(_require_size(encoded, shape[0], shape[1]), channels=3)


def _png(encoded: tf.Tensor, bit_depth: int | None) -> tf.Tensor:
    header = _bytes(encoded, 0, 24)
    height, width = _number(header[20:24], big_endian=True), _number(header[16:20], big_endian=True)
    return png_pixels(_require_size(encoded, height, width), bit_depth)


def png_pixels(encoded: tf.Tensor, bit_depth: int | None = None) -> tf.Tensor:
    """Decodes a PNG file of sensible size into RGB.

    Args:
      encoded: scalar string, contents of the file.
      bit_depth: bits per sample that 16-bit files use, from 8 to 16; None for all of them.

    Returns:
      [H, W, 3] uint8; 16-bit samples are scaled so that the largest number of `bit_depth` bits becomes 255.
    """
    if bit_depth is None:
        return tf.io.decode_png(encoded, channels=3)
    largest = 2**bit_depth - 1

    def deep() -> tf.Tensor:
        samples = tf.cast(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16), tf.int32)
        return tf.cast((tf.minimum(samples, largest) * 255 + largest // 2) // largest, tf.uint8)

    is_deep = tf.equal(tf.strings.substr(encoded, _PNG_DEPTH, 1), b"\x10")
    return tf.cond(is_deep, deep, lambda: tf.io.decode_png(encoded, channels=3))


def has_deep_samples(start: bytes) -> bool:
    """Whether a file is a PNG with 16 bits per sample; `start` is its first `DEEP_START` bytes or more."""
    return start.startswith(_SIGNATURES[1][1][0][1]) and start[_PNG_DEPTH:DEEP_START] == b"\x10"


def png_header(height: int, width: int) -> bytes:
    """Returns the bytes with which every PNG file of this size begins."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


def _bmp(encoded: tf.Tensor) -> tf.Tensor:
    header = _bytes(encoded, 0, _HEADER)
    height = _number(header[22:26])
    height = tf.where(height >= 2**31, 2**32 - height, height)  # A negative height means rows from the top.
    encoded = _require_size(encoded, height, _number(header[18:22]))
    bits, compression = _number(header[28:30]), _number(header[30:34])
    plain = tf.equal(compression, 0) | (tf.equal(compression, 3) & tf.equal(bits, 32))
    encoded = _require(encoded, plain, "compressed BMP files cannot be read")
    image = tf.io.decode_bmp(encoded, channels=0)

    def colors() -> tf.Tensor:
        count = _number(header[46:50])
        count = tf.where(tf.equal(count, 0), tf.constant(256, tf.int64), tf.minimum(count, 256))
        palette = tf.reshape(_bytes(encoded, 14 + _number(header[14:18]), 4 * count), [-1, 4])
        return tf.gather(tf.cast(palette[:, 2::-1], tf.uint8), tf.cast(image[..., 0], tf.int32))

    return tf.cond(tf.equal(tf.shape(image)[-1], 1), colors, lambda: image[..., :3])


def _gif(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame. The file is cut after it, since the decoder would unpack all frames."""

    def table(flags: tf.Tensor) -> tf.Tensor:
        size = 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8)
        return tf.cast(tf.where(flags >= 128, size, 0), tf.int32)

    def after_sub_blocks(at: tf.Tensor) -> tf.Tensor:
        def step(at: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            size = tf.cast(_bytes(encoded, at, 1)[0], tf.int32)
            return at + 1 + size, size > 0

        return tf.while_loop(lambda _, more: more, step, (at, tf.constant(True)))[0]

    screen = _bytes(encoded, 0, 13)
    encoded = _require_size(encoded, _number(screen[8:10]), _number(screen[6:8]))
    extension, descriptor = 0x21, 0x2C
    at = tf.while_loop(
        lambda at: tf.equal(_bytes(encoded, at, 1)[0], extension),
        lambda at: (after_sub_blocks(at + 2),),
        (13 + table(screen[10]),),
    )[0]
    frame = _bytes(encoded, at, 10)
    encoded = _require(encoded, tf.equal(frame[0], descriptor), "the GIF file has no image")
    encoded = _require_size(encoded, _number(frame[7:9]), _number(frame[5:7]))
    end = after_sub_blocks(at + 10 + table(frame[9]) + 1)
    return tf.io.decode_gif(tf.strings.join([tf.strings.substr(encoded, 0, end), b"\x3b"]))[0]


def _webp(encoded: tf.Tensor) -> tf.Tensor:
    if not READS_WEBP:
        return _refuse(encoded, f"TensorFlow {tf.__version__} cannot read WebP")
    # Lossy, lossless and extended files each store the size in a different place.
    header = _bytes(encoded, 0, 30)
    bits = _number(header[21:25])
    extended = (1 + _number(header[24:27]), 1 + _number(header[27:30]))
    lossless = (1 + bits % 2**14, 1 + bits // 2**14 % 2**14)
    lossy = (_number(header[26:28]) % 2**14, _number(header[28:30]) % 2**14)
    kind = header[15]
    sizes = tf.where(tf.equal(kind, ord("X")), extended, tf.where(tf.equal(kind, ord("L")), lossless, lossy))
    encoded = _require_size(encoded, sizes[1], sizes[0])
    animated = tf.equal(kind, ord("X")) & tf.equal(header[20] // 2 % 2, 1)
    encoded = _require(encoded, ~animated, "animated WebP files cannot be read")
    return tf.io.decode_webp(encoded, channels=3)[0]


def _refuse(encoded: tf.Tensor, message: str) -> tf.Tensor:
    return tf.io.decode_png(_require(encoded, tf.constant(False), message), channels=3)


def _unknown(encoded: tf.Tensor) -> tf.Tensor:
    return _refuse(encoded, "it is not a JPEG, PNG, BMP, GIF or WebP image")


def decode(encoded: tf.Tensor, bit_depth: int | None = None) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP or GIF image, or WebP where TensorFlow can.

    JPEG includes CMYK and PNG includes 16-bit samples; of a GIF the first frame is taken. Gray becomes RGB,
    transparency is dropped.

    Args:
      encoded: scalar string, contents of the file.
      bit_depth: bits in use of 16-bit samples; see `png_pixels`.

    Returns:
      [H, W, 3] uint8.

    Raises:
      tf.errors.InvalidArgumentError: if the file is not an image, is damaged, or has over `MAX_PIXELS` pixels.
    """
    png = functools.partial(_png, bit_depth=bit_depth)
    branches = [_jpeg, png, _bmp, _gif, _webp, _unknown]

    def branch(function):
        def call() -> tf.Tensor:
            image = function(encoded)
            image.set_shape([None, None, 3])
            return image

        return call

    image = tf.switch_case(_format(encoded), [branch(function) for function in branches])
    return tf.ensure_shape(image, [None, None, 3])


def plain(function: Callable) -> Callable:
    """Keeps AutoGraph away from a function that a data set maps: it finds nothing to convert, but searching is slow."""
    return tf.autograph.experimental.do_not_convert(function)


def try_decode(
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    index: tf.Tensor,
    *,
    bit_depth: int | None = None,
    read_may_fail: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Reads and decodes one example, and returns a placeholder if that fails.

    TensorFlow has no operation that catches an error, but a data set of one element can drop it. Only reading and
    decoding happen inside that data set, so that no other error is hidden.

    Args:
      read: function that takes an example's number and returns the encoded image and its label.
      index: scalar int64, number of the example.
      bit_depth: bits in use of 16-bit samples; see `png_pixels`.
      read_may_fail: whether errors of `read` are caught, too, or only those of decoding.

    Returns:
      [H, W, 3] uint8, the label (int32) and True; on failure one black pixel, -1 and False.
    """

    def attempt(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return decode(encoded, bit_depth), tf.ensure_shape(label, []), tf.constant(True)

    nothing = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(-1), tf.constant(False))
    if read_may_fail:
        tried = tf.data.Dataset.from_tensors(index).map(plain(lambda index: attempt(*read(index))))
    else:
        tried = tf.data.Dataset.from_tensors(read(index)).map(plain(attempt))
    tried = tried.ignore_errors()
    image, label, sound = tried.concatenate(tf.data.Dataset.from_tensors(nothing)).take(1).get_single_element()
    return tf.ensure_shape(image, [None, None, 3]), label, sound


def unit_images(images: tf.Tensor) -> tf.Tensor:
    """Converts images to float32 in [0, 1], from uint8 or from floating values that are already in [0, 1]."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) * (1.0 / 255.0)
    if images.dtype.is_floating:
        return tf.cast(images, tf.float32)
    raise ValueError(f"images have to be uint8 or floating, got {images.dtype.name}")
