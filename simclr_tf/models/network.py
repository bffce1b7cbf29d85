"""The network that stages train and tools load: encoder, projection head, classifier."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf.errors import UserError
from simclr_tf.models.heads import Classifier, ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.stack import keras, tf

# What Keras calls the precisions that a user names.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float64": "float64"}


class Network(tf.Module):
    """An encoder with an optional projection head and an optional classifier on one of the head's layers.

    The parts are checkpointed one by one, so that any stage can start from what another has trained.
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
          make_encoder: takes `dtype`.
          make_head: takes `input_dim` and `dtype`; None for no projection head.
          num_classes: of the classifier; 0 for none.
          classifier_layer: the head's layer that the classifier reads: 0 is the encoder's output.
          zero_init_classifier: start with equal logits.
          image_size: of the images in training, in pixels.
          precision: "float32", "bfloat16" (compute; variables stay float32) or "float64".

        Raises:
          UserError: for a layer that the head does not have.
        """
        super().__init__(name="network")
        policy = keras.mixed_precision.Policy(POLICIES[precision])
        self.encoder = make_encoder(dtype=policy)
        self.head = make_head(input_dim=self.encoder.feature_dim, dtype=policy) if make_head is not None else None
        layers = self.head.num_layers if self.head is not None else 0
        if classifier_layer not in range(layers + 1):
            raise UserError(
                f"the classifier is to read projection head layer {classifier_layer!r}, but the head has {layers} "
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
        """Creates the variables by tracing the network once on paper."""

        @tf.function(input_signature=[tf.TensorSpec([2, self.image_size, self.image_size, 3], self.dtype)])
        def trace(images):
            outputs = self.outputs(images, training=False)
            return self.classifier(outputs[f"head_layer_{self.classifier_layer}"]) if self.classifier else outputs

        trace.get_concrete_function()

    def outputs(
        self, images: tf.Tensor, *, training: bool, head_training: bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Computes every named output but the logits.

        Args:
          images: [B, H, W, 3] in [0, 1].
          training: batch norm's mode in the encoder.
          head_training: the same in the head; as in the encoder when None.

        Returns:
          The encoder's outputs, `head_layer_0` .. `head_layer_N` and, with a head, `projection`.
        """
        outputs = self.encoder(tf.cast(images, self.dtype), training=training)
        if self.head is None:
            return {**outputs, "head_layer_0": outputs["final_avg_pool"]}
        head_training = training if head_training is None else head_training
        return {**outputs, **self.head(outputs["final_avg_pool"], training=head_training)}

    def logits(self, images: tf.Tensor, *, training: bool) -> tf.Tensor:
        """[B, H, W, 3] in [0, 1] -> [B, num_classes] class logits."""
        return self.classifier(self.outputs(images, training=training)[f"head_layer_{self.classifier_layer}"])

    def parts(self) -> dict[str, tf.Module]:
        """Returns what is checkpointed, by name."""
        parts = {"encoder": self.encoder, "head": self.head, "classifier": self.classifier}
        return {name: part for name, part in parts.items() if part is not None}

    def describe(self) -> dict:
        """Returns all that is needed to build this network again, as plain values."""
        return {
            "encoder": self.encoder.describe(),
            "head": self.head.describe() if self.head is not None else None,
            "num_classes": self.num_classes,
            "classifier_layer": self.classifier_layer,
            "image_size": self.image_size,
        }

    @classmethod
    def from_description(cls, description: dict, *, precision: str = "float32") -> Network:
        """Builds the network that `describe` told of."""
        head = description["head"]
        return cls(
            make_encoder=lambda **kwargs: ResNet(**description["encoder"], **kwargs),
            make_head=None if head is None else lambda **kwargs: ProjectionHead(**head, **kwargs),
            num_classes=description["num_classes"],
            classifier_layer=description["classifier_layer"],
            image_size=description["image_size"],
            precision=precision,
        )


def resolve_precision(precision: str) -> str:
    """Turns "auto" into what this machine computes fast, and checks the rest.

    bfloat16 is fast on TPUs, on GPUs from NVIDIA's Ampere on, and on CPUs with AVX512-BF16 or AMX.

    Raises:
      UserError: for an unknown name.
    """
    if precision in POLICIES:
        return precision
    if precision != "auto":
        raise UserError(f"train.precision is {precision!r}; choose one of auto, {', '.join(POLICIES)}")
    return "bfloat16" if _has_bfloat16() else "float32"


def _has_bfloat16() -> bool:
    if tf.config.list_physical_devices("TPU") or tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus)
        return all(capability is not None and capability[0] >= 8 for capability in capabilities)
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
