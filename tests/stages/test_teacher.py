"""Teachers: workdirs, this project's exports, and SavedModels of others; what is none is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exported_run import export, images, make_network, make_run
from tensorflow.core.protobuf import saved_model_pb2

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.models.resnet import ResNet
from simclr_tf.stages.distill import Distill
from simclr_tf.stages.teacher import load_teacher


@pytest.fixture(scope="module")
def exported(workdir) -> dict[str, str]:
    return export(workdir)


def test_an_export_teaches_what_its_run_teaches(exported, workdir, network):
    x = images()
    expected = network.logits(x, training=False).numpy()
    for path in (workdir, exported["classifier"], f"{workdir}/export/classifier", f"{workdir}/export"):
        teacher = load_teacher(path)
        np.testing.assert_allclose(teacher.logits(x), expected, rtol=1e-4, atol=1e-5)
        assert (teacher.num_classes, teacher.image_size) == (3, 16)
        json.dumps(teacher.describe())
    assert len(load_teacher(exported["classifier"]).variables) == sum(
        len(p.variables) for p in network.parts().values()
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_teacher_works_in_a_compiled_step(exported, network, jit_compile):
    teacher = load_teacher(exported["classifier"])
    holder = tf.Module()
    holder.teacher = teacher
    assert holder.variables == ()  # Neither trained nor checkpointed.
    variable = tf.Variable(images())

    @tf.function(jit_compile=jit_compile)
    def step():
        with tf.GradientTape() as tape:
            logits = teacher.logits(variable)
        return logits, tape.gradient(logits, variable, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    logits, gradient = step()
    np.testing.assert_allclose(logits, network.logits(images(), training=False), rtol=1e-3, atol=1e-4)
    assert not np.any(gradient)


@pytest.mark.parametrize("kind", ["workdir", "classifier"])
def test_a_teacher_works_on_several_replicas(exported, workdir, network, kind):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        teacher = load_teacher(workdir if kind == "workdir" else exported[kind])

    @tf.function
    def step(x):
        return strategy.run(teacher.logits, args=(x,))

    for logits in strategy.experimental_local_results(step(tf.constant(images()))):
        np.testing.assert_allclose(logits, network.logits(images(), training=False), rtol=1e-4, atol=1e-5)


class Foreign(tf.Module):
    """A SavedModel of somebody else: called with `trainable`, as the published ones are, and returning a dictionary."""

    def __init__(self, outputs):
        super().__init__()
        self.kernel = tf.Variable(np.random.default_rng(0).standard_normal((3, 5)), dtype=tf.float32)
        self.bias = tf.Variable(tf.zeros([5]))
        self._outputs = outputs

    @tf.function
    def __call__(self, inputs, trainable):
        features = tf.reduce_mean(inputs, [1, 2])
        logits = features @ self.kernel + self.bias + (100.0 if trainable else 0.0)
        named = {
            "block_group1": inputs,
            "final_avg_pool": features,
            "logits_sup": logits,
            "probabilities": tf.nn.softmax(logits),
            "a": logits,
            "b": logits,
        }
        return {name: named[name] for name in self._outputs}


def save_foreign(path, *outputs, shape=(None, None, None, 3), dtype=tf.float32) -> Foreign:
    module = Foreign(outputs)
    for trainable in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec(shape, dtype), trainable=trainable)
    tf.saved_model.save(module, str(path))
    return module


def test_a_published_saved_model_teaches(tmp_path):
    module = save_foreign(tmp_path, "block_group1", "final_avg_pool", "logits_sup")
    teacher = load_teacher(str(tmp_path))
    np.testing.assert_allclose(teacher.logits(images()), module(images(), trainable=False)["logits_sup"], rtol=1e-5)
    assert (teacher.num_classes, teacher.image_size, len(teacher.variables)) == (5, None, 2)


def test_probabilities_teach_as_their_logarithm(tmp_path):
    module = save_foreign(tmp_path, "final_avg_pool", "probabilities")
    teacher = load_teacher(str(tmp_path))
    assert teacher.describe()["output_is"] == "probabilities"
    expected = module(images(), trainable=False)["probabilities"]
    np.testing.assert_allclose(tf.nn.softmax(teacher.logits(images())), expected, rtol=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_keras_saved_model_teaches(tmp_path, softmax):
    model = keras.Sequential(
        [
            keras.layers.InputLayer((16, 16, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(6, activation="softmax" if softmax else None),
        ]
    )
    model.save(str(tmp_path), save_format="tf")
    teacher = load_teacher(str(tmp_path))
    assert (teacher.num_classes, teacher.image_size) == (6, 16)
    np.testing.assert_allclose(
        tf.nn.softmax(teacher.logits(images())),
        model(images()) if softmax else tf.nn.softmax(model(images())),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    "outputs, shape, dtype, message",
    [
        (("a", "b"), (None, None, None, 3), tf.float32, r"which of its outputs are the logits \(a, b\)"),
        (("final_avg_pool",), (None, None, None, 3), tf.float32, "no output has class scores"),
        (("logits_sup",), (2, 8, 8, 3), tf.float32, "not .batch, height, width, 3. of any batch"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path, outputs, shape, dtype, message):
    save_foreign(tmp_path, *outputs, shape=shape, dtype=dtype)
    with pytest.raises(UserError, match=message) as error:
        load_teacher(str(tmp_path))
    assert "\n" not in str(error.value)


def test_other_paths_are_no_teachers(tmp_path, exported, workdir):
    with pytest.raises(UserError, match="no such folder"):
        load_teacher(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="neither architecture.json nor saved_model.pb"):
        load_teacher(str(tmp_path))
    with pytest.raises(UserError, match="features, not class logits"):
        load_teacher(exported["feature_vector"])
    (tmp_path / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_teacher(str(tmp_path))
    assert "\n" not in str(error.value)
    without = make_network(classes=0)
    with pytest.raises(UserError, match="has no classifier"):
        load_teacher(make_run(tmp_path / "plain", without))


class Wild(tf.Module):
    """Would leave a file behind where it is only loaded and looked at."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
    def __call__(self, images):
        with tf.control_dependencies([tf.io.write_file(self._path, "here")]):
            return tf.reduce_mean(images, [1, 2])


