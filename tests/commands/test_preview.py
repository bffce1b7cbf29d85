"""Previews show what training sees, to the bit, and are drawn for any data."""

from __future__ import annotations

import numpy as np
import pytest
from command import simclr
from PIL import Image

from simclr_tf.analysis import contact_sheet, training_views
from simclr_tf.analysis.contact_sheet import Cell
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data

DATA = {"train_split": "train[:40]", "image_size": 16}


def trained_on(monkeypatch, tmp_path, mode: str, *params: str, board_images=0, **flags) -> list[np.ndarray]:
    """What the first step of a real run hands to its network."""
    made = []
    call = Augment.__call__

    def recorded(self, images, seeds):
        made.append(call(self, images, seeds))
        return made[-1]

    monkeypatch.setattr(Augment, "__call__", recorded)
    tf.config.run_functions_eagerly(True)
    try:
        outcome = simclr(
            f"--mode={mode}", f"--workdir={tmp_path}/run", "--gin_file=embedded_small", "--gin_file=smoke",
            "--gin_param=train.steps=1", f"--gin_param=train.board_images={board_images}",
            *(f"--gin_param={param}" for param in params), *(f"--{name}={value}" for name, value in flags.items()),
        )  # fmt: skip
    finally:
        tf.config.run_functions_eagerly(False)
    monkeypatch.undo()
    assert outcome.code == 0, outcome.err
    return [images.numpy() for images in made]


def previewed(monkeypatch, tmp_path, mode: str, *params: str) -> training_views.Views:
    """What the preview of the same recipe draws."""
    drawn = []
    sheet = training_views.sheet

    def watched(found, *args, **kwargs):
        drawn.append(found)
        return sheet(found, *args, **kwargs)

    monkeypatch.setattr(training_views, "sheet", watched)
    outcome = simclr(
        "--mode=preview", f"--stage={mode}", f"--workdir={tmp_path}/preview", "--gin_file=embedded_small",
        "--gin_file=smoke", "--gin_param=preview.num_images=3", *(f"--gin_param={param}" for param in params),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return drawn[0]


def test_two_views_are_what_pretraining_sees(monkeypatch, tmp_path):
    params = ("train.seed=5", "Augment.blur_probability=0.5", "Augment.area_min=0.2")
    (both,) = trained_on(monkeypatch, tmp_path, "pretrain", *params)
    view_1, view_2 = np.split(both, 2)
    found = previewed(monkeypatch, tmp_path, "pretrain", *params)
    np.testing.assert_array_equal(found.columns["view 1"], view_1[:3])
    np.testing.assert_array_equal(found.columns["view 2"], view_2[:3])
    another = training_views.views(Data(train_split="train[:64]", image_size=16), Augment(), num_images=3, seed=6)
    assert not np.array_equal(another.columns["view 1"], view_1[:3])


def test_one_view_is_what_supervised_training_sees(monkeypatch, tmp_path):
    params = ("Data.label_fraction=None", "Data.labels_per_class=3")
    (images,) = trained_on(monkeypatch, tmp_path, "supervised", *params)
    found = previewed(monkeypatch, tmp_path, "supervised", *params)
    np.testing.assert_array_equal(found.columns["image"], images[:3])
    assert "view 2" not in found.columns


def test_distillation_sees_all_images_and_asks_for_no_labels(monkeypatch, tmp_path, workdir):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 20, 20, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    # The last line is what a fine-tuned teacher's workdir hands on.
    params = (f"Data.source='folder:{folder}'", "Data.train_split='all'", "Data.label_fraction=0.5")
    images, *_ = trained_on(monkeypatch, tmp_path, "distill", *params, teacher=workdir, board_images=4)
    found = previewed(monkeypatch, tmp_path, "distill", *params)
    np.testing.assert_array_equal(found.columns["image"], images[:3])
    assert (found.labels == -1).all()


def test_originals_and_each_augmentation_alone():
    data = Data(**DATA)
    found = training_views.views(data, Augment(blur_probability=0.0, gray_probability=0.25), num_images=4)
    source = data.open(data.train_split)
    for index, image, label, name in zip(found.indices, found.columns["original"], found.labels, found.names):
        np.testing.assert_array_equal(image, source.resident().images[index])
        assert (label, name) == (source.labels[index], source.example_ids[index])
    assert list(found.columns) == ["original", "view 1", "view 2", "crop alone", "flip, 50%", "color, 80%", "gray, 25%"]
    gray = found.columns["gray, 25%"]
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], atol=1e-6)  # Certain, whatever its probability.
    flipped = found.columns["flip, 50%"]
    whole = np.stack([training_views._square(image, 16) for image in found.columns["original"]])
    np.testing.assert_allclose(flipped, whole[:, :, ::-1], atol=1e-6)


