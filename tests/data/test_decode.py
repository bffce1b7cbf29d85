"""Decoding pictures of all kinds, against Pillow; what is refused, and why."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from simclr_tf.analysis import training_views
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data import decode as module
from simclr_tf.data.dataset import Data
from simclr_tf.data.decode import decode, png_header, try_decode
from simclr_tf.data.host_crops import central, preprocess
from simclr_tf.data.pipeline import eval_dataset, train_dataset
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import reason
from simclr_tf.data.sources.subset import Subset

Image = pytest.importorskip("PIL.Image")
XRAY = Path(__file__).parents[3] / "shared" / "cases" / "xray12"


def smooth(height=40, width=56, channels=3) -> np.ndarray:
    """A picture that JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 100 * np.sin(x / 9 + 2 * c) * np.cos(y / (7 + c)) for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def save(image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def picture(mode: str):
    """A Pillow image of a mode."""
    if mode == "RGBA":
        return Image.fromarray(np.concatenate([smooth(), np.full((40, 56, 1), 99, np.uint8)], axis=-1))
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(smooth()[..., 0]), Image.new("L", (56, 40), 7)])
    if mode == "I;16":
        return Image.fromarray(smooth()[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(smooth()).convert(mode)


CASES = [
    ("PNG", "RGB", {}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "1", {}),
    ("PNG", "I;16", {}), ("BMP", "RGB", {}), ("BMP", "L", {}), ("BMP", "P", {}), ("BMP", "RGBA", {}),
    ("GIF", "P", {}), ("GIF", "L", {}),
    ("JPEG", "RGB", {"quality": 95}), ("JPEG", "L", {"quality": 95}), ("JPEG", "CMYK", {"quality": 95}),
    ("JPEG", "RGB", {"quality": 95, "progressive": True}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode", "settings"), CASES)
def test_pictures_are_what_pillow_sees(kind, mode, settings):
    image = picture(mode)
    encoded = save(image, kind, **settings)
    decoded = decode(tf.constant(encoded))
    assert decoded.dtype == tf.uint8 and decoded.shape == (40, 56, 3)
    if mode == "I;16":
        expected = np.repeat(smooth()[..., :1], 3, axis=-1)
    elif mode == "RGBA":
        expected = smooth()  # Transparency is dropped, not painted over anything.
    elif mode == "LA":
        expected = np.repeat(smooth()[..., :1], 3, axis=-1)
    else:
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    difference = np.abs(decoded.numpy().astype(int) - expected)
    # Decoders of JPEG differ in their arithmetic, by more where four colors become three.
    assert difference.max() <= (0 if kind != "JPEG" else 12)
    assert difference.mean() < 2


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)).convert("P") for value in (10, 100, 200)]
    encoded = save(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, comment=b"x" * 700, loop=0)
    with Image.open(io.BytesIO(encoded)) as file:
        assert file.n_frames == 3
        expected = np.asarray(file.convert("RGB"))
    decoded = decode(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(decoded, expected)
    # What comes behind the first frame is not even looked at.
    end = encoded.index(b"\x21\xf9", encoded.index(b"\x2c") + 1)
    np.testing.assert_array_equal(decode(tf.constant(encoded[:end] + b"rubbish")).numpy(), decoded)


def bomb_png(side: int) -> bytes:
    """A file of some hundred bytes that claims to be side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b""
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return b"\x89PNG\r\n\x1a\n" + chunks


def bomb_jpeg() -> bytes:
    encoded = bytearray(save(picture("RGB"), "JPEG"))
    start = encoded.index(b"\xff\xc0")
    encoded[start + 5 : start + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(encoded)


def bomb_gif(where: str) -> bytes:
    encoded = bytearray(save(picture("P"), "GIF"))
    start = 6 if where == "screen" else encoded.index(b"\x2c\0\0\0\0") + 5
    encoded[start : start + 4] = struct.pack("<HH", 65000, 65000)
    return bytes(encoded)


def bomb_bmp() -> bytes:
    encoded = bytearray(save(picture("RGB"), "BMP"))
    encoded[18:26] = struct.pack("<ii", 2**30, -(2**30))
    return bytes(encoded)


@pytest.mark.parametrize(
    "encoded",
    [bomb_png(60000), bomb_png(2**31 - 1), bomb_jpeg(), bomb_gif("screen"), bomb_gif("frame"), bomb_bmp()],
    ids=["png", "largest png", "jpeg", "gif screen", "gif frame", "bmp"],
)
def test_pictures_that_claim_too_many_pixels_are_not_decoded(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        decode(tf.constant(encoded))
    assert f"over {module.MAX_PIXELS} pixels" in reason(error.value)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "not a JPEG"),
        (b"hello, I am a text file", "not a JPEG"),
        (save(picture("RGB"), "TIFF"), "not a JPEG"),
        (save(picture("RGB"), "PNG")[:20], "ends early"),
        (save(picture("RGB"), "PNG")[:200], ""),
        (save(picture("RGB"), "JPEG")[:300], ""),
        (save(picture("P"), "GIF")[:900], "ends early"),
        (save(picture("RGB"), "BMP")[:100], ""),
        (b"\xff\xd8\xff" + b"\0" * 50, ""),
        (bomb_png(0), ""),
    ],
)  # fmt: skip
def test_what_is_no_picture_fails(encoded, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        decode(tf.constant(encoded))
    assert message in reason(error.value)
    assert "\n" not in reason(error.value)


@pytest.mark.skipif(not module.READS_WEBP, reason="this TensorFlow reads no WebP")
@pytest.mark.parametrize("settings", [{"lossless": True}, {"quality": 95}, {"lossless": True, "exif": b"Exif\0\0x"}])
def test_webp(settings):
    encoded = save(picture("RGB"), "WEBP", **settings)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    assert np.abs(decode(tf.constant(encoded)).numpy() - expected).max() <= 2


@pytest.mark.skipif(not module.READS_WEBP, reason="this TensorFlow reads no WebP")
def test_animated_webp_is_refused():
    encoded = save(picture("RGB"), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")])
    with pytest.raises(tf.errors.InvalidArgumentError, match="animated WebP"):
        decode(tf.constant(encoded))


@pytest.mark.skipif(module.READS_WEBP, reason="this TensorFlow reads WebP")
def test_webp_is_refused_by_name():
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot read WebP"):
        decode(tf.constant(b"RIFF\0\0\0\0WEBPVP8L" + b"\0" * 50))


def test_png_header():
    assert save(picture("RGB"), "PNG").startswith(png_header(40, 56))


def test_trying_goes_on_after_failures():
    files = [save(picture("RGB"), "PNG"), b"rubbish", save(picture("L"), "JPEG"), b""]

    def read(index):
        return tf.gather(tf.constant(files), index), tf.cast(index, tf.int32) + 5

    tried = tf.data.Dataset.range(4).map(lambda index: try_decode(read, index))
    shapes, labels, sound = zip(*((image.shape, label, fine) for image, label, fine in tried.as_numpy_iterator()))
    assert sound == (True, False, True, False)
    assert labels == (5, -1, 7, -1)
    assert shapes == ((40, 56, 3), (1, 1, 3), (40, 56, 3), (1, 1, 3))


def test_a_read_that_fails_is_no_bad_image_where_it_may_succeed_tomorrow():
    files = [save(picture("RGB"), "PNG"), b"rubbish"]

    def read(index):
        known = tf.raw_ops.Assert(condition=index < 2, data=["the bucket is away"])
        with tf.control_dependencies([known]):
            return tf.gather(tf.constant(files), index % 2), tf.constant(0)

    tried = iter(tf.data.Dataset.range(3).map(lambda index: try_decode(read, index, read_may_fail=False)))
    assert [bool(next(tried)[2]) for _ in range(2)] == [True, False]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the bucket is away"):
        next(tried)


# --- 16-bit files that hold fewer bits -------------------------------------------------------------------------------


def deep(largest: int, side: int = 24, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, largest + 1, (side, side))
    values[0, 0] = largest
    return values.astype(np.uint16)


@pytest.mark.parametrize("depth", [8, 10, 12, 15, 16])
def test_samples_of_fewer_bits_are_scaled(depth):
    values = deep(min(2**depth + 99, 65535))  # Noise above the range is clipped.
    largest = 2**depth - 1
    expected = np.rint(np.minimum(values, largest) * 255.0 / largest)[..., None]
    encoded = save(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decode(tf.constant(encoded), depth), np.repeat(expected, 3, axis=-1))
    for other in (save(picture("RGB"), "PNG"), save(picture("L"), "JPEG"), save(picture("P"), "PNG")):
        np.testing.assert_array_equal(decode(tf.constant(other), depth), decode(tf.constant(other)))


def xray(folder, largest=4095, count=12, side=24):
    for i in range(count):
        os.makedirs(folder / "ab"[i % 2], exist_ok=True)
        Image.fromarray(deep(largest, side, i)).save(folder / "ab"[i % 2] / f"{i}.PNG")
    return f"folder:{folder}"


@pytest.mark.parametrize(("largest", "depth"), [(255, 8), (900, 10), (4000, 12), (16383, 14), (30000, None)])
def test_dark_files_are_noticed_and_told(tmp_path, largest, depth):
    remarks = [line for line in open_source(xray(tmp_path, largest), "all").remarks if "16-bit" in line]
    assert len(remarks) == (depth is not None)
    if depth:
        assert f"end at {largest} " in remarks[0] and f"Data.bit_depth={depth} for values" in remarks[0]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(encoded_start := save(Image.fromarray(deep(9)), "PNG")[:30])
    assert len(encoded_start) == 30 and open_source(f"folder:{tmp_path}/broken", "all").remarks == ()


@pytest.mark.parametrize("side", [24, 300])  # In memory, or read when they are asked for.
def test_a_bit_depth_holds_wherever_images_are_decoded(tmp_path, side):
    source = Data(xray(tmp_path, side=side), image_size=8, bit_depth=12).open("all")
    assert not source.remarks
    whole = Subset(source, np.arange(12), "all of it")
    settings = {"global_batch_size": 4, "per_replica_batch_size": 4, "seed": 0, "num_steps": 1}
    batch = next(iter(train_dataset(whole, central(8), **settings)))
    measured = next(iter(eval_dataset(whole, central(8), batch_size=12, per_replica_batch_size=12)))
    encoded = [source.read(tf.constant(i, tf.int64))[0] for i in range(12)]
    served = (preprocess(tf.stack(encoded), 8, 12).numpy() * 255).round()
    np.testing.assert_allclose(measured["image"], served, atol=1)
    np.testing.assert_allclose(batch["image"], served[batch["index"].numpy()], atol=1)
    np.testing.assert_array_equal(training_views.original(whole, 3), decode(encoded[3], 12))
    assert 100 < served.mean() < 150 and preprocess(tf.stack(encoded), 8).numpy().max() < 0.1


@pytest.mark.skipif(not XRAY.exists(), reason="needs ../shared")
def test_shared_xrays_become_visible():
    remark = open_source(f"folder:{XRAY}", "all").remarks[-1]
    depth = int(re.search(r"bit_depth=(\d+)", remark)[1])
    source = Data(f"folder:{XRAY}", bit_depth=depth).open("all")
    assert depth == 12 and source.resident().images.mean() > 30


@pytest.mark.parametrize("depth", [7, 17, "12", 12.5, True])
def test_impossible_bit_depths_are_refused(depth):
    with pytest.raises(UserError, match="Data.bit_depth is "):
        Data(bit_depth=depth)
