"""Labelled subsets, and the settings that ask for them."""

from __future__ import annotations

import numpy as np
import pytest

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import SUBSET_FILE, Data
from simclr_tf.data.host_crops import one_crop
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.data.sources.source import Resident, Source
from simclr_tf.data.sources.subset import Balanced, Subset, labelled_subset

# A class of 200, one of 31, one of 4; the rest unlabelled.
LABELS = np.array([0] * 200 + [1] * 31 + [2] * 4 + [-1] * 20, np.int32)


class Listed(Source):
    """Examples that are nothing but names and labels."""

    name, class_names, may_fail = "listed", ("a", "b", "c"), False

    def __init__(self, order=None, labels=LABELS, others=None):
        order = np.arange(len(labels)) if order is None else order
        self._ids = [f"{'abcd'[labels[i]]}/{i}.png" for i in order]
        self._labels, self.num_examples, self._others = labels[order], len(labels), others

    @property
    def labels(self):
        return self._labels

    @property
    def example_ids(self):
        return self._ids

    def other_ids(self):
        return self._others


class Unlabelled(Listed):
    class_names = None
    labels = None


def taken(source=None, **settings) -> Subset:
    return labelled_subset(source or Listed(), **settings)


def test_fractions_take_each_class_alike():
    for fraction, counts in ((0.1, [20, 3, 1]), (0.01, [2, 1, 1]), (0.5, [100, 16, 2]), (1.0, [200, 31, 4])):
        subset = taken(fraction=fraction)
        np.testing.assert_array_equal(np.bincount(subset.labels), counts)
        assert subset.num_examples == sum(counts) == len(set(subset.example_ids))
        for name, label in zip(subset.example_ids, subset.labels):
            assert name.startswith("abc"[label])


def test_numbers_per_class():
    np.testing.assert_array_equal(np.bincount(taken(per_class=3).labels), [3, 3, 3])
    with pytest.raises(UserError, match="labels_per_class is 5, but class 'c' of listed has 4 examples"):
        taken(per_class=5)


def test_smaller_subsets_lie_in_larger_ones():
    previous: set[str] = set()
    for fraction in (0.005, 0.01, 0.05, 0.1, 0.33, 0.9, 1):
        now = set(taken(fraction=fraction).example_ids)
        assert previous <= now
        previous = now
    assert set(taken(per_class=2).example_ids) <= set(taken(per_class=4).example_ids)


def test_only_names_and_the_seed_decide():
    expected = set(taken(fraction=0.2).example_ids)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(LABELS))
        assert set(taken(Listed(order), fraction=0.2).example_ids) == expected
    other = set(taken(fraction=0.2, seed=1).example_ids)
    # Two random fifths share a fifth.
    assert len(other & expected) < 0.5 * len(expected)


def test_every_example_has_the_same_chance():
    counts = np.zeros(len(LABELS))
    rows = {name: i for i, name in enumerate(Listed().example_ids)}
    for seed in range(200):
        for name in taken(per_class=1, seed=seed).example_ids:
            counts[rows[name]] += 1
    assert counts[LABELS == -1].sum() == 0
    assert counts[LABELS == 2].min() > 30 and counts[LABELS == 0].max() < 8


