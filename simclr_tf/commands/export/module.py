"""Makes a reusable SavedModel of a network, with TF Hub's common image API.

The saved object is called as `module(images, training=False)` and lists its trainable variables. When called with
`training=True`, it updates the moving averages of its batch norms. `hub.KerasLayer(path, trainable=True)` needs no
more. In training, batch norms use the statistics of one replica, since the strategy of a later fine-tuning is unknown.
"""

from __future__ import annotations

import os

from simclr_tf.core import checks
from simclr_tf.core.tf import tf
from simclr_tf.data.host_crops import preprocess
from simclr_tf.models.means import flat
from simclr_tf.models.network import Network, layers

FEATURES, CLASSIFIER = "feature_vector", "classifier"
DETAILS, LABELS = "export.json", "labels.txt"


class Reusable(tf.Module):
    """The object to save. Plain attributes replace `tf.Module`'s properties of these names, which are not saved."""

    variables: list[tf.Variable] = None
    trainable_variables: list[tf.Variable] = None


def make_module(network: Network, kind: str, layer: str, assets: dict[str, str]) -> Reusable:
    """Makes the object to save.

    Args:
      network: A network in float32, created outside any strategy.
      kind: FEATURES or CLASSIFIER.
      layer: The output for FEATURES, one of `layers`; maps are averaged over their positions.
      assets: Name -> local file to store with the object.

    Returns:
      The object, without signatures. `__call__(images, training=False, return_endpoints=False)` takes images
      [B, H, W, 3] float32 in [0, 1] of any size and returns features [B, D] or logits [B, C]. With `return_endpoints`
      it returns a dictionary of all outputs, in which these are "default".
    """
    if kind == FEATURES:
        checks.choice("export.layer", layer, layers(network))
    module = Reusable()
    parts = [part for name, part in network.parts().items() if kind == CLASSIFIER or name != "classifier"]
    # Variables only: saving a Keras layer traces it several times.
    module.everything = [variable for part in parts for variable in part.variables]
    needed = _needed(network, kind, layer)
    module.variables = [variable for part in needed for variable in part.variables]
    module.trainable_variables = [variable for part in needed for variable in part.trainable_variables]
    module.regularization_losses = []  # Part of the reusable SavedModel interface.
    module.assets = {name: tf.saved_model.Asset(path) for name, path in assets.items()}

    def endpoints(images: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
        outputs = network.outputs(images, training=training)
        outputs.pop("projection", None)  # The same tensor as the last head layer.
        if kind == CLASSIFIER:
            logits = network.classifier(outputs[f"head_layer_{network.classifier_layer}"])
            return {**outputs, "logits": logits, "default": logits}
        return {**outputs, "default": flat(outputs[layer])}

    @tf.function
    def call(images, training=False, return_endpoints=False):
        outputs = endpoints(images, training)
        return outputs if return_endpoints else outputs["default"]

    images = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
    # Only traced combinations are saved.
    for return_endpoints in (False, True):
        for training in (False, True):
            call.get_concrete_function(images, training=training, return_endpoints=return_endpoints)
    module.__call__ = call
    return module


def _needed(network: Network, kind: str, layer: str) -> list[tf.Module]:
    """Returns the parts of the network that the output depends on, so that fine-tuning trains no unused variables."""
    if kind == CLASSIFIER:
        depth = network.classifier_layer
    else:
        depth = int(layer[len("head_layer_") :]) if layer.startswith("head_layer_") else 0
    parts: list[tf.Module] = [network.encoder]
    sections = list(network.encoder.sections())
    if kind == FEATURES and layer in sections:
        count = sections.index(layer) + 1
        parts = [part for modules in list(network.encoder.sections().values())[:count] for part in modules]
    parts += network.head.projections[:depth] if depth else []
    return [*parts, network.classifier] if kind == CLASSIFIER else parts


def signatures(
    module: Reusable, kind: str, image_size: int, bit_depth: int | None = None
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """Returns the signatures to save with a module.

    `serving_default` takes `images`, [B, H, W, 3] float32 in [0, 1]. `serving_bytes` takes `image_bytes`, [B] strings,
    each the content of a JPEG, PNG, BMP or GIF file, and preprocesses them as for evaluation, to `image_size` pixels.
    Both return `feature_vector` [B, D], or `logits` and `probabilities` [B, C].
    """

    def named(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = module.__call__(images, training=False, return_endpoints=False)
        if kind == CLASSIFIER:
            return {"logits": outputs, "probabilities": tf.nn.softmax(outputs)}
        return {"feature_vector": outputs}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def serving_default(images):
        return named(images)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_bytes(image_bytes):
        return named(preprocess(image_bytes, image_size, bit_depth))

    return {
        "serving_default": serving_default.get_concrete_function(),
        "serving_bytes": serving_bytes.get_concrete_function(),
    }


def write(module: Reusable, kind: str, image_size: int, folder: str, bit_depth: int | None = None) -> None:
    """Saves a module with its signatures."""
    tf.saved_model.save(module, folder, signatures=signatures(module, kind, image_size, bit_depth))


def asset(folder: str, name: str) -> str:
    """Returns the path of an asset in a SavedModel."""
    return os.path.join(folder, "assets", name)
