"""Exports: what a fresh process makes of them, how they train, versions, other formats."""

from __future__ import annotations

import json
import os
import sys
import types

import numpy as np
import pytest
from exported_run import export, images, make_network, make_run

from simclr_tf.commands.export import check, formats, pytorch, versions
from simclr_tf.commands.export import export as verb
from simclr_tf.commands.export.module import CLASSIFIER, make_module
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.data.host_crops import preprocess
from simclr_tf.data.sources.open import open_source
from simclr_tf.models.network import Network
from simclr_tf.workdir import checkpoints


@pytest.fixture(scope="module")
def exported(workdir) -> dict[str, str]:
    return export(workdir, layer="head_layer_1", formats=["tflite"])


@pytest.fixture(scope="module")
def loaded(exported):
    return {kind: tf.saved_model.load(folder) for kind, folder in exported.items()}


def test_versions_are_numbered_by_step(exported, workdir):
    assert exported == {kind: f"{workdir}/export/{kind}/7" for kind in ("feature_vector", "classifier")}
    for folder in exported.values():
        assert os.path.exists(os.path.join(folder, "saved_model.pb"))
        assert os.path.exists(os.path.join(folder, "model.tflite"))
    assert sorted(os.listdir(f"{workdir}/export/classifier")) == ["7"]


