"""Sets of tensorflow-datasets: the prepared CIFAR-10, and one made here with pictures of many sizes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference import FOLDER

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.dataset import Data
from simclr_tf.data.host_crops import central, one_crop
from simclr_tf.data.pipeline import eval_dataset, train_dataset
from simclr_tf.data.sources import tfrecord_index
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.subset import labelled_subset

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")
tfds_sets = pytest.importorskip("tfds_sets")

CIFAR = Path(os.environ.get("SIMCLR_DATA_DIR") or FOLDER.parent / "data" / "tfds")
needs_cifar = pytest.mark.skipif(not (CIFAR / "cifar10").exists(), reason="no CIFAR-10 here")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    for builder in (tfds_sets.SimclrTfTestPictures, tfds_sets.SimclrTfTestDigits, tfds_sets.SimclrTfTestTexts):
        builder(data_dir=folder).download_and_prepare(download_config=config)
    return folder


def pictures(data_dir, split="train"):
    return open_source("tfds:simclr_tf_test_pictures", split, data_dir)


def test_any_example_is_read_by_itself(data_dir):
    source = pictures(data_dir)
    assert source.num_examples == 30 and source.class_names == ("low", "middle", "high") and source.may_fail
    assert source.resident() is None
    builder = tfds.builder("simclr_tf_test_pictures", data_dir=data_dir)
    read = tfds.ReadConfig(add_tfds_id=True)
    expected = list(builder.as_dataset(split="train", read_config=read).as_numpy_iterator())
    assert list(source.example_ids) == [example["tfds_id"].decode() for example in expected]
    assert list(source.other_ids()) == [example["file_name"].decode() for example in expected]
    np.testing.assert_array_equal(source.labels, [example["label"] for example in expected])
    for i in (29, 0, 17):
        content, label = source.read(tf.constant(i, tf.int64))
        np.testing.assert_array_equal(tf.io.decode_jpeg(content), expected[i]["image"])
        assert int(label) == expected[i]["label"] and label.dtype == tf.int32


def test_labels_of_a_split_are_read_once(copy, monkeypatch):
    labels = pictures(copy).labels
    monkeypatch.setattr(type(pictures(copy)), "_column", None)
    np.testing.assert_array_equal(pictures(copy).labels, labels)
    os.utime(file_of(copy))  # As if it had been made again.
    with pytest.raises(TypeError):
        pictures(copy).labels  # noqa: B018


@pytest.mark.parametrize("split", ["train[20%:60%]", "test+train[-4:]", "train[3:5]+train[10:12]", "all"])
def test_splits_are_tensorflow_datasets_own(data_dir, split):
    source = pictures(data_dir, split)
    builder = tfds.builder("simclr_tf_test_pictures", data_dir=data_dir)
    # It mixes the files of a split, unless told not to.
    examples = builder.as_dataset(split=split, read_config=tfds.ReadConfig(interleave_cycle_length=1))
    names = [example["file_name"].decode() for example in examples.as_numpy_iterator()]
    assert list(source.other_ids()) == names and source.num_examples == len(names)


def test_pictures_come_into_batches(data_dir):
    """The first to read is a graph that is being traced."""
    source = pictures(data_dir)
    bad = BadImages(0, source)
    batches = train_dataset(
        source,
        one_crop(16, Augment().crop_box),
        global_batch_size=15,
        per_replica_batch_size=15,
        seed=0,
        num_steps=2,
        bad_images=bad,
    )
    found = list(batches.as_numpy_iterator())
    np.testing.assert_array_equal(np.sort(np.concatenate([batch["index"] for batch in found])), np.arange(30))
    number = [int(name[6:-5]) for name in source.other_ids()]
    for batch in found:
        for image, label, index in zip(batch["image"], batch["label"], batch["index"]):
            assert label == number[index] % 3
            assert abs(image[..., 1].mean() - 130) < 32 and abs(image[..., 0].mean() - 5 * number[index] - 30) < 34


def test_subsets_by_file_name(data_dir, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("train_4.JPEG\ntrain_12.JPEG\n")
    subset = labelled_subset(pictures(data_dir), list_file=str(path))
    np.testing.assert_array_equal(np.sort(subset.labels), [0, 1])
    bad = BadImages(0, subset)
    (batch,) = eval_dataset(
        subset, central(16), batch_size=2, per_replica_batch_size=2, bad_images=bad
    ).as_numpy_iterator()
    np.testing.assert_array_equal(batch["label"], subset.labels)
    ids = Data(source="tfds:simclr_tf_test_pictures", labels_per_class=2).open_labelled(data_dir).example_ids
    assert len(ids) == 6 and all(name in pictures(data_dir).example_ids for name in ids)


def test_small_images_are_kept_in_memory_without_labels(data_dir):
    source = open_source("tfds:simclr_tf_test_digits", "train[5:]", data_dir)
    assert source.class_names is None and source.labels is None and source.other_ids() is None
    resident = source.resident()
    assert resident.images.shape == (45, 12, 10, 3) and resident.readable.all() and (resident.labels == -1).all()
    assert len(np.unique(resident.images)) == 45


def file_of(folder, name="simclr_tf_test_pictures", split="train") -> str:
    (path,) = Path(folder, name).glob(f"1.0.0/*-{split}.tfrecord-00000-of-00001")
    return str(path)


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


def rewrite(path: str, change) -> None:
    """Writes a file's records again, each changed by `change(number, example)`."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(path)]
    with tf.io.TFRecordWriter(path) as writer:
        for i, record in enumerate(records):
            example = tf.train.Example.FromString(record)
            change(i, example)
            writer.write(example.SerializeToString())