def test_no_more_images_than_there_are():
    found = training_views.views(Data(train_split="train[:3]"), Augment(), num_images=8)
    assert sorted(found.indices) == [0, 1, 2]


def test_a_folder_without_labels_of_any_sizes_and_a_broken_file(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(40, 30), (25, 90), (64, 64), (33, 20)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (50, 40), dtype=np.uint8)).save(photos / "gray.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    before = sorted(path.name for path in photos.iterdir())
    outcome = simclr(
        "--mode=preview", f"--workdir={tmp_path}/out", f"--gin_param=Data.source='folder:{photos}'",
        "--gin_param=Data.train_split='all'", "--gin_param=preview.num_images=5", "--gin_param=Data.image_size=16",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "5 of 6 images" in outcome.out
    assert f"{tmp_path}/out/preview.png" in outcome.out
    assert sorted(path.name for path in photos.iterdir()) == before
    with Image.open(tmp_path / "out" / "preview.png") as picture:
        assert picture.width > 7 * 96
        assert picture.height > 5 * 96
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["preview.png"]


def test_the_recipe_of_another_stage(tmp_path):
    outcome = simclr(
        "--mode=preview", "--stage=finetune", f"--workdir={tmp_path}", "--gin_param=preview.num_images=2", "--dry_run"
    )
    assert outcome.code == 0, outcome.err
    assert list(tmp_path.iterdir()) == []


def test_seed_of_the_recipe_is_taken(tmp_path):
    def drawn(*params):
        arguments = [f"--gin_param={param}" for param in ("preview.num_images=2", *params)]
        outcome = simclr("--mode=preview", f"--workdir={tmp_path}", *arguments)
        assert outcome.code == 0, outcome.err
        return (tmp_path / "preview.png").read_bytes()

    assert drawn("train.seed=3") == drawn("preview.seed=3") != drawn()


@pytest.mark.parametrize("setting", ["num_images=0", "num_images=1000", "cell_pixels=3"])
def test_settings_that_make_no_sense(setting, tmp_path):
    outcome = simclr("--mode=preview", f"--workdir={tmp_path}/new", f"--gin_param=preview.{setting}")
    assert outcome.code == 1
    assert f"preview.{setting.split('=')[0]} is {setting.split('=')[1]}" in outcome.err


def test_sheet_places_pictures_in_a_grid():
    red, blue = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(contact_sheet.draw([[Cell(red), Cell(blue)], [Cell(blue, "x", (0, 255, 0))]], cell_pixels=32))
    first, second = np.argwhere((sheet == (255, 0, 0)).all(-1)), np.argwhere((sheet == (0, 0, 255)).all(-1))
    assert len(first) == 32 * 32
    assert second.min(0)[0] == first.min(0)[0]  # The same row,
    assert second[second[:, 0] == first.min(0)[0]].min(0)[1] > first.max(0)[1]  # to the right.
    assert len(second) == 32 * 32 + 26 * 26  # The frame covers three pixels of each side.
    assert sheet.shape[0] > second.max(0)[0] + 8


def test_sheet_keeps_proportions_and_writes_any_text():
    wide = np.zeros((10, 40, 3), np.uint8)
    rows = [[Cell(wide, "naïve 犬 " * 9)]]
    sheet = contact_sheet.draw(rows, names=["Ärger"], columns=["ü" * 99], title="犬", cell_pixels=40)
    black = np.argwhere((np.asarray(sheet) == 0).all(-1))
    assert tuple(black.max(0) - black.min(0) + 1) == (10, 40)
