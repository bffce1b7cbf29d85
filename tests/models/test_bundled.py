"""Networks inside the package: small, whole, as good as their cards say, at hand without a run, never written to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from command import simclr
from graphs import convolutions

from simclr_tf.commands import vector_files
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import unit_images
from simclr_tf.data.sources.open import open_source
from simclr_tf.models import bundled
from simclr_tf.workdir.networks import load_network

NAMES = bundled.names()
DEFAULT = bundled.DEFAULT


def folder(name: str) -> str:
    return bundled.resolve(f"embedded:{name}", "--workdir")


def contents(path: str) -> dict[str, int]:
    found = [os.path.join(at, name) for at, _, files in os.walk(path) for name in files]
    return {file: os.path.getsize(file) for file in found}


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def examples():
    """The embedded test images in [0, 1] and their labels."""
    source = open_source("embedded:cifar10_mini", "test")
    return unit_images(tf.constant(source.resident().images)), source.labels


@pytest.fixture(scope="module")
def logits(name, examples) -> np.ndarray:
    network, _, _ = load_network(folder(name))
    return tf.function(network.logits, autograph=False)(examples[0], training=False).numpy()


def test_the_default_is_there():
    assert DEFAULT in [f"embedded:{name}" for name in NAMES]


def test_it_is_small(name):
    sizes = contents(folder(name))
    assert sum(sizes.values()) < 5e6
    assert not [path for path in sizes if b"/tmp/" in Path(path).read_bytes()], "paths of the machine that made it"


def test_it_is_as_good_as_its_card_says(name, logits, examples):
    with open(os.path.join(folder(name), "card.json")) as file:
        card = json.load(file)
    # Of 1,000 images; another machine may round two or three to the other side.
    assert 100 * np.mean(logits.argmax(axis=1) == examples[1]) == pytest.approx(card["top_1_embedded_test"], abs=0.3)


def test_its_saved_model_says_the_same(name, logits, examples):
    loaded = tf.saved_model.load(os.path.join(folder(name), "saved_model"))
    said = loaded.signatures["serving_default"](images=examples[0][:50])["logits"]
    np.testing.assert_allclose(said, logits[:50], rtol=1e-3, atol=1e-3)
    # See test_convolution: whoever trains it takes these operations' gradients.
    made = {entry for function in loaded.__call__.concrete_functions for entry in convolutions(function.graph)}
    assert made == {("Conv2D", (3, 3), 1), ("Conv2D", (3, 3), 2), ("Conv2D", (1, 1), 1)}


def test_images_are_embedded_and_compared_without_a_run(tmp_path):
    output, sheet = str(tmp_path / "vectors.npz"), str(tmp_path / "like.png")
    before = contents(bundled.FOLDER)
    embed = ("--mode=embed", "--source=embedded:cifar10_mini", f"--output={output}", "--gin_param=embed.split='test'")
    done = simclr(*embed)
    assert done.code == 0, done.err
    assert f"no --workdir was given; using {DEFAULT}" in done.out
    found = vector_files.read(output, "--source")
    assert len(found.names) == 1000 and found.columns["probabilities"].shape == (1000, 10)
    unit = found.columns["vector"] / np.linalg.norm(found.columns["vector"], axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(len(unit))
    label = found.columns["label"]
    # By chance one of ten.
    assert np.mean(label[similarity.argmax(axis=1)] == label) > 0.35
    done = simclr("--mode=neighbors", f"--source={output}", f"--query={found.names[0]}", f"--output={sheet}")
    assert done.code == 0, done.err
    assert os.path.getsize(sheet) > 0
    assert contents(bundled.FOLDER) == before


def test_fine_tuning_starts_at_the_encoder_of_a_network_without_a_head(tmp_path):
    shortly = ("EPOCHS=None", "train.steps=1", "Data.eval_split='test[:20]'", "train.board_images=0")
    command = ("--mode=finetune", f"--init_from={DEFAULT}", *(f"--gin_param={setting}" for setting in shortly))
    done = simclr(*command, f"--workdir={tmp_path}/w")
    assert done.code == 0, done.err
    done = simclr(*command, f"--workdir={tmp_path}/v", "--gin_param=Supervised.head_layer=1")
    assert (done.code, "Supervised.head_layer=0 starts from the encoder" in done.err) == (1, True), done.err


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--mode=report", "--workdir=embedded:cifar10", "--output={tmp}/a.html"], 1, "--workdir=embedded:cifar10 is"),
        (["--mode=finetune", "--workdir={tmp}/w", "--init_from=embedded:"], 1, "--init_from=embedded: is unknown"),
        (["--mode=distill", "--workdir={tmp}/w", "--teacher=embedded:x"], 1, f"choose {DEFAULT}"),
        (["--mode=pretrain", f"--workdir={DEFAULT}"], 2, "writes into its workdir; only export, embed"),
        (["--mode=knn", f"--workdir={DEFAULT}"], 2, "writes into its workdir"),
        (["--mode=export", f"--workdir={DEFAULT}"], 2, "--output is missing"),
        (["--mode=report", f"--workdir={{tmp}},{DEFAULT}"], 2, "--output is missing"),
        (
            ["--mode=export", f"--workdir={DEFAULT}", "--output=/proc/none"],
            1,
            "/proc/none/feature_vector cannot be written",
        ),
        (
            ["--mode=embed", "--source=embedded:cifar10_mini", "--output=/proc/v.npz"],
            1,
            "v.npz.parts cannot be written",
        ),
    ],
)
def test_what_cannot_be_meant(arguments, code, message, tmp_path):
    before = contents(bundled.FOLDER)
    done = simclr(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert (done.code, message in done.err) == (code, True), done.err
    assert not list(tmp_path.iterdir()) and contents(bundled.FOLDER) == before
