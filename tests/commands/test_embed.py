"""Vectors of images: order, resuming after a kill, the three file formats, and neighbors."""

from __future__ import annotations

import os

import numpy as np
import pytest
from command import simclr
from exported_run import make_network, make_run
from PIL import Image

from simclr_tf.commands import embed, neighbors, vector_files
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import decode
from simclr_tf.data.host_crops import preprocess
from simclr_tf.settings.run_context import RunContext

SETTINGS = {"batch_size": 4, "images_per_part": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(21):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        low = rng.uniform(0, 255, size=(2, 2, 3)) * (0.2 + 0.04 * i)
        pixels = np.repeat(np.repeat(low, 20, 0), 22, 1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:02d} é.{'png' if i % 3 else 'jpg'}")
    (folder / "a" / "broken.jpg").write_bytes(b"no picture")
    return str(folder)


def place(workdir, pictures, output, **more) -> RunContext:
    return RunContext(workdir, tf.distribute.get_strategy(), source=f"folder:{pictures}", output=str(output), **more)


@pytest.fixture(scope="module")
def whole(workdir, pictures, tmp_path_factory) -> str:
    """A file that was written without interruption."""
    output = str(tmp_path_factory.mktemp("vectors") / "vectors.npz")
    report = embed.run_embed(place(workdir, pictures, output), **SETTINGS)
    assert (report["rows"], report["bad_images"]) == (21, 1)
    return output


def test_vectors_are_those_of_the_images_in_the_order_of_their_names(whole, network, pictures):
    found = vector_files.read(whole, "--source")
    names = sorted(
        f"{folder}/{name}" for folder in "ab" for name in os.listdir(f"{pictures}/{folder}") if name != "broken.jpg"
    )
    assert found.names == names
    assert not os.path.exists(f"{whole}.parts")
    for row in (0, 9, 20):
        with open(f"{pictures}/{names[row]}", "rb") as file:
            image = preprocess(tf.constant([file.read()]), 16)
        outputs = network.outputs(image, training=False)
        np.testing.assert_allclose(found.columns["vector"][row], outputs["final_avg_pool"][0], rtol=1e-4, atol=1e-5)
        probabilities = tf.nn.softmax(network.logits(image, training=False))[0]
        np.testing.assert_allclose(found.columns["probabilities"][row], probabilities, rtol=1e-3, atol=1e-5)
    assert found.columns["label"].tolist() == [0] * 11 + [1] * 10
    assert found.details["layer"] == "final_avg_pool"


def test_a_file_opens_without_pickle(whole):
    with np.load(whole, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["details", "label", "names", "probabilities", "vector"]
        assert arrays["vector"].dtype == np.float32


def test_a_killed_run_goes_on_where_it_was(whole, workdir, pictures, tmp_path, monkeypatch, capsys):
    output = tmp_path / "vectors.npz"
    add, computed = vector_files.Parts.add, []

    def die_at_the_second(self, start, stop, columns):
        if start > 0:
            raise KeyboardInterrupt
        add(self, start, stop, columns)

    def count(self, start, stop, columns):
        computed.append((start, stop))
        add(self, start, stop, columns)

    monkeypatch.setattr(vector_files.Parts, "add", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed.run_embed(place(workdir, pictures, output), **SETTINGS)
    assert not output.exists()
    monkeypatch.setattr(vector_files.Parts, "add", count)
    embed.run_embed(place(workdir, pictures, output), batch_size=3, images_per_part=6)
    assert computed[0][0] == 8
    assert "resuming after 8 of 22 images" in capsys.readouterr().out
    expected, actual = vector_files.read(whole, "x"), vector_files.read(str(output), "x")
    assert actual.names == expected.names
    for name, value in expected.columns.items():
        np.testing.assert_allclose(actual.columns[name], value, rtol=1e-4, atol=1e-5)


def test_pieces_of_other_vectors_are_not_mixed_in(workdir, pictures, tmp_path):
    output = tmp_path / "vectors.npz"
    vector_files.Parts(str(output), {"layer": "another"})
    with pytest.raises(UserError, match="has pieces of other vectors"):
        embed.run_embed(place(workdir, pictures, output), **SETTINGS)


def test_what_is_there_is_left_alone(whole, workdir, pictures, tmp_path, capsys):
    embed.run_embed(place(workdir, pictures, whole), **SETTINGS)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists and holds something else"):
        embed.run_embed(place(workdir, pictures, whole), layer="head_layer_1", **SETTINGS)
    (tmp_path / "v.npz").write_text("mine")
    with pytest.raises(UserError, match="is not a file of vectors"):
        embed.run_embed(place(workdir, pictures, tmp_path / "v.npz"), **SETTINGS)
    assert (tmp_path / "v.npz").read_text() == "mine"


@pytest.mark.parametrize(
    "kind", ["empty.npz", "array.npz", "other.npz", "other.tfrecord", "garbage.tfrecord", "x.parquet"]
)
def test_files_that_are_no_vectors_are_told_in_one_line(kind, tmp_path):
    path = tmp_path / kind
    if kind == "empty.npz":
        path.write_bytes(b"")
    elif kind == "array.npz":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "other.npz":
        np.savez(path, vector=np.zeros([2, 3]), names=np.array(["a", "b"]), details=np.array("[]"))
    elif kind == "x.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.table({"name": ["a"], "vector": [1.0]}), path)
    else:
        feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"]))}
        example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(example if kind == "other.tfrecord" else b"\xff\xff\xff")
    with pytest.raises(UserError, match="is not a file of vectors") as told:
        vector_files.read(str(path), "--source")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["npz", "parquet", "tfrecord"])
def test_every_format_gives_back_what_was_written(kind, whole, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow.parquet")
    original = vector_files.read(whole, "x")
    path = str(tmp_path / f"v.{kind}")
    cuts = [slice(0, 8), slice(8, 13), slice(13, None)]
    shapes = {name: value.shape[1:] for name, value in original.columns.items()}
    layout = vector_files.Layout(original.names, shapes, original.details)
    vector_files.write(path, layout, lambda: ({k: v[cut] for k, v in original.columns.items()} for cut in cuts))
    found = vector_files.read(path, "x")
    assert (found.names, found.details) == (original.names, original.details)
    for name, value in original.columns.items():
        np.testing.assert_array_equal(found.columns[name], value)
    assert len(os.listdir(tmp_path)) == (2 if kind == "tfrecord" else 1)


@pytest.mark.parametrize(
    "output, source, settings, error, message",
    [
        ("v.csv", None, {}, UsageError, "let it end in .npz, .parquet, .tfrecord"),
        ("v.npz", "pictures", {}, UsageError, "write folder:pictures"),
        ("v.npz", "folder:/nowhere", {}, UserError, "is not there"),
        ("v.npz", None, {"layer": "logits"}, UserError, "embed.layer is 'logits'; choose one of"),
        ("v.npz", None, {"batch_size": 0}, UserError, "embed.batch_size is 0"),
        ("v.npz", None, {"max_bad_images": 0}, UserError, "broken.jpg"),
    ],
)
def test_wrong_wishes_are_told_in_one_line(workdir, pictures, tmp_path, output, source, settings, error, message):
    wish = place(workdir, pictures, tmp_path / output)
    wish = wish._replace(source=source) if source else wish
    with pytest.raises(error, match=message) as told:
        embed.run_embed(wish, **settings)
    assert "\n" not in str(told.value)
    assert not (tmp_path / output).exists()


def test_neighbors_are_the_most_similar_images(whole, workdir, pictures, tmp_path):
    found = vector_files.read(whole, "x")
    name = found.names[3]
    output = tmp_path / "sheet.png"
    file = f"{pictures}/{name}"
    other = f"{pictures}/{found.names[4]}"
    queries = (name, file, file, other)
    query = place(workdir, pictures, output, queries=queries)._replace(source=whole)
    answers = neighbors.run_neighbors(query, num_neighbors=3)
    units = found.columns["vector"] / np.linalg.norm(found.columns["vector"], axis=1, keepdims=True)
    similarity = units @ units[3]
    order = [row for row in np.argsort(-similarity, kind="stable") if row != 3]
    by_name, by_file, of_other = answers.values()
    np.testing.assert_allclose([row["similarity"] for row in by_name], similarity[order[:3]], atol=1e-5)
    assert name not in [row["name"] for row in by_name]
    assert by_file[0]["similarity"] > 0.9999  # The file is that very image, and now counts.
    assert of_other[0]["similarity"] > 0.9999 and found.names[4] in [row["name"] for row in of_other]
    picture = decode(tf.constant(output.read_bytes()))
    assert picture.shape[0] > 2 * 128
    assert picture.shape[1] > 4 * 128


def test_neighbors_of_another_network_are_refused(whole, pictures, tmp_path):
    network = make_network()
    network.encoder.stem[0].conv.kernel.assign_add(tf.ones_like(network.encoder.stem[0].conv.kernel))
    other = make_run(tmp_path / "other", network)
    name = vector_files.read(whole, "x").names[0]
    query = place(other, pictures, tmp_path / "s.png", queries=(f"{pictures}/{name}",))._replace(source=whole)
    with pytest.raises(UserError, match="were made by .*, not by the network"):
        neighbors.run_neighbors(query)
    with pytest.raises(UserError, match="neither a file nor the name"):
        neighbors.run_neighbors(query._replace(queries=("nobody",)))
    with pytest.raises(UserError, match="cannot be read as an image"):
        neighbors.run_neighbors(query._replace(queries=(f"{pictures}/a/broken.jpg",), workdir=whole_workdir(whole)))


def whole_workdir(whole: str) -> str:
    return os.path.dirname(os.path.dirname(vector_files.read(whole, "x").details["checkpoint"]))


def test_the_commands_work_from_the_command_line(workdir, pictures, tmp_path):
    output = tmp_path / "v.npz"
    made = simclr("--mode=embed", f"--workdir={workdir}", f"--source=folder:{pictures}", f"--output={output}")
    assert made.code == 0, made.err
    assert "21 vectors of 32 numbers" in made.out
    name = vector_files.read(str(output), "x").names[0]
    shown = simclr(
        "--mode=neighbors",
        f"--workdir={workdir}",
        f"--source={output}",
        f"--query={name}",
        f"--output={tmp_path / 's.png'}",
        "--gin_param=neighbors.num_neighbors=2",
    )
    assert shown.code == 0, shown.err
    assert shown.out.count("  0.") + shown.out.count("  1.") == 2
    without = simclr("--mode=neighbors", f"--workdir={workdir}", f"--source={output}")
    assert without.code == 2
    assert "--query is missing" in without.err
