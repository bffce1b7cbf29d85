"""Groups of pictures, as frames of films: on one side of every split, by names alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from simclr_tf.core.errors import UserError
from simclr_tf.data.dataset import Data
from simclr_tf.data.sources import groups
from simclr_tf.data.sources.open import open_source

FILM = r"film\d+"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> str:
    """Eight films of unequal lengths, one of them with pictures in both classes, and three loose pictures."""
    folder = tmp_path_factory.mktemp("films")
    names = [f"{'ab'[f % 2]}/film{f}_{i:02}.png" for f in range(8) for i in range(4 + f)]
    names += [f"b/film0_{i}x.png" for i in range(5)] + [f"a/loose{i}.png" for i in range(3)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(folder / name)
    return f"folder:{folder}"


def films_of(source) -> set[str]:
    return set(groups.keys(source.example_ids, FILM, "x"))


@pytest.mark.parametrize("sides", [("train", "test"), ("all[:70%]", "all[70%:]"), ("train[:20]", "train[20:]")])
def test_no_group_is_on_both_sides(films, sides):
    one, other = (open_source(films, split, group_by=FILM) for split in sides)
    assert not films_of(one) & films_of(other)
    assert sides[1] != "test" or set(one.labels) == set(other.labels) == {0, 1}
    without = [films_of(open_source(films, split)) for split in sides]
    assert without[0] & without[1]


def test_groups_are_told(films):
    source = open_source(films, "all", group_by=FILM)
    assert source.num_examples == 68
    (told,) = source.remarks
    assert told.startswith("grouped by Data.group_by: 8 group(s) of 5 to 11 pictures; 3 picture(s) that Data.group_by")


def test_keys():
    names = ["a/p1_s1.png", "b/p1_s2.png", "b/p2_s1.png", "c/other.png"]
    assert groups.keys(names, r"(p\d+)_s", "x") == ["p1", "p1", "p2", "\0c/other.png"]
    assert groups.keys(names, r"^p\d", "x")[:3] == ["p1", "p1", "p2"]  # The file's name is searched.
    assert groups.keys(names, "^(.)/", "x") == list("abbc")  # Unless there is a "/" to be found.
    with pytest.raises(UserError, match=r"group_by is 'patient', which matches no picture of folder:y; .* p1_s1.png$"):
        groups.keys(names, "patient", "folder:y")
    with pytest.raises(UserError, match=r"group_by is '\(', not a regular expression"):
        Data(group_by="(")
    with pytest.raises(UserError, match=r"embedded:cifar10_mini is not a folder"):
        Data(group_by="x").open("train")


def test_groups_in_several_folders_of_splits_are_told(tmp_path):
    for name in ("train/a/film1_1.png", "train/b/film2_1.png", "test/a/film1_2.png", "test/b/film3_1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    remarks = open_source(f"folder:{tmp_path}", "train", group_by=FILM).remarks
    assert "1 group(s) lie in several folders of splits, such as film1 in test and train" in remarks


def test_a_tenth_of_each_class_in_whole_groups():
    labels = np.repeat([0, 1, 2], [2000, 300, 8])
    found = [f"{label}-{i // 20}" if label < 2 else "all of it" for i, label in enumerate(labels)]
    chosen = groups.choose(found, labels, 0.1, lambda key: key[::-1].encode())
    np.testing.assert_allclose(np.bincount(labels[chosen], minlength=3), [200, 30, 0], atol=10)
    assert not set(np.array(found)[chosen]) & set(np.array(found)[~chosen])