def test_subsets_recorded_elsewhere():
    """What seed 0 takes of these names on any machine."""
    assert sorted(taken(per_class=2).example_ids) == RECORDED


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# chosen by hand\nb/205.png\na/3.png\n\na/3.png\nc/232.png\n")
    subset = taken(list_file=str(path))
    assert subset.example_ids == ["a/3.png", "b/205.png", "c/232.png"]
    np.testing.assert_array_equal(subset.labels, [0, 1, 2])
    path.write_text("205.png\r\n3.png\r\n")
    assert taken(list_file=str(path)).example_ids == ["a/3.png", "b/205.png"]
    path.write_text("n7\nn230\n")
    assert taken(Listed(others=[f"n{i}" for i in range(len(LABELS))]), list_file=str(path)).example_ids == [
        "a/7.png",
        "b/230.png",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a/3.png\nz/1.png\nz/2.png\nz/3.png\nz/4.png",
            r"z/1.png, z/2.png, z/3.png and 1 more, not in listed; .* such as a/0.png",
        ),
        ("# nothing\n\n", "names nothing"),
        ("d/240.png", "names d/240.png of listed, which has no label"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        taken(list_file=str(path))


def test_names_of_several_files(tmp_path):
    source = Listed()
    source._ids[3], source._ids[210] = "a/same.png", "b/same.png"
    path = tmp_path / "list.txt"
    path.write_text("same.png")
    with pytest.raises(UserError, match="several files of listed share"):
        taken(source, list_file=str(path))


def test_lists_that_are_not_there():
    with pytest.raises(UserError, match="Data.label_list /nowhere/list.txt cannot be read"):
        taken(list_file="/nowhere/list.txt")


def test_without_labels():
    with pytest.raises(UserError, match="listed has no labels to take a subset by"):
        labelled_subset(Unlabelled(), fraction=0.1)
    with pytest.raises(UserError, match="no labeled example"):
        taken(Listed(labels=np.full(5, -1, np.int32)), fraction=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_fraction": 0}, "label_fraction is 0; use a number above 0 and at most 1"),
        ({"label_fraction": 1.5}, "label_fraction is 1.5"),
        ({"label_fraction": "10%"}, "label_fraction is '10%'"),
        ({"label_fraction": True}, "label_fraction is True"),
        ({"label_fraction": float("nan")}, "label_fraction is nan"),
        ({"labels_per_class": 0}, "labels_per_class is 0"),
        ({"labels_per_class": 2.0}, "labels_per_class is 2.0"),
        ({"label_list": ""}, "label_list is ''"),
        ({"label_fraction": 0.1, "labels_per_class": 3}, "0.1 and Data.labels_per_class = 3 exclude each other"),
        ({"label_list": "x", "labels_per_class": 3}, "exclude each other"),
        ({"subset_seed": 0.5}, "subset_seed is 0.5"),
        ({"download": 1}, "download is 1"),
        ({"image_size": 7}, "image_size is 7"),
        ({"max_bad_images": -1}, "max_bad_images is -1"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        Data(**settings)


def test_data_opens_its_subset():
    data = Data(labels_per_class=7, subset_seed=3)
    subset, whole = data.open_labelled(), data.open("train")
    assert subset.num_examples == 70 and whole.num_examples == 5000
    np.testing.assert_array_equal(np.bincount(subset.labels), 7)
    text = data.subset_files(subset)[SUBSET_FILE]
    assert text.splitlines() == list(subset.example_ids)
    assert Data().open_labelled().num_examples == 5000 and Data().subset_files(whole) == {}
    described = data.describe()
    assert described["labels_per_class"] == 7 and described["subset_seed"] == 3
    assert Data(**described).describe() == described


def test_the_file_written_gives_the_same_subset(tmp_path):
    first = Data(label_fraction=0.01)
    subset = first.open_labelled()
    path = tmp_path / SUBSET_FILE
    path.write_text(first.subset_files(subset)[SUBSET_FILE])
    again = Data(label_list=str(path)).open_labelled()
    assert list(again.example_ids) == list(subset.example_ids)


def test_pipelines_take_subsets_as_any_source():
    data = Data(labels_per_class=3)
    subset, whole = data.open_labelled(), data.open("train")
    rows = {name: i for i, name in enumerate(whole.example_ids)}
    expected = [whole.resident().images[rows[name]] for name in subset.example_ids]
    np.testing.assert_array_equal(subset.resident().images, expected)
    whole_images = Augment(area_min=1, ratio_min=1, ratio_max=1)
    dataset = train_dataset(
        subset,
        one_crop(32, whole_images.crop_box),
        global_batch_size=30,
        per_replica_batch_size=30,
        seed=0,
        num_steps=2,
    )
    for batch in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(np.sort(batch["index"]), np.arange(30))
        np.testing.assert_array_equal(batch["image"], subset.resident().images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], subset.labels[batch["index"]])


def test_reading_goes_through_to_the_source():
    class Reading(Listed):
        def read(self, index):
            return tf.strings.as_string(index), tf.constant(0)

        def resident(self):
            return None

    subset = Subset(Reading(), np.array([5, 9]), "some")
    assert subset.read(tf.constant(1, tf.int64))[0].numpy() == b"9" and subset.resident() is None
    assert subset.name == "some" and not subset.may_fail


def test_embedded_data_is_what_it_says():
    train, test = (Data().open(split) for split in ("train", "test"))
    assert (train.num_examples, test.num_examples) == (5000, 1000)
    for source, each in ((train, 500), (test, 100)):
        np.testing.assert_array_equal(np.bincount(source.labels), each)
        resident = source.resident()
        assert isinstance(resident, Resident) and resident.images.shape == (source.num_examples, 32, 32, 3)
        assert len(set(source.example_ids)) == source.num_examples
        # CIFAR-10's channel means are 125.3, 123.0 and 113.9.
        np.testing.assert_allclose(resident.images.mean(axis=(0, 1, 2)), [125.3, 123.0, 113.9], atol=3)
    assert not set(train.example_ids) & set(test.example_ids)
    part = Data().open("train[10:20]")
    assert part.example_ids == train.example_ids[10:20]
    np.testing.assert_array_equal(part.resident().images, train.resident().images[10:20])
    both = Data().open("train[:10]+test[:10]")
    np.testing.assert_array_equal(both.resident().images[10:], test.resident().images[:10])


RECORDED = ["a/141.png", "a/43.png", "b/200.png", "b/207.png", "c/233.png", "c/234.png"]


# --- Classes of unequal sizes ----------------------------------------------------------------------------------------


def test_balanced_classes_come_equally_often(monkeypatch):
    source = labelled_subset(Listed(), fraction=1.0)
    even = Balanced(source)
    np.testing.assert_array_equal(np.bincount(even.labels), [200, 200, 200])
    times = np.unique(even.example_ids, return_counts=True)[1]
    assert sorted(set(times)) == [1, 6, 7, 50] and len(times) == 235 == even.num_different
    monkeypatch.setattr(Data, "open", lambda self, split, data_dir=None: Listed())
    data = Data(balance="classes", label_fraction=0.5)
    np.testing.assert_array_equal(np.bincount(data.open_labelled().labels), [100, 100, 100])
    # The list of labels that were used has each name once, and the same ones as without.
    assert data.subset_files(data.open_labelled()) == Data(label_fraction=0.5).subset_files(
        Data(label_fraction=0.5).open_labelled()
    )
    with pytest.raises(UserError, match="Data.balance is 'class'"):
        Data(balance="class")


class Squares(Listed):
    """Small classes of plain colours."""

    def __init__(self):
        super().__init__(labels=np.array([0] * 9 + [1] * 3 + [2], np.int32))

    def resident(self):
        images = np.full([13, 8, 8, 3], 9, np.uint8) * self.labels[:, None, None, None].astype(np.uint8)
        return Resident(images, self.labels, np.ones(13, bool))


@pytest.mark.parametrize("shards", [1, 3])
def test_balanced_epochs_are_the_same_on_any_number_of_hosts_and_after_a_restart(shards):
    even = Balanced(Squares())
    settings = {"global_batch_size": 9, "per_replica_batch_size": 9 // shards, "seed": 4, "num_steps": 6}

    def rows(first, count):
        parts = [
            list(
                train_dataset(
                    even,
                    one_crop(8, Augment().crop_box),
                    **{**settings, "num_steps": count},
                    first_step=first,
                    shard_index=i,
                    num_shards=shards,
                )
            )
            for i in range(shards)
        ]
        return [
            {name: np.concatenate([part[s][name] for part in parts]) for name in ("image", "label", "index")}
            for s in range(count)
        ]

    run, again = rows(0, 6), rows(2, 4)
    assert even.num_examples == 27  # Three steps an epoch.
    for epoch in (run[:3], run[3:]):
        np.testing.assert_array_equal(np.bincount(np.concatenate([batch["label"] for batch in epoch])), [9, 9, 9])
    for one, other in zip(run[2:], again):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # Copies of an image have numbers, and so crops, of their own.
    assert all(len(set(batch["index"])) == 9 for batch in run)