def test_records_index_finds_what_the_reader_reads(data_dir):
    path = file_of(data_dir)
    offsets, lengths = tfrecord_index.scan(path)
    content = Path(path).read_bytes()
    records = [record.numpy() for record in tf.data.TFRecordDataset(path)]
    assert [content[o : o + n] for o, n in zip(offsets, lengths)] == records
    remote = "ram://records/file"
    tf.io.gfile.makedirs("ram://records")
    tf.io.gfile.copy(path, remote, overwrite=True)
    for one, other in zip(tfrecord_index.scan(remote), (offsets, lengths)):
        np.testing.assert_array_equal(one, other)
    table = tfrecord_index.index([(remote, 2, 3), (path, 0, 1)])
    assert [table.read(tf.constant(i, tf.int64)).numpy() for i in range(4)] == [*records[2:5], records[0]]


@pytest.mark.parametrize("where", ["cut", "length", "missing", "short"])
def test_broken_files_are_named(copy, where):
    path = file_of(copy)
    content = bytearray(Path(path).read_bytes())
    if where == "cut":
        Path(path).write_bytes(content[:-7])
    elif where == "length":
        content[tfrecord_index.scan(path)[0][4] - 12] ^= 1
        Path(path).write_bytes(content)
    elif where == "missing":
        os.remove(path)
    else:
        offsets, lengths = tfrecord_index.scan(path)
        Path(path).write_bytes(content[: offsets[9] + lengths[9] + 4])
    with pytest.raises(UserError, match="tfrecord-00000-of-00001.*prepare") as error:
        source = pictures(copy)
        list(eval_dataset(source, central(16), batch_size=4, per_replica_batch_size=4, bad_images=BadImages(0, source)))
    assert "\n" not in str(error.value)


def test_damaged_contents_of_small_images_are_told(copy):
    path = file_of(copy, "simclr_tf_test_digits")
    content = bytearray(Path(path).read_bytes())
    content[tfrecord_index.scan(path)[0][4] + 30] ^= 255
    Path(path).write_bytes(content)
    with pytest.raises(UserError, match="is damaged .*prepare it again"):
        open_source("tfds:simclr_tf_test_digits", "train", copy).resident()


def test_unreadable_images_of_a_set(copy):
    def spoil(i, example):
        if i in (3, 20):
            example.features.feature["image"].bytes_list.value[0] = b"no picture"

    rewrite(file_of(copy), spoil)
    source = pictures(copy)
    bad = BadImages(5, source)
    batches = eval_dataset(source, central(16), batch_size=10, per_replica_batch_size=10, bad_images=bad)
    assert sum(batch["weight"].sum() for batch in batches.as_numpy_iterator()) == 28
    assert set(bad.names) == {source.example_ids[3], source.example_ids[20]}


def test_labels_out_of_range(copy):
    def relabel(i, example):
        if i == 3:
            example.features.feature["label"].int64_list.value[0] = 7

    rewrite(file_of(copy), relabel)
    with pytest.raises(UserError, match=r"has label 7 \(example 3\), but 3 classes"):
        _ = pictures(copy).labels
    source = pictures(copy)
    bad = BadImages(0, source)
    with pytest.raises(tf.errors.OpError):
        list(eval_dataset(source, central(16), batch_size=10, per_replica_batch_size=10, bad_images=bad))
    with pytest.raises(UserError, match="__3: its label is out of range: there are 3 classes"):
        bad.check()


