"""Folders of pictures: what is found, classes, splits, and odd pictures all the way into batches."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.dataset import SUBSET_FILE, Data
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import eval_dataset
from simclr_tf.data.sources.folder import READS_WEBP, FolderSource
from simclr_tf.data.sources.open import open_source

Image = pytest.importorskip("PIL.Image")


def encoded(color=(200, 30, 90), size=(30, 24), kind="PNG", mode="RGB", **settings) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def write(folder, names, content=None) -> None:
    for name in names:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded() if content is None else content)


def pictures(classes=("cat", "dog"), count=20) -> list[str]:
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, pictures())
    return str(tmp_path)


def test_sub_folders_are_classes(folder):
    source = open_source(f"folder:{folder}", "all")
    assert source.class_names == ("cat", "dog")
    assert source.num_examples == 40 and source.may_fail
    assert sorted(source.example_ids) == sorted(pictures())
    for name, label in zip(source.example_ids, source.labels):
        assert source.class_names[label] == name.split("/")[0]
    content, label = source.read(tf.constant(3, tf.int64))
    assert content.numpy() == encoded() and int(label) == source.labels[3]


def test_splits_divide_every_class_by_names_alone(folder, monkeypatch):
    parts = {split: FolderSource(folder, split) for split in ("train", "test")}
    assert [part.num_examples for part in parts.values()] == [36, 4]
    np.testing.assert_array_equal(np.bincount(parts["test"].labels), [2, 2])
    names = [name for part in parts.values() for name in part.example_ids]
    assert sorted(names) == sorted(pictures())
    # Slices mix the classes.
    assert set(FolderSource(folder, "train[:50%]").labels) == {0, 1}

    real = tf.io.gfile.listdir
    monkeypatch.setattr(tf.io.gfile, "listdir", lambda path: list(reversed(real(path))))
    for split, part in parts.items():
        assert FolderSource(folder, split).example_ids == part.example_ids


def test_the_order_is_that_of_a_recorded_machine(tmp_path):
    """Names alone decide: these are what another machine has to find, too."""
    write(tmp_path, pictures(("a", "b"), 10))
    assert FolderSource(str(tmp_path), "test").example_ids == RECORDED["test"]
    assert FolderSource(str(tmp_path), "train").example_ids[:4] == RECORDED["train"]


def test_another_place_changes_nothing(tmp_path):
    for place in ("here", "there/deeper"):
        write(tmp_path / place, pictures())
    one, other = (FolderSource(str(tmp_path / place), "train") for place in ("here", "there/deeper"))
    assert one.example_ids == other.example_ids
    np.testing.assert_array_equal(one.labels, other.labels)


def test_relative_paths_start_at_the_data_folder(folder, monkeypatch):
    parent, name = os.path.split(folder)
    assert FolderSource(name, "all", parent).num_examples == 40
    assert FolderSource(folder, "all", "/elsewhere").num_examples == 40
    monkeypatch.chdir(parent)
    assert FolderSource(name, "all").num_examples == 40
    with pytest.raises(UserError, match=r"is not there \(relative to --data_dir=/elsewhere\)"):
        FolderSource(name, "all", "/elsewhere")


def test_folders_named_like_splits_are_the_splits(tmp_path):
    write(
        tmp_path,
        [f"train/{name}" for name in pictures(count=3)] + [f"val/{name}" for name in pictures(("dog", "eel"), 2)],
    )
    train, val = (FolderSource(str(tmp_path), split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("cat", "dog", "eel")
    assert train.num_examples == 6 and val.num_examples == 4
    assert all(name.startswith("val/") for name in val.example_ids)
    np.testing.assert_array_equal(np.bincount(val.labels, minlength=3), [0, 2, 2])
    assert (
        FolderSource(str(tmp_path), "train+val").num_examples == FolderSource(str(tmp_path), "all").num_examples == 10
    )
    assert not val.remarks


@pytest.mark.parametrize(
    "folders",
    [
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("train_set", "test_set"),
        ("training-images", "testing-images"),
        ("zip/animals/train", "zip/animals/test"),
        ("Training/Training", "Testing/Testing"),
    ],
)
def test_usual_names_of_splits(folders, tmp_path):
    for folder, count in zip(folders, (3, 2)):
        write(tmp_path / folder, pictures(count=count))
    train, test = (FolderSource(str(tmp_path), split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.num_examples == 6 and test.num_examples == 4
    assert train.splits == {"train": 6, "test": 4}
    assert {name.rsplit("/", 2)[0] for name in test.example_ids} == {folders[1]}
    assert any("animals, which is taken as" in remark for remark in train.remarks) == folders[0].startswith("zip")


def test_validation_stands_in_for_a_test(tmp_path):
    for folder, count in (("train", 3), ("valid", 2)):
        write(tmp_path / folder, pictures(count=count))
    test = FolderSource(str(tmp_path), "test")
    assert test.num_examples == 4 and test.name.endswith("(val)")
    assert test.remarks == ("there is no split 'test': 'val' stands in for it",)
    assert FolderSource(str(tmp_path), "validation[:50%]").num_examples == 2


def test_two_validation_folders_stay_apart(tmp_path):
    for folder, count in (("train", 3), ("val", 2), ("dev", 1)):
        write(tmp_path / folder, pictures(count=count))
    assert FolderSource(str(tmp_path), "all").splits == {"train": 6, "val": 4, "dev": 2}
    assert FolderSource(str(tmp_path), "dev").num_examples == 2


def test_unlabelled_pictures_beside_the_splits(tmp_path):
    for folder in ("train", "test"):
        write(tmp_path / folder, pictures(count=2))
    write(tmp_path / "unlabelled", ["1.png", "2.png", "more/3.png"])
    source = FolderSource(str(tmp_path), "train+unlabeled")
    assert source.class_names == ("cat", "dog") and source.partly_labelled
    assert sorted(source.labels) == [-1, -1, -1, 0, 0, 1, 1]


def test_classes_are_those_of_all_splits(tmp_path):
    write(tmp_path, ["train/cat/1.png", "train/eel/1.png", "test/cat/1.png", "test/owl/1.png"])
    train, test = (Data(source=f"folder:{tmp_path}", labels_per_class=1, train_split=s) for s in ("train", "test"))
    assert train.open_labelled().class_names == test.open_labelled().class_names == ("cat", "eel", "owl")
    assert [sorted(data.open_labelled().labels) for data in (train, test)] == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("names", "classes", "remark"),
    [
        (["train/1.png", "bus/1.png", "car/1.png"], ("bus", "car", "train"), None),
        (["train/a/1.png", "holdout/a/1.png"], ("holdout", "train"), "'train' is taken for a class"),
        (["x_train/a/1.png", "x-test/a/1.png"], ("x-test", "x_train"), "'x_train' and 'x-test' are classes here"),
        (["unlabeled/a/1.png", "unlabeled/b/1.png"], ("a", "b"), "unlabeled, which is taken as"),
        (["zip/a/1.png", "zip/b/1.png"], ("a", "b"), "zip, which is taken as"),
        (["zip/a/1.png", "zip/b/1.png", "1.png"], None, "did you mean folder:{tmp}/zip?"),
        (["zip/train/1.png", "zip/val/1.png", "more/1.png"], ("more", "zip"), "did you mean folder:{tmp}/zip?"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png"], ("a", "b"), "above it: train/a, test/a"),
        (["only/x/1.png", "only/x/2.png"], None, None),
    ],
)
def test_folders_that_are_no_splits(names, classes, remark, tmp_path):
    write(tmp_path, names)
    source = FolderSource(str(tmp_path), "all")
    assert source.class_names == classes and source.num_examples == len(names)
    assert len(source.remarks) == (remark is not None)
    if remark:
        assert remark.replace("{tmp}", str(tmp_path)) in source.remarks[0]


def test_folders_beside_the_splits_are_told(tmp_path):
    write(tmp_path, ["train/a/1.png", "test/a/1.png", "more/a/1.png"])
    with pytest.raises(UserError, match="'more' beside the folders of the splits test, train"):
        FolderSource(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("names", "unlabelled"), [([f"{i}.jpg" for i in range(12)], 12), ([f"only/{i}.JPG" for i in range(12)], 12)]
)
def test_without_classes_there_are_no_labels(tmp_path, names, unlabelled):
    write(tmp_path, names)
    source = FolderSource(str(tmp_path), "all")
    assert source.class_names is None and source.labels is None and source.num_examples == unlabelled
    assert int(source.read(tf.constant(0, tf.int64))[1]) == -1
    assert FolderSource(str(tmp_path), "test").num_examples == 1


def test_pictures_outside_the_class_folders_are_unlabelled(tmp_path):
    write(tmp_path, [*pictures(count=2), "loose.png"])
    source = FolderSource(str(tmp_path), "all")
    assert source.labels[source.example_ids.index("loose.png")] == -1
    assert source.class_names == ("cat", "dog") and source.partly_labelled
    assert not FolderSource(str(tmp_path), "test").partly_labelled


def test_training_with_all_labels_leaves_the_other_pictures_out(tmp_path):
    write(tmp_path, [*pictures(count=4), *(f"loose/{i}.png" for i in range(3)), *(f"{i}.png" for i in range(7))])
    data = Data(source=f"folder:{tmp_path}", train_split="all")
    labelled = data.open_labelled()
    assert labelled.num_examples == 11 and labelled.labels.min() == 0 and not labelled.partly_labelled
    assert data.open("all").num_examples == 18
    assert len(data.subset_files(labelled)[SUBSET_FILE].split()) == 11


def test_only_pictures_count(tmp_path):
    write(
        tmp_path,
        ["cat/1.png", "cat/.2.png", ".hidden/3.png", "cat/deeper/4.JPEG", "dog/5.gif", "dog/6.bmp", "eel/notes.txt"],
    )
    write(tmp_path, ["cat/7.jpg/7.png", "cat/@eaDir/1.png/1.png", "__MACOSX/cat/1.png", "lost+found/8.png"])
    write(tmp_path, ["a.HEIC", "cat/b.heic", "dog/c.tif", "README"])
    os.mkfifo(tmp_path / "pipe.png")
    source = FolderSource(str(tmp_path), "all")
    found = ["cat/1.png", "cat/7.jpg/7.png", "cat/deeper/4.JPEG", "dog/5.gif", "dog/6.bmp"]
    assert sorted(source.example_ids) == found
    assert source.class_names == ("cat", "dog")
    (told,) = source.remarks
    assert told.startswith("passed over: 2 .heic, 1 .tif, 1 .txt, 1 @eaDir folder(s), 1 __MACOSX folder(s), ")
    assert told.endswith(" and 4 others")


def test_links(tmp_path):
    write(tmp_path / "pictures", pictures(count=2))
    write(tmp_path, ["elsewhere/7.png", "elsewhere/8.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "pictures/eel")
    os.symlink(tmp_path / "pictures", tmp_path / "pictures/cat/round")
    os.symlink(tmp_path / "pictures/dog/0.png", tmp_path / "pictures/dog/link.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "pictures/dog/broken.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "pictures/fish")
    source = FolderSource(str(tmp_path / "pictures"), "all")
    assert sorted(source.example_ids) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "eel/7.png", "eel/8.png"]
    assert source.remarks == ("passed over: 1 that are not files (broken links, pipes)",)


def test_links_between_splits_lead_to_the_same_examples(tmp_path):
    write(tmp_path / "train", pictures(count=3))
    os.symlink(tmp_path / "train", tmp_path / "test")
    train, test = (FolderSource(str(tmp_path), split) for split in ("train", "test"))
    assert set(train.example_ids).isdisjoint(test.example_ids)
    assert sorted(train.identities) == sorted(test.identities) and len(set(train.identities)) == 6


def test_remote_folders():
    for i in range(10):
        for name in ("cat", "dog"):
            tf.io.gfile.makedirs(f"ram://pictures/{name}")
            with tf.io.gfile.GFile(f"ram://pictures/{name}/{i}.png", "wb") as file:
                file.write(encoded())
    source = open_source("folder:ram://pictures", "train")
    assert source.num_examples == 18 and source.class_names == ("cat", "dog")
    assert source.read(tf.constant(0, tf.int64))[0].numpy() == encoded()
    with pytest.raises(UserError, match="is not there"):
        open_source("folder:ram://nothing", "train")


def make(tmp_path, *names):
    write(tmp_path, names)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ([], "train", "no JPEG, PNG, BMP or GIF pictures; it has no files at all"),
        (["notes.txt", "a/list.csv"], "train", "passed over: 1 .csv, 1 .txt, such as a/list.csv"),
        ([".hidden.png"], "train", "no JPEG"),
        (["a.png"], "test", "has no split 'test'; it has train"),
        (["a.png", "b.png"], "valid", "has no split 'valid'; it has train, test"),
        (["a.png", "b.png"], "train[50]", "cannot be understood"),
        (["a.png", "b.png"], "train[:0%]", "has no examples"),
        (["a.png", "b.png"], "train[:200%]", "not within 100 %"),
        (["a.png", "b.png"], "train[:7]", "beyond its 1 examples"),
        (["a.png", "b.png"], "", "use a name"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(tmp_path, names, split, message):
    path = make(tmp_path, *names)
    with pytest.raises(UserError, match=message) as error:
        open_source(f"folder:{path}", split)
    assert "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    write(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="is a file; give the folder"):
        open_source(f"folder:{tmp_path}/a.png", "train")
    with pytest.raises(UserError, match="is not there; give a folder"):
        open_source(f"folder:{tmp_path}/b", "train")


@pytest.mark.skipif(READS_WEBP, reason="this TensorFlow reads WebP")
def test_webp_is_refused_by_name(tmp_path):
    write(tmp_path, ["a.png", "cat/b.webp"])
    with pytest.raises(UserError, match=r"1 WebP picture\(s\), such as cat/b.webp, which TensorFlow .* cannot read"):
        FolderSource(str(tmp_path), "all")


def read_all(source, bad=None, size=16):
    found = {}
    for batch in eval_dataset(
        source, central(size), batch_size=4, per_replica_batch_size=4, bad_images=bad
    ).as_numpy_iterator():
        for row in np.nonzero(batch["weight"])[0]:
            found[source.example_ids[batch["index"][row]]] = batch["image"][row]
    return found


def test_odd_pictures(tmp_path):
    color = (200, 30, 90)
    gray = np.asarray(Image.new("RGB", (1, 1), color).convert("L"))[0, 0]
    frames = [
        Image.new("RGB", (30, 24), shade).convert("P", palette=Image.Palette.ADAPTIVE) for shade in (color, (0, 0, 0))
    ]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    files = {
        "gray.png": encoded(mode="L"),
        "rgba.png": encoded(mode="RGBA"),
        "palette.bmp": b"",
        "tall.png": encoded(size=(3, 200)),
        "pixel.png": encoded(size=(1, 1)),
        "cmyk.jpg": encoded(mode="CMYK", kind="JPEG", quality=95),
        "gray.jpg": encoded(mode="L", kind="JPEG", quality=95),
        "really a jpeg.png": encoded(kind="JPEG", quality=95),
        "animation.gif": animation.getvalue(),
        "sixteen.png": b"",
        "empty.png": b"",
        "text.jpg": b"I am a text",
        "cut.jpg": encoded(kind="JPEG")[:400],
    }
    file = io.BytesIO()
    Image.fromarray(np.full((24, 30), int(gray) * 257, np.uint16)).save(file, "PNG")
    files["sixteen.png"] = file.getvalue()
    file = io.BytesIO()
    Image.new("RGB", (30, 24), color).convert("P", palette=Image.Palette.ADAPTIVE).save(file, "BMP")
    files["palette.bmp"] = file.getvalue()
    for name, content in files.items():
        write(tmp_path, [name], content)
    source = FolderSource(str(tmp_path), "all")
    bad = BadImages(100, source)
    found = read_all(source, bad)
    assert sorted(bad.names) == ["cut.jpg", "empty.png", "text.jpg"]
    assert sorted(found) == sorted(set(files) - set(bad.names))
    for name, image in found.items():
        expected = [gray] * 3 if name in ("gray.png", "gray.jpg", "sixteen.png") else color
        tolerance = 4 if name.endswith(("jpg", "jpeg.png")) else 0
        assert np.abs(image.astype(int) - np.array(expected, int)).max() <= tolerance, name
    strict = BadImages(2, source)
    with pytest.raises(tf.errors.OpError):
        read_all(source, strict)
    with pytest.raises(
        UserError, match=r"max_bad_images = 2 \((cut.jpg|empty.png|text.jpg): .*\); repair or remove them"
    ):
        strict.check()


def test_a_name_that_is_not_utf_8_is_told_in_one_line(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb") as file:
        file.write(encoded())
    with pytest.raises(UserError, match=r"has a name that is not UTF-8 \(b'caf\\xe9.png'\); rename it"):
        FolderSource(str(tmp_path), "all")


@pytest.mark.parametrize("broken", [(), (5,), (0, 3)])
def test_small_pictures_of_one_size_are_kept_in_memory(tmp_path, broken):
    write(tmp_path, [])
    for i in range(40):
        write(tmp_path, [f"{'ab'[i % 2]}/{i}.png"], b"broken" if i in broken else encoded((i, 2 * i, 255 - i)))
    source = FolderSource(str(tmp_path), "all")
    resident = source.resident()
    assert resident is source.resident()
    for name, image, label, readable in zip(source.example_ids, *resident):
        i = int(name[2:-4])
        assert readable == (i not in broken)
        if readable:
            np.testing.assert_array_equal(image, np.broadcast_to(np.array([i, 2 * i, 255 - i]), (24, 30, 3)))
            assert label == i % 2


@pytest.mark.parametrize("other", [encoded(size=(24, 30)), encoded(size=(30, 25), kind="JPEG")], ids=["png", "jpeg"])
def test_pictures_of_several_sizes_are_not(tmp_path, other):
    write(tmp_path, pictures())
    write(tmp_path, ["cat/other.png"], other)
    assert FolderSource(str(tmp_path), "all").resident() is None


def test_large_pictures_are_not(tmp_path):
    write(tmp_path, ["1.png", "2.png"], encoded(size=(257, 10)))
    assert FolderSource(str(tmp_path), "all").resident() is None


def test_jpegs_of_one_size_are_kept_too(tmp_path):
    write(tmp_path, ["1.jpg", "2.jpg"], encoded(kind="JPEG"))
    assert FolderSource(str(tmp_path), "all").resident().images.shape == (2, 24, 30, 3)


RECORDED = {"test": ["b/3.png", "a/2.png"], "train": ["b/9.png", "b/4.png", "b/8.png", "a/4.png"]}
