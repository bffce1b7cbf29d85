"""The network that stages train and commands load: encoder, projection head and classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.precision import POLICIES
from simclr_tf.core.tf import keras, tf
from simclr_tf.models.heads import Classifier, ProjectionHead
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.models.resnet import ResNet

# The entries of a description that have to match before a part can take another network's values.
_DESCRIBED_BY = {"encoder": ("encoder",), "classifier": ("num_classes", "classifier_layer")}


class Frozen(NamedTuple):
    """The part of a network that training leaves unchanged.

    Attributes:
      sections: number of frozen encoder sections, from the stem on.
      head_layers: number of frozen projection head layers, from the first on.
      layers: all frozen layers.
    """

    sections: int
    head_layers: int
    layers: list[tf.Module]

    def variables(self) -> list[tf.Variable]:
        """Returns all variables of the frozen layers."""
        return [variable for layer in self.layers for variable in layer.variables]


NOTHING_FROZEN = Frozen(0, 0, [])


def _layers(encoder: ResNet, sections: int) -> list[tf.Module]:
    return [layer for layers in list(encoder.sections().values())[:sections] for layer in layers]


def differences(found: dict, wanted: dict) -> list[str]:
    """Lists the entries in which two descriptions differ, as "name is X there, Y here"."""
    return [
        f"{name} is {found.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]


def _head_mismatch(there: dict | None, here: dict) -> list[str]:
    """Lists why a head does not fit: it needs the layers used here, in the same form; later layers may differ."""
    there = there or {"num_layers": 0, "output_dim": 0}
    used_there, used_here = there.get("used_layers", there["num_layers"]), here["used_layers"]
    if used_there < used_here:
        return [f"the head has {used_there} layer(s) there, {used_here} are used here"]

    def is_projection(side: dict) -> bool:  # A head's last layer has no ReLU and no `beta`.
        return 0 < used_here == side["num_layers"]

    if is_projection(there) != is_projection(here):
        return [
            f"head_layer_{used_here} is {'the projection' if is_projection(side) else 'hidden'} {where}"
            for where, side in (("there", there), ("here", here))
        ]
    return (
        differences({"output_dim": there["output_dim"]}, {"output_dim": here["output_dim"]})
        if is_projection(here)
        else []
    )


class Network(tf.Module):
    """An encoder with an optional projection head and an optional classifier on one of the head's layers.

    The parts are checkpointed one by one, so that any stage can start from the parts that another has trained.
    """

    def __init__(
        self,
        *,
        make_encoder: Callable[..., ResNet],
        make_head: Callable[..., ProjectionHead] | None = None,
        num_classes: int = 0,
        classifier_layer: int = 0,
        zero_init_classifier: bool = False,
        image_size: int,
        precision: str = "float32",
    ):
        """Creates all variables.

        Args:
          make_encoder: function that takes `dtype` and makes the encoder.
          make_head: function that takes `input_dim` and `dtype` and makes the projection head; None for no head.
          num_classes: number of classes; 0 for no classifier.
          classifier_layer: head layer that the classifier reads; 0 is the encoder's output.
          zero_init_classifier: whether the first logits are all 0.
          image_size: side of the training images, in pixels.
          precision: "float32", "bfloat16" (to compute in; variables stay float32) or "float64".

        Raises:
          UserError: if the head has no such layer.
        """
        super().__init__(name="network")
        policy = keras.mixed_precision.Policy(POLICIES[precision])
        self.encoder = make_encoder(dtype=policy)
        self.head = make_head(input_dim=self.encoder.feature_dim, dtype=policy) if make_head is not None else None
        layers = self.head.used_layers if self.head is not None else 0
        if classifier_layer not in range(layers + 1):
            raise UserError(
                f"the classifier should read layer {classifier_layer!r} of the projection head, which has {layers} "
                f"layer(s); choose 0 (the encoder's output) to {layers}"
            )
        self.classifier = Classifier(num_classes, zero_init=zero_init_classifier, dtype=policy) if num_classes else None
        self.classifier_layer = classifier_layer
        self.num_classes = num_classes
        self.image_size = image_size
        self.precision = precision
        self.dtype = tf.as_dtype(policy.variable_dtype)
        self._build()

    def _build(self) -> None:
        """Creates the variables by tracing the network, without running it."""

        @tf.function(
            input_signature=[tf.TensorSpec([2, self.image_size, self.image_size, 3], self.dtype)], autograph=False
        )
        def trace(images):
            outputs = self.outputs(images, training=False)
            return self.classifier(outputs[f"head_layer_{self.classifier_layer}"]) if self.classifier else outputs

        trace.get_concrete_function()

    def outputs(self, images: tf.Tensor, *, training: bool, frozen: Frozen | None = None) -> dict[str, tf.Tensor]:
        """Computes all named outputs except the logits.

        Args:
          images: [B, H, W, 3] in [0, 1].
          training: batch norm's mode in layers that are not frozen.
          frozen: layers that pass no gradient and stay in inference mode; see `frozen_up_to`.

        Returns:
          The encoder's outputs, `head_layer_0` .. `head_layer_N` and, if the head has all its layers, `projection`.
        """
        frozen = frozen or NOTHING_FROZEN
        outputs = self.encoder(tf.cast(images, self.dtype), training=training, frozen=frozen.sections)
        if self.head is None:
            return {**outputs, "head_layer_0": outputs["final_avg_pool"]}
        return {**outputs, **self.head(outputs["final_avg_pool"], training=training, frozen=frozen.head_layers)}

    def logits(self, images: tf.Tensor, *, training: bool, frozen: Frozen | None = None) -> tf.Tensor:
        """[B, H, W, 3] in [0, 1] -> [B, num_classes] class logits; see `outputs` for the arguments."""
        outputs = self.outputs(images, training=training, frozen=frozen)
        return self.classifier(outputs[f"head_layer_{self.classifier_layer}"])

    def frozen_up_to(self, output: str | None) -> Frozen:
        """Returns the layers to freeze: all those up to a named output. The classifier always trains.

        Args:
          output: `initial_max_pool`, `block_group1` .. `block_group4`, `final_avg_pool`, `head_layer_1` .., or None to
            freeze nothing.

        Raises:
          UserError: if this network has no such output.
        """
        if output is None:
            return NOTHING_FROZEN
        sections = list(self.encoder.sections())
        rows = {name: Frozen(i + 1, 0, _layers(self.encoder, i + 1)) for i, name in enumerate(sections)}
        whole = rows["final_avg_pool"] = rows[sections[-1]]
        for i in range(len(self.head.projections) if self.head is not None else 0):
            rows[f"head_layer_{i + 1}"] = Frozen(
                whole.sections, i + 1, [*whole.layers, *self.head.projections[: i + 1]]
            )
        if output not in rows:
            raise UserError(f"there is no output {output!r} to freeze up to; choose None or one of {', '.join(rows)}")
        return rows[output]

    def mismatch(self, part: str, description: dict) -> list[str]:
        """Lists why a part of this network cannot take the values of the network that `description` describes."""
        if part == "head":
            return _head_mismatch(description.get("head"), self.head.describe())
        there, here = (
            {name: side.get(name) for name in _DESCRIBED_BY[part]} for side in (description, self.describe())
        )
        if part == "encoder":
            there, here = there["encoder"] or {}, here["encoder"]
        return differences(there, here)

    def parts(self) -> dict[str, tf.Module]:
        """Returns the parts that exist, by name; checkpoints hold each by itself."""
        parts = {"encoder": self.encoder, "head": self.head, "classifier": self.classifier}
        return {name: part for name, part in parts.items() if part is not None}

    def undecayed_variables(self) -> set[int]:
        """Returns `id()`s of the variables that take neither weight decay nor a trust ratio.

        These are batch norm's variables, all biases and the classifier's variables. The layer that owns a variable
        decides, never the variable's name.
        """
        return undecayed_variables(self.parts().values())

    def describe(self) -> dict:
        """Returns the plain values from which `from_description` builds this network again."""
        return {
            "encoder": self.encoder.describe(),
            "head": self.head.describe() if self.head is not None else None,
            "num_classes": self.num_classes,
            "classifier_layer": self.classifier_layer,
            "image_size": self.image_size,
        }

    @classmethod
    def from_description(cls, description: dict, *, precision: str = "float32") -> Network:
        """Builds a network from the values that `describe` returned."""
        head = description["head"]
        return cls(
            make_encoder=lambda **kwargs: ResNet(**description["encoder"], **kwargs),
            make_head=None if head is None else lambda **kwargs: ProjectionHead(**head, **kwargs),
            num_classes=description["num_classes"],
            classifier_layer=description["classifier_layer"],
            image_size=description["image_size"],
            precision=precision,
        )


def with_first_layers(
    make_head: Callable[..., ProjectionHead] | None, count: int, *, owner: str
) -> Callable[..., ProjectionHead] | None:
    """Returns a function that makes only a head's first `count` layers, for a classifier on the last of them.

    Args:
      make_head: function that makes the whole head; None if there is no head.
      count: number of layers; 0 for the encoder's output, which needs no head.
      owner: configurable whose `head_layer` this is, for messages.

    Returns:
      A function with the arguments of `make_head`; None for no head.

    Raises:
      UserError: for a negative count, or a count above 0 without a head.
    """
    checks.whole(f"{owner}.head_layer", count, least=0, hint="; 0 is the encoder's output")
    if count == 0:
        return None
    if make_head is None:
        raise UserError(
            f"{owner}.head_layer is {count}, but there is no projection head; set it to 0 (the encoder's output), or "
            f"bind {owner}.make_head"
        )
    return lambda **kwargs: make_head(used_layers=count, **kwargs)


def fingerprint(variables: Iterable[tf.Variable]) -> str:
    """Returns a SHA-256 hash of the variables' values, in the given order."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def layers(network: Network) -> list[str]:
    """Returns the names of the outputs that can be exported as features."""
    head = len(network.head.projections) if network.head is not None else 0
    groups = ["initial_max_pool", *(f"block_group{i}" for i in range(1, 5))]
    return [*groups, "final_avg_pool", *(f"head_layer_{i}" for i in range(head + 1))]


def undecayed_variables(modules: Iterable[tf.Module]) -> set[int]:
    """Does the work of `Network.undecayed_variables`, for any modules and all layers inside them."""
    found: set[int] = set()
    for root in modules:
        for module in (root, *root.submodules):
            if isinstance(module, (BatchNorm, Classifier)):
                found.update(id(variable) for variable in module.variables)
            elif getattr(module, "bias", None) is not None:
                found.add(id(module.bias))
    return found