def test_minus_one_means_unlabelled(copy):
    def relabel(i, example):
        example.features.feature["label"].int64_list.value[0] = -1

    assert pictures(copy).any_label() and not pictures(copy).partly_labelled
    rewrite(file_of(copy), relabel)
    assert (pictures(copy).labels == -1).all()
    assert pictures(copy).partly_labelled and not pictures(copy).any_label()
    assert int(pictures(copy).read(tf.constant(0, tf.int64))[1]) == -1


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("tfds:simclr_tf_test_picture", "train", "did you mean tfds:simclr_tf_test_pictures"),
        ("tfds:simclr_tf_test_pictures", "valid", r"'valid'; it has train \(30 examples\), test \(7 examples\)"),
        ("tfds:simclr_tf_test_pictures", "train[:150%]", "has no split"),
        ("tfds:simclr_tf_test_pictures", "train[5:5]", "has no examples"),
        ("tfds:simclr_tf_test_pictures:2.0.0", "train", "cannot be opened"),
        ("tfds:simclr_tf_test_texts", "train", r"has no images under 'image' \(it has text\)"),
        ("tfds:cifar100", "train", "is not prepared in .*--data_dir, or allow the download with Data.download = True"),
        ("tfds:imagenet2012_subset/1pct", "train", "is not prepared in"),
        ("tfds:imagenet2012_subset/2pct", "train", "cannot be opened"),
        ("tfds:what is this", "train", "cannot be opened"),
        ("tfds:", "train", "without a name"),
        ("tdfs:cifar10", "train", "did you mean tfds:cifar10?"),
        ("cifar10", "train", "write embedded:NAME, tfds:NAME or folder:PATH"),
        (None, "train", "write embedded:NAME, tfds:NAME or folder:PATH"),
        ("embedded:cifar", "train", "there is embedded:cifar10_mini"),
        ("embedded:cifar10_mini", "val", "has no split 'val'; it has train, test"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_had(data_dir, spec, split, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(spec, split, data_dir)
    assert "\n" not in str(error.value)


def test_data_that_only_the_network_knows_are_not_prepared(data_dir, tmp_path, monkeypatch):
    """Of published data sets, a builder looks the splits up in the network's bucket."""
    prepared = tfds.builder("simclr_tf_test_digits", data_dir=data_dir).data_dir
    monkeypatch.setattr(
        tfds.core.DatasetInfo, "initialize_from_bucket", lambda info: info.read_from_directory(prepared)
    )
    with pytest.raises(UserError, match="simclr_tf_test_digits is not prepared in"):
        open_source("tfds:simclr_tf_test_digits", "train", str(tmp_path))
    made = open_source("tfds:simclr_tf_test_digits", "train", str(tmp_path), download=True)
    assert made.num_examples == open_source("tfds:simclr_tf_test_digits", "train", data_dir).num_examples
    assert list(tmp_path.glob("simclr_tf_test_digits/*/*.tfrecord*"))


@needs_cifar
def test_cifar10():
    source = open_source("tfds:cifar10", "test[:64]+train[:64]", str(CIFAR))
    assert source.num_examples == 128 and source.class_names[0] == "airplane"
    resident = source.resident()
    expected = [
        example
        for split in ("test[:64]", "train[:64]")
        for example in tfds.load("cifar10", split=split, data_dir=str(CIFAR)).as_numpy_iterator()
    ]
    np.testing.assert_array_equal(resident.images, [example["image"] for example in expected])
    np.testing.assert_array_equal(source.labels, [example["label"] for example in expected])
    np.testing.assert_array_equal(resident.labels, source.labels)


@needs_cifar
def test_embedded_images_are_cifar10s():
    embedded = open_source("embedded:cifar10_mini", "test[:200]")
    whole = {
        example["id"].decode(): example
        for example in tfds.load("cifar10", split="test", data_dir=str(CIFAR)).as_numpy_iterator()
    }
    for name, image, label in zip(embedded.example_ids, embedded.resident().images, embedded.labels):
        np.testing.assert_array_equal(image, whole[name]["image"])
        assert label == whole[name]["label"]