def test_a_saved_model_that_does_more_than_compute_is_not_loaded(tmp_path):
    mark = tmp_path / "mark"
    tf.saved_model.save(Wild(str(mark)), str(tmp_path / "wild"))
    with pytest.raises(UserError, match="was not loaded: it reads or writes files .*WriteFile") as error:
        load_teacher(str(tmp_path / "wild"))
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_assets_outside_of_a_saved_model_are_refused(tmp_path):
    save_foreign(tmp_path, "logits_sup")
    path = tmp_path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    model.meta_graphs[0].asset_file_def.add().filename = "../../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="its asset '../../secret' lies outside"):
        load_teacher(str(tmp_path))


def test_a_teacher_of_one_size_teaches_no_other(tmp_path):
    save_foreign(tmp_path, "logits_sup", shape=(None, 24, 24, 3))
    with pytest.raises(UserError, match="takes images of 24 pixels, but Data.image_size is 32"):
        Distill(Data(), Augment(), lambda **kw: ResNet(10, 0.0625, stem="cifar", **kw), str(tmp_path))


def test_numbered_classes_are_unknown_ones(tmp_path):
    """A published checkpoint comes without names, and may teach any data of as many classes."""
    workdir = make_run(tmp_path, make_network())
    path = tmp_path / "architecture.json"
    described = json.loads(path.read_text())
    assert load_teacher(workdir).class_names == described["class_names"] != []
    path.write_text(json.dumps({**described, "class_names": ["class 0", "class 1", "class 2"]}))
    assert load_teacher(workdir).class_names == []