@pytest.mark.parametrize("size", [(16, 16), (33, 20), (8, 64)])
def test_images_of_any_size_give_what_the_network_says(loaded, network, size):
    x = images(3, *size)
    outputs = network.outputs(x, training=False)
    np.testing.assert_allclose(loaded["feature_vector"](x), outputs["head_layer_1"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded["classifier"](x), network.logits(x, training=False), rtol=1e-4, atol=1e-5)
    named = loaded["classifier"](x, training=False, return_endpoints=True)
    assert {"block_group1", "final_avg_pool", "logits", "default"} <= set(named)
    np.testing.assert_allclose(named["final_avg_pool"], outputs["final_avg_pool"], rtol=1e-4, atol=1e-5)


def test_signatures_name_their_outputs(loaded, network):
    x = images()
    served = loaded["classifier"].signatures["serving_default"](images=tf.constant(x))
    np.testing.assert_allclose(served["logits"], network.logits(x, training=False), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(served["probabilities"], tf.nn.softmax(served["logits"]), atol=1e-6)
    assert list(loaded["feature_vector"].signatures["serving_default"](images=tf.constant(x))) == ["feature_vector"]


def test_encoded_images_are_prepared_as_in_evaluation(loaded, network):
    source = open_source("embedded:cifar10_mini", "test[:3]")
    pixels = source.resident().images
    encoded = [tf.io.encode_png(pixels[0]), tf.io.encode_png(pixels[1]), tf.io.encode_jpeg(pixels[2], quality=100)]
    served = loaded["classifier"].signatures["serving_bytes"](image_bytes=tf.stack(encoded))
    prepared = preprocess(tf.stack(encoded), 16)
    np.testing.assert_allclose(served["logits"], network.logits(prepared, training=False), rtol=1e-4, atol=1e-5)


def test_labels_and_preprocessing_are_stored(loaded, exported):
    assert loaded["classifier"].assets["labels.txt"].asset_path.numpy().decode().startswith(exported["classifier"])
    with open(loaded["classifier"].assets["labels.txt"].asset_path.numpy(), encoding="utf-8") as file:
        assert file.read().splitlines() == ["cat", "dog", "a long name"]
    details = verb.details_of(exported["feature_vector"])
    assert details["layer"] == "head_layer_1"
    assert details["preprocessing"]["crop_proportion_of_shorter_side"] == 1.0
    assert details["image_size"] == 16


def test_it_trains_with_gradients_and_moving_averages(exported):
    module = tf.saved_model.load(exported["feature_vector"])
    assert {id(v) for v in module.trainable_variables} < {id(v) for v in module.variables}
    before = [variable.numpy() for variable in module.variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module(images(), training=True) ** 2)
    gradients = tape.gradient(loss, list(module.trainable_variables))
    assert all(gradient is not None for gradient in gradients)
    assert sum(float(tf.norm(gradient)) > 0 for gradient in gradients) > 0.9 * len(gradients)
    trainable = {id(v) for v in module.trainable_variables}
    for variable, value in zip(module.variables, before):
        assert np.array_equal(variable, value) == (id(variable) in trainable), variable.name


def test_hub_fine_tunes_it(exported):
    hub = pytest.importorskip("tensorflow_hub")
    layer = hub.KerasLayer(exported["feature_vector"], trainable=True)
    model = keras.Sequential([keras.layers.InputLayer((16, 16, 3)), layer, keras.layers.Dense(2)])
    before = [variable.numpy() for variable in layer.variables]
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images(8), np.arange(8) % 2, batch_size=4, verbose=0)
    assert all(not np.array_equal(a, b) for a, b in zip(before, layer.variables))


def test_an_export_is_not_made_twice_nor_mixed_up(exported, workdir, tmp_path, capsys):
    assert export(workdir, layer="head_layer_1", formats=["tflite"]) == exported
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(UserError, match="same step with layer 'head_layer_1'"):
        export(workdir)
    with pytest.raises(UserError, match="ends in 'final_avg_pool'; leave one of the two out"):
        export(workdir, layer="head_layer_1", formats=["torch"])
    other = make_network()
    other.classifier.trainable_variables[0].assign_add(tf.ones_like(other.classifier.trainable_variables[0]))
    with pytest.raises(UserError, match="same step with other weights"):
        export(make_run(tmp_path, other), f"{workdir}/export", layer="head_layer_1", formats=["tflite"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layer": "logits"}, "export.layer is 'logits'; choose one of"),
        ({"formats": ["coreml"]}, "choose from tflite, onnx, torch"),
        ({"keep": 0}, "export.keep is 0"),
        ({"image_size": 2}, "export.image_size is 2"),
        ({"weights": "momentum"}, "trained without a memory"),
        ({"weights": "best"}, "choose one of trained, momentum"),
    ],
)
def test_settings_that_make_no_sense(workdir, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        export(workdir, output=str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out").exists()


def test_what_others_wrote_is_not_taken_for_ours(workdir, tmp_path):
    (tmp_path / "feature_vector" / "7").mkdir(parents=True)
    with pytest.raises(UserError, match="was not written by --mode=export"):
        export(workdir, output=str(tmp_path))


def test_an_export_that_differs_gets_no_name(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from the network"):
        export(workdir, output=str(tmp_path))
    assert [name for _, _, files in os.walk(tmp_path) for name in files] == []
    assert os.listdir(tmp_path / "feature_vector") == []


def test_what_a_format_cannot_hold_is_told_first(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_LARGEST_FILE", 1000)
    with pytest.raises(UserError, match="'tflite', whose files must be below 2 GiB"):
        export(workdir, output=str(tmp_path / "out"), formats=["tflite"])
    assert not (tmp_path / "out").exists()


def test_missing_libraries_are_told_before_anything_is_written(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.setitem(sys.modules, "onnx", types.ModuleType("onnx"))
    with pytest.raises(UserError, match="ONNX export needs tf2onnx.*requirements-export.txt"):
        export(workdir, output=str(tmp_path), formats=["onnx"])
    assert os.listdir(tmp_path) == []


def test_only_our_own_old_versions_go(tmp_path):
    for step in (1, 2, 3, 10):
        folder = versions.aside(str(tmp_path))
        os.makedirs(os.path.join(folder, "variables"))
        for name in ("saved_model.pb", "variables/variables.index"):
            with open(os.path.join(folder, name), "w") as file:
                file.write("x")
        versions.publish(folder, str(tmp_path), step)
    (tmp_path / "5").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "2" / "mine.txt").write_text("keep me")
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / versions.MARKER).write_text("not json")
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    marker = tmp_path / "1" / versions.MARKER
    marker.write_text(
        json.dumps({"version": 1, "files": [*json.loads(marker.read_text())["files"], "../outside.txt", str(outside)]})
    )
    versions.prune(str(tmp_path), newest=10, keep=2)
    left = sorted(
        os.path.relpath(os.path.join(path, file), tmp_path) for path, _, files in os.walk(tmp_path) for file in files
    )
    whole = [
        f"{step}/{name}"
        for step in (10, 3)
        for name in ("saved_model.pb", versions.MARKER, "variables/variables.index")
    ]
    assert left == sorted(["2/mine.txt", f"4/{versions.MARKER}", "outside.txt", *whole])
    assert sorted(os.listdir(tmp_path)) == ["10", "2", "3", "4", "5", "notes", "outside.txt"]


def test_what_killed_exports_left_goes_when_it_is_old(tmp_path):
    old, new = (versions.aside(str(tmp_path)) for _ in range(2))
    os.utime(old, (0, 0))
    mine = tmp_path / "mine"
    mine.mkdir()
    os.utime(mine, (0, 0))
    third = versions.aside(str(tmp_path))
    assert {str(path) for path in tmp_path.iterdir()} == {new, third, str(mine)}


def test_versions_of_a_longer_run_do_not_push_out_the_new_one(tmp_path):
    for step in (7, 8, 9, 30, 40, 50):
        versions.publish(versions.aside(str(tmp_path)), str(tmp_path), step)
    versions.prune(str(tmp_path), newest=9, keep=2)
    assert sorted(os.listdir(tmp_path), key=int) == ["8", "9", "30", "40", "50"]


def test_the_momentum_network_can_be_exported(tmp_path):
    network, averaged = make_network(), make_network()
    averaged.encoder.stem[0].conv.kernel.assign_add(tf.ones_like(averaged.encoder.stem[0].conv.kernel))
    memory = tf.train.Checkpoint(network=tf.train.Checkpoint(encoder=averaged.encoder, head=averaged.head))
    workdir = make_run(tmp_path, network)
    checkpoints.Checkpoints(workdir, {**network.parts(), "memory": memory}, keep=3).save(8)
    found = export(workdir, weights="momentum")
    assert list(found) == ["feature_vector"]
    expected = averaged.outputs(images(), training=False)["final_avg_pool"]
    np.testing.assert_allclose(tf.saved_model.load(found["feature_vector"])(images()), expected, rtol=1e-4, atol=1e-5)


# Other formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_other_formats_agree_on_real_images(name, network, tmp_path):
    if name == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    module = make_module(network, CLASSIFIER, "", {})
    shown, _ = verb._samples(16)
    expected = verb._expected(network, CLASSIFIER, "", shown)
    file, writer = formats.WRITERS[name]
    error = writer(module, verb._outputs(CLASSIFIER), 16, str(tmp_path / file), shown, expected)
    assert error < 1e-5
    assert (tmp_path / file).stat().st_size > 1000
    wrong = {**expected, "logits": 1.1 * expected["logits"]}
    with pytest.raises(UserError, match="differs from the network"):
        writer(module, verb._outputs(CLASSIFIER), 16, str(tmp_path / "wrong"), shown, wrong)
    assert not (tmp_path / "wrong").exists()


BOTTLENECK = {"depth": 29, "width": 1, "stem": "imagenet", "sk_ratio": 0.0, "se_ratio": 0.0}


@pytest.fixture(scope="module", params=[0, 1], ids=["linear", "on a head layer"])
def for_torch(request) -> Network:
    return make_network(BOTTLENECK, layer=request.param, size=32)


def blocky(size: int) -> np.ndarray:
    low = np.random.default_rng(2).uniform(size=(2, 8, 8, 3))
    return np.repeat(np.repeat(low, size // 8, axis=1), size // 8, axis=2).astype(np.float32)


def test_a_state_dict_says_what_the_network_says(for_torch, tmp_path):
    path = str(tmp_path / pytorch.FILE)
    expected = for_torch.logits(blocky(64), training=False).numpy()
    assert pytorch.write(for_torch, path, blocky(64), expected, classifier=True) < 1e-5
    state = pytorch.load(path)
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    with pytest.raises(UserError, match="differs"):
        pytorch.write(for_torch, path, blocky(64), 1.1 * expected, classifier=True)


def test_pytorch_itself_loads_the_state_dict(for_torch, tmp_path):
    """A network with torchvision's names and shapes, written here: torchvision need not be installed."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, filters, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, filters, 1, bias=False), nn.BatchNorm2d(filters)
            self.conv2, self.bn2 = nn.Conv2d(filters, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)
            self.conv3, self.bn3 = nn.Conv2d(filters, 4 * filters, 1, bias=False), nn.BatchNorm2d(4 * filters)
            shortcut = nn.Conv2d(inputs, 4 * filters, 1, stride, bias=False), nn.BatchNorm2d(4 * filters)
            self.downsample = nn.Sequential(*shortcut) if stride > 1 or inputs != 4 * filters else nn.Identity()

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
            return torch.relu(y + self.downsample(x))

    class ResNet(nn.Module):
        def __init__(self, fc):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
            for group in range(4):
                inputs = 64 if group == 0 else 128 * 2**group
                setattr(self, f"layer{group + 1}", nn.Sequential(Block(inputs, 64 * 2**group, 2 if group else 1)))
            self.fc = fc

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean(dim=(2, 3)))

    width, classes = for_torch.encoder.feature_dim, for_torch.num_classes
    fc = nn.Linear(width, classes)
    if for_torch.classifier_layer:
        fc = nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), fc)
    pytorch.save(pytorch.state_dict(for_torch, classifier=True), str(tmp_path / pytorch.FILE))
    model = ResNet(fc).eval()
    model.load_state_dict(safetensors.load_file(str(tmp_path / pytorch.FILE)), strict=True)
    with torch.no_grad():
        actual = model(torch.tensor(blocky(64).transpose(0, 3, 1, 2))).numpy()
    expected = for_torch.logits(blocky(64), training=False).numpy()
    assert check.relative(actual, expected) < 1e-5


@pytest.mark.parametrize(
    "encoder, reason",
    [
        ({"depth": 10}, "the first block of ResNet-10 has a projection"),
        ({"stem": "cifar"}, "CIFAR stem"),
        ({"width": 0.125}, "no width 0.125"),
        ({"sk_ratio": 0.0625}, "selective kernels"),
    ],
)
def test_torchvision_cannot_hold_other_networks(encoder, reason):
    changed = {**BOTTLENECK, **encoder}
    network = types.SimpleNamespace(
        encoder=types.SimpleNamespace(**{("stem_kind" if k == "stem" else k): v for k, v in changed.items()})
    )
    with pytest.raises(UserError, match=reason):
        pytorch.state_dict(network, classifier=False)
