"""Previews show what training sees, to the bit, and are drawn for any data."""

from __future__ import annotations

import numpy as np
import pytest
from command import simclr
from PIL import Image

from simclr_tf import contact_sheet, preview
from simclr_tf.cluster import make_strategy
from simclr_tf.contact_sheet import Cell
from simclr_tf.data.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.loop import Loop
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.groups import excluded_variables
from simclr_tf.optim.optimizers import Sgd
from simclr_tf.stack import tf
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.stages.supervised import Supervised

DATA = {"train_split": "train[:40]", "image_size": 16}


class Recorder:
    """Stands for an Augment and keeps what it made."""

    def __init__(self, augment):
        self._augment, self.made = augment, []

    def __call__(self, images, seeds):
        self.made.append(self._augment(images, seeds))
        return self.made[-1]

    def __getattr__(self, name):
        return getattr(self._augment, name)


def trained_on(make_stage, seed: int, batch_size: int) -> list[np.ndarray]:
    """What the first step of a real run hands to its network."""
    strategy = make_strategy("one_device")
    with strategy.scope():
        stage = make_stage()
        stage._augment = recorder = Recorder(stage._augment)
        optimizer = Sgd()
        optimizer.build(stage.trained_variables, excluded_variables(stage.network.parts().values()))
        loop = Loop(stage, optimizer, lambda step: tf.constant(0.1), strategy, seed=seed)
    size = {"global_batch_size": batch_size, "per_replica_batch_size": batch_size}
    streams = {
        name: train_dataset(stream.source, stream.prepare, **size, seed=seed, num_steps=1)
        for name, stream in stage.train_inputs().items()
    }
    batches = [next(iter(tf.data.Dataset.zip(streams)))]
    tf.config.run_functions_eagerly(True)
    try:
        list(loop.run(iter(batches), 1))
    finally:
        tf.config.run_functions_eagerly(False)
    return [made.numpy() for made in recorder.made]


def encoder(**kwargs):
    return ResNet(depth=18, width=0.0625, stem="cifar", **kwargs)


def test_two_views_are_what_pretraining_sees():
    augment = Augment()

    def make_stage():
        return Pretrain(
            Data(**DATA), augment, encoder, lambda **kwargs: ProjectionHead(num_layers=1, output_dim=8, **kwargs)
        )

    view_1, view_2 = trained_on(make_stage, seed=5, batch_size=8)
    found = preview.views(Data(**DATA), augment, num_images=3, seed=5)
    np.testing.assert_array_equal(found.columns["view 1"], view_1[:3])
    np.testing.assert_array_equal(found.columns["view 2"], view_2[:3])
    assert not np.array_equal(preview.views(Data(**DATA), augment, num_images=3, seed=6).columns["view 1"], view_1[:3])


def test_one_view_is_what_supervised_training_sees():
    augment = Augment(color_strength=0.5)
    (images,) = trained_on(lambda: Supervised("finetune", Data(**DATA), augment, encoder), seed=1, batch_size=8)
    found = preview.views(Data(**DATA), augment, two_views=False, num_images=4, seed=1)
    np.testing.assert_array_equal(found.columns["image"], images[:4])
    assert "view 2" not in found.columns


def test_originals_and_each_augmentation_alone():
    data = Data(**DATA)
    found = preview.views(data, Augment(blur_probability=0.0, gray_probability=0.25), num_images=4)
    source = data.open(data.train_split)
    for index, image, label, name in zip(found.indices, found.columns["original"], found.labels, found.names):
        np.testing.assert_array_equal(image, source.resident().images[index])
        assert (label, name) == (source.labels[index], source.example_ids[index])
    assert list(found.columns) == ["original", "view 1", "view 2", "crop alone", "flip, 50%", "color, 80%", "gray, 25%"]
    gray = found.columns["gray, 25%"]
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], atol=1e-6)  # Certain, whatever its probability.
    flipped = found.columns["flip, 50%"]
    whole = np.stack([preview._square(image, 16) for image in found.columns["original"]])
    np.testing.assert_allclose(flipped, whole[:, :, ::-1], atol=1e-6)


def test_no_more_images_than_there_are():
    found = preview.views(Data(train_split="train[:3]"), Augment(), num_images=8)
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
