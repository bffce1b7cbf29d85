"""Batches: what is in them, where runs restart, how shards divide them; unreadable images; evaluation."""

from __future__ import annotations

import io

import numpy as np
import pytest

from simclr_tf.core import randomness
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.crop import bicubic_weights, crop_and_resize, random_crop_box, resize
from simclr_tf.data.host_crops import central, one_crop, two_crops
from simclr_tf.data.pipeline import eval_dataset, train_dataset
from simclr_tf.data.sources.source import Resident, Source

Image = pytest.importorskip("PIL.Image")

AUGMENT = Augment()
COUNT = 41


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """A picture of blobs, each of its own."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


class Files(Source):
    """PNG files in memory, of one size or several, some of them broken."""

    name = "files"
    class_names = ("a", "b", "c")

    def __init__(self, count=COUNT, size=None, broken=(), in_memory=False, may_fail=True):
        self.num_examples, self.may_fail = count, may_fail
        self.pictures = [noise(i, *(size or (20 + i % 7, 40 - i % 5))) for i in range(count)]
        self.broken, self._in_memory = set(broken), in_memory
        files = []
        for i, picture in enumerate(self.pictures):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files.append(b"broken" if i in self.broken else file.getvalue())
        self._files = tf.constant(files)
        self._labels = (np.arange(count) % 3).astype(np.int32)

    @property
    def labels(self):
        return self._labels

    @property
    def example_ids(self):
        return [f"folder/{i}.png" for i in range(self.num_examples)]

    def read(self, index):
        return tf.gather(self._files, index), tf.gather(tf.constant(self._labels), index)

    def resident(self):
        if not self._in_memory:
            return None
        readable = np.array([i not in self.broken for i in range(self.num_examples)])
        images = np.stack(self.pictures) * readable[:, None, None, None].astype(np.uint8)
        return Resident(images, self._labels, readable)


# The three ways an image can take: decoded each time, kept decoded, kept decoded and cropped in batches.
WAYS = {
    "read": {"size": None},
    "kept": {"size": (70, 66), "in_memory": True},
    "kept, in batches": {"size": (20, 24), "in_memory": True},
}


def batches(
    source, prepare=None, *, steps=4, batch=12, replica=None, seed=5, first=0, shard=0, shards=1, bad=None, **other
):
    dataset = train_dataset(
        source,
        prepare or two_crops(16, AUGMENT.crop_box),
        global_batch_size=batch,
        per_replica_batch_size=replica or batch,
        seed=seed,
        first_step=first,
        num_steps=steps - first,
        shard_index=shard,
        num_shards=shards,
        bad_images=bad,
        **other,
    )
    return list(dataset.as_numpy_iterator())


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module", params=WAYS)
def source(request):
    return Files(**WAYS[request.param])


@pytest.fixture(scope="module")
def run(source):
    """Some three epochs in one go."""
    return batches(source, steps=11)


def test_batches_are_what_the_seed_says(source, run):
    assert_equal(run, batches(source, steps=11))
    assert [sorted(batch) for batch in run] == [["index", "label", "view_1", "view_2"]] * 11
    for batch in run:
        assert batch["view_1"].shape == batch["view_2"].shape == (12, 16, 16, 3)
        assert (
            batch["view_1"].dtype == np.uint8 and batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64
        )
        np.testing.assert_array_equal(batch["label"], batch["index"] % COUNT % 3)
        assert (batch["view_1"] != batch["view_2"]).any()


def test_each_example_comes_once_an_epoch(run):
    index = np.concatenate([batch["index"] for batch in run])[: 3 * COUNT].reshape(3, COUNT) % COUNT
    for epoch in index:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))


def test_a_restart_goes_on_as_if_nothing_had_happened(source, run):
    assert_equal(batches(source, steps=11, first=4), run[4:])


@pytest.mark.parametrize(("shards", "replicas"), [(1, 3), (2, 4)])
def test_shards_make_up_the_global_batch(source, run, shards, replicas):
    each = 12 // replicas
    local = replicas // shards
    parts = [batches(source, steps=3, replica=each, shard=i, shards=shards) for i in range(shards)]
    for step, batch in enumerate(run[:3]):
        for replica in range(replicas):
            part = parts[replica // local][step * local + replica % local]
            rows = slice(replica * each, (replica + 1) * each)
            for name, value in batch.items():
                np.testing.assert_array_equal(part[name], value[rows])


def test_crops_are_those_of_the_augmentation(source, run):
    """Against the whole computation by hand, from (seed, step, example) alone."""
    batch = run[2]
    for row, index in enumerate(batch["index"]):
        picture = source.pictures[index % COUNT]
        seed = randomness.example_seed(5, randomness.stream("host crop"), 2, index)
        for name in ("view_1", "view_2"):
            own = randomness.fold_in(seed, randomness.stream(f"crop {name}"))
            y, x, h, w = (int(part) for part in random_crop_box(own, *picture.shape[:2]))
            expected = resize(tf.constant(picture[y : y + h, x : x + w]), 16).numpy().astype(int)
            assert np.abs(batch[name][row] - expected).max() <= 1


def test_a_prepared_image_is_the_pipelines(source):
    prepare = one_crop(16, AUGMENT.crop_box)
    batch = batches(source, prepare, steps=1)[0]
    for row in (0, 7):
        index = int(batch["index"][row])
        seed = randomness.example_seed(5, randomness.stream("host crop"), 0, index)
        alone = prepare(source.pictures[index], seed)
        assert list(alone) == ["image"]
        assert np.abs(alone["image"].numpy().astype(int) - batch["image"][row]).max() <= 1


@pytest.mark.parametrize("other", [{"seed": 6}, {"stream_name": "labelled"}])
def test_another_seed_or_stream_is_another_order_with_other_crops(other):
    source = Files(**WAYS["kept, in batches"])
    one, two = batches(source, batch=COUNT, steps=2), batches(source, batch=COUNT, steps=2, **other)
    assert np.mean([(a["index"] != b["index"]).mean() for a, b in zip(one, two)]) > 0.8
    same = [
        a["view_1"][a["index"] == i] == b["view_1"][b["index"] == i] for a, b in zip(one, two) for i in range(COUNT)
    ]
    assert np.mean(same) < 0.1


def test_a_batch_larger_than_the_source_goes_round(source):
    """The copies of an image have numbers of their own, hence random numbers of their own."""
    for batch in batches(source, batch=100, steps=2):
        numbers = batch["index"]
        assert len(set(numbers)) == 100
        examples = numbers % COUNT
        assert np.bincount(examples).max() > 1
        views = batch["view_1"].reshape(100, -1)
        for example in range(COUNT):
            copies = views[examples == example]
            assert len(np.unique(copies, axis=0)) == len(copies)


def test_a_batch_that_does_not_divide_is_a_mistake():
    with pytest.raises(ValueError, match="does not divide"):
        batches(Files(), batch=10, replica=4)


def test_shapes_are_known_before_anything_runs(source):
    spec = train_dataset(
        source, two_crops(16, AUGMENT.crop_box), global_batch_size=4, per_replica_batch_size=2, seed=0, num_steps=1
    ).element_spec
    assert spec["view_1"].shape == (2, 16, 16, 3) and spec["label"].shape == (2,)


# Evaluation.


def evaluate(source, size=16, bad=None, batch=12, replica=None, shards=1):
    parts = [
        list(
            eval_dataset(
                source,
                central(size),
                batch_size=batch,
                per_replica_batch_size=replica or batch,
                shard_index=i,
                num_shards=shards,
                bad_images=bad,
            ).as_numpy_iterator()
        )
        for i in range(shards)
    ]
    assert len({len(part) for part in parts}) == 1
    return parts


@pytest.mark.parametrize(("replica", "shards"), [(12, 1), (3, 2)])
def test_evaluation_shows_each_image_once(source, replica, shards):
    parts = evaluate(source, replica=replica, shards=shards)
    found = [batch for part in parts for batch in part]
    assert {batch["image"].shape for batch in found} == {(replica, 16, 16, 3)}
    index = np.concatenate([batch["index"][batch["weight"] == 1] for batch in found])
    np.testing.assert_array_equal(np.sort(index), np.arange(COUNT))
    assert sum(batch["weight"].size for batch in found) == 48
    assert {float(weight) for batch in found for weight in batch["weight"]} == {0.0, 1.0}
    for batch in found:
        real = batch["weight"] == 1
        np.testing.assert_array_equal(batch["label"][real], batch["index"][real] % 3)


def test_evaluation_takes_the_central_crop_exactly(source):
    for batch in evaluate(source)[0]:
        for image, index, weight in zip(batch["image"], batch["index"], batch["weight"]):
            if weight:
                picture = source.pictures[index]
                side = min(picture.shape[:2])
                y, x = ((length - side + 1) // 2 for length in picture.shape[:2])
                np.testing.assert_array_equal(image, resize(tf.constant(picture[y : y + side, x : x + side]), 16))


def test_larger_evaluation_images_lose_an_eighth():
    source = Files(3, size=(100, 80))
    image = evaluate(source, size=40, batch=3)[0][0]["image"]
    np.testing.assert_array_equal(image[1], resize(tf.constant(source.pictures[1][15:85, 5:75]), 40))


# Unreadable images.

BROKEN = (0, 7, 8, 23)


@pytest.fixture(scope="module", params=WAYS)
def damaged(request):
    return Files(**WAYS[request.param], broken=BROKEN)


def test_unreadable_images_are_replaced_the_same_way_each_time(damaged):
    bad = BadImages(10, damaged)
    found = batches(damaged, steps=8, bad=bad)
    assert bad.count == len(BROKEN)
    assert set(bad.names) == {f"folder/{i}.png" for i in BROKEN}
    bad.check()
    assert_equal(found[5:], batches(damaged, steps=8, first=5, bad=BadImages(10, damaged)))
    index = np.concatenate([batch["index"] for batch in found]) % COUNT
    assert not set(index) & set(BROKEN)
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in found]), index % 3)
    sound = batches(Files(COUNT, size=damaged.pictures[0].shape[:2] if damaged.resident() else None), steps=8)
    for batch, other in zip(found, sound):
        kept = ~np.isin(other["index"] % COUNT, BROKEN)
        np.testing.assert_array_equal(batch["index"][kept], other["index"][kept])
        # Cropping in batches rounds its own way.
        assert np.abs(batch["view_1"][kept].astype(int) - other["view_1"][kept]).max() <= 1
    for batch in found:
        assert batch["view_1"].reshape(12, -1).any(axis=1).all()


def test_too_many_unreadable_images_stop_the_run(damaged):
    bad = BadImages(2, damaged)
    with pytest.raises((UserError, tf.errors.OpError)):
        batches(damaged, steps=8, bad=bad)
    with pytest.raises(
        UserError, match=r"of files cannot be read, more than Data.max_bad_images = 2 \(folder/\d+.png: it is not a"
    ):
        bad.check()


def test_evaluation_leaves_unreadable_images_out_and_counts_them(damaged):
    bad = BadImages(4, damaged)
    found = [batch for part in evaluate(damaged, bad=bad, replica=4) for batch in part]
    index = np.concatenate([batch["index"][batch["weight"] == 1] for batch in found])
    np.testing.assert_array_equal(np.sort(index), np.setdiff1d(np.arange(COUNT), BROKEN))
    assert bad.count == 4
    bad.check()
    bad = BadImages(3, damaged)
    with pytest.raises((UserError, tf.errors.OpError)):
        evaluate(damaged, bad=bad)
    with pytest.raises(UserError, match="max_bad_images = 3"):
        bad.check()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_but_unreadable_images(way):
    source = Files(3, **WAYS[way], broken=(0, 1, 2))
    bad = BadImages(100, source)
    with pytest.raises((UserError, tf.errors.OpError)):
        batches(source, bad=bad)
    with pytest.raises(UserError, match="none of the 3 images of files can be read"):
        bad.check()


def test_without_a_count_the_first_unreadable_image_fails(damaged):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        batches(damaged, steps=8)


def test_errors_that_are_not_the_images_show():
    """Only reading and decoding may fail; a mistake in a crop is one."""

    def wrong_box(seed, height, width, *, draws=None):
        return height * 2, width, height, width - width

    with pytest.raises(tf.errors.InvalidArgumentError):
        source = Files(5)
        batches(source, one_crop(16, wrong_box), bad=BadImages(100, source))


# Cropping by matrix products.


@pytest.mark.parametrize("size", [8, 32, 45])
def test_matrix_products_are_the_bicubic_crop(size):
    rng = np.random.default_rng(size)
    images = rng.integers(0, 256, (40, 33, 29, 3), dtype=np.uint8)
    seeds = tf.constant(rng.integers(-(2**31), 2**31, (40, 3, 2)), tf.int32)
    boxes = random_crop_box(seeds, tf.fill([40, 3], 33), tf.fill([40, 3], 29))
    boxes = [np.array(part) for part in boxes]
    for box, special in enumerate([(0, 0, 33, 29), (32, 28, 1, 1), (0, 0, 1, 29), (5, 3, 2, 3)]):
        for part, value in zip(boxes, special):
            part[box, 0] = value
    crops = crop_and_resize(tf.constant(images), tuple(tf.constant(part) for part in boxes), size).numpy()
    assert crops.shape == (40, 3, size, size, 3) and crops.dtype == np.uint8
    differing = []
    for b in range(40):
        for v in range(3):
            y, x, h, w = (int(part[b, v]) for part in boxes)
            expected = resize(tf.constant(images[b, y : y + h, x : x + w]), size).numpy().astype(int)
            differing.append(np.abs(crops[b, v] - expected))
    assert np.max(differing) <= 1
    # TensorFlow looks its weights up in a table of 1,024 steps; few colors come out differently.
    assert np.mean(differing) < 0.1


def test_weights():
    weights = bicubic_weights(tf.constant([0, 2, 4]), tf.constant([8, 3, 1]), 8, 6).numpy()
    assert weights.shape == (3, 6, 8)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert not weights[1][:, [0, 1, 5, 6, 7]].any() and (weights[2][:, 4] == 1).all()
    np.testing.assert_array_equal(bicubic_weights(tf.constant(0), tf.constant(8), 8, 8), np.eye(8))
