"""The runs of `benchmarks/results.py`: one study for each claim of the paper, as data.

All runs use CIFAR-10 with narrow networks and few steps, so a difference is evidence for this scale only.
Hyper-parameters are those of the demo's recipes, chosen on a part of `train` for pretraining, fine-tuning and training
from scratch alike; the memory's were chosen in the same way.
"""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A training run.

    Attributes:
      mode: Its `--mode`.
      recipe: Its gin file.
      params: Further gin bindings.
      sources: Flag that names another run -> (study, run), or a network of the package.
      knn: Bindings of a k-NN classifier that also measures it; None for none.
      subset: Whether its seed also chooses the labels.
      seeds: The number of seeds.
    """

    mode: str
    recipe: str
    params: tuple[str, ...] = ()
    sources: dict[str, tuple[str, str] | str] = {}
    knn: tuple[str, ...] | None = None
    subset: bool = False
    seeds: int = 3


class Shared(NamedTuple):
    """A run of another study, shown in this one too."""

    study: str
    name: str


class Study(NamedTuple):
    """Runs that are compared.

    Attributes:
      title: The heading.
      claim: The paper's claim; empty if it makes none.
      note: A description of the runs.
      runs: Name -> run, in the order of the table.
      hidden: Runs that are not in the table, because they only provide a start for others.
      found: What the figures say about the claim; empty until there are figures.
    """

    title: str
    claim: str
    note: str
    runs: dict[str, Run | Shared]
    hidden: tuple[str, ...] = ()
    found: str = ""


def recipe(mode: str, name: str = "cifar10_small") -> str:
    """The path of a recipe."""
    return f"recipes/{mode}/{name}"


# A quick look: k-NN of a part of the training images.
KNN = ("Data.train_split='train[:10000]'", "knn.num_neighbors=20")
# Fraction of labels -> its name and the number of epochs.
FRACTIONS = {0.01: ("1 %", 60), 0.1: ("10 %", 20), 1.0: ("100 %", 3)}
ONE_AND_TEN = (0.01, 0.1)


def labels(fraction: float) -> tuple[str, ...]:
    """Bindings that train on a fraction of the labels."""
    return (f"Data.label_fraction={fraction}", f"EPOCHS={FRACTIONS[fraction][1]}")


def finetune(study: str, name: str, fraction: float, *params: str, seeds: int = 3) -> Run:
    """Fine-tunes another run."""
    source = {"init_from": (study, name)}
    return Run("finetune", recipe("finetune"), (*labels(fraction), *params), source, subset=True, seeds=seeds)


def supervised(fraction: float, *params: str, seeds: int = 3) -> Run:
    """Trains from scratch."""
    return Run("supervised", recipe("supervised"), (*labels(fraction), *params), subset=True, seeds=seeds)


def _few_labels() -> Study:
    runs = {"pretrain": Run("pretrain", recipe("pretrain"), knn=KNN, seeds=1)}
    for fraction, (name, _) in FRACTIONS.items():
        seeds = 1 if fraction == 1.0 else 3
        runs[f"{name}, from scratch"] = supervised(fraction, seeds=seeds)
        runs[f"{name}, fine-tuned"] = finetune("labels", "pretrain", fraction, seeds=seeds)
    return Study(
        "Few labels",
        "Pretraining without labels helps, and it helps more with fewer labels.",
        "ResNet-18 at an eighth of its width, pretrained once without labels for five epochs. Training from scratch "
        "and fine-tuning use the same labels and steps, with the demo's learning rates and weight decay.",
        runs,
        ("pretrain",),
        "Confirmed here: fine-tuning gains 13.9 points with 1 % of the labels, 8.0 with 10 % and 4.5 with all of them "
        "(one seed, three epochs).",
    )


def _size() -> Study:
    # Selective kernels replace a 3x3 convolution of bottleneck blocks, which only networks of 50 or more layers have.
    networks = {
        "R18 1/8": (),
        "R18 1/4": ("ResNet.width=0.25",),
        "R50 1/8": ("ResNet.depth=50",),
        "R50 1/8 SK": ("ResNet.depth=50", "ResNet.sk_ratio=0.0625"),
    }
    small = "Data.image_size=24"
    runs, hidden = {}, []
    for network, params in networks.items():
        name = f"pretrain {network}"
        hidden.append(name)
        runs[name] = Run("pretrain", recipe("pretrain"), (small, "EPOCHS=2", *params), knn=KNN, seeds=1)
    for fraction in ONE_AND_TEN:
        label = FRACTIONS[fraction][0]
        for network, params in networks.items():
            runs[f"{label}, {network}, from scratch"] = supervised(fraction, small, *params)
            runs[f"{label}, {network}, fine-tuned"] = finetune("size", f"pretrain {network}", fraction, small)
    return Study(
        "Bigger networks",
        "Bigger networks gain more, especially with few labels.",
        "Two widths and two depths, with and without selective kernels, all at 24 pixels. Each network was pretrained "
        "once, for two epochs; all networks take the same number of steps.",
        runs,
        tuple(hidden),
        "Confirmed in part. Fine-tuning with 1 % of the labels gains (three seeds, paired; ± 95 %) 5.7 ± 0.6 points "
        "for R18 1/8, 5.9 ± 2.4 for R18 1/4, 4.8 ± 2.3 for R50 1/8 and 9.2 ± 1.6 for R50 1/8 with selective kernels; "
        "with 10 % it gains 0.2 ± 6.0, 0.4 ± 1.2, 0.2 ± 3.5 and 3.7 ± 1.0. Every network gains more with fewer labels, "
        "and the one with selective kernels gains most. After two epochs of pretraining, width or depth alone did not "
        "increase the gain.",
    )


def _head() -> Study:
    # The first study's network has a head of three layers.
    shallow = "pretrain, head of 2"
    runs = {shallow: Run("pretrain", recipe("pretrain"), ("ProjectionHead.num_layers=2",), seeds=1)}
    for fraction in ONE_AND_TEN:
        label = FRACTIONS[fraction][0]
        encoder, first = "from the encoder", "from its first layer"
        runs[f"{label}, head of 2, {encoder}"] = finetune("head", shallow, fraction, "Supervised.head_layer=0")
        runs[f"{label}, head of 2, {first}"] = finetune("head", shallow, fraction, "Supervised.head_layer=1")
        runs[f"{label}, head of 3, {encoder}"] = finetune("labels", "pretrain", fraction, "Supervised.head_layer=0")
        runs[f"{label}, head of 3, {first}"] = Shared("labels", f"{label}, fine-tuned")
    return Study(
        "The projection head",
        "A deeper projection head, fine-tuned from its first layer, beats fine-tuning from the encoder.",
        "Networks with a head of two layers (SimCLR) and of three (SimCLRv2), pretrained once each.",
        runs,
        (shallow,),
        "Not confirmed at this scale: all variants are within 0.7 points, less than the difference between seeds.",
    )


def _laptop() -> Study:
    source = {"init_from": ("laptop", "pretrained")}
    runs = {
        # k-NN sees the images at full size, which the network has not seen in training.
        "pretrained": Run("pretrain", recipe("pretrain", "cifar10_laptop"), knn=("Data.image_size=32",), seeds=1),
        "linear classifier": Run("linear_eval", recipe("linear_eval"), (), source, seeds=1),
        "1 %, fine-tuned": finetune("laptop", "pretrained", 0.01, seeds=1),
        "10 %, fine-tuned": finetune("laptop", "pretrained", 0.1, seeds=1),
        "student of the latter": Run(
            "distill", recipe("distill", "cifar10_laptop"), (), {"teacher": ("laptop", "10 %, fine-tuned")}, seeds=1
        ),
    }
    return Study(
        "The encoder of a laptop",
        "",
        "ResNet-50 at an eighth of its width with selective kernels, pretrained at 24 pixels. Its student, a ResNet-18 "
        "at an eighth of its width, comes with the package (`embedded:cifar10_student`). k-NN uses 200 neighbors among "
        "all 50,000 training images. (The earlier network, a ResNet-18 at a quarter of its width, trained for 14 "
        "epochs in 72 minutes on one core: k-NN 62.2, linear 63.0, 1 % 58.3, 10 % 68.6.) "
        "Other work shared the machine.",
        runs,
    )


def _distillation() -> Study:
    itself = {"teacher": ("labels", "10 %, fine-tuned")}
    # As in the paper: LARS, a learning rate by the batch's square root, weight decay of the classifier in the loss.
    paper = ("EPOCHS=5", "train.make_optimizer=@Lars", "WarmupCosine.scaling='sqrt'", "Distill.weight_decay=1e-4")
    again = ("distill", recipe("distill", "cifar10_laptop"), (*paper, "Distill.temperature=0.1"))
    runs = {
        "teacher: R50 1/8 SK": Shared("laptop", "10 %, fine-tuned"),
        "student alone, from scratch": Shared("labels", "10 %, from scratch"),
        "student alone, fine-tuned": Shared("labels", "10 %, fine-tuned"),
        "student, distilled": Shared("laptop", "student of the latter"),
        "self-distilled": Run("distill", recipe("distill", "cifar10_laptop"), (), itself),
        "student, self-distilled, T 0.1": Run(*again, {"teacher": "embedded:cifar10_student"}),
    }
    return Study(
        "Distillation",
        "A distilled student beats the same network fine-tuned; self-distillation improves the teacher.",
        "All with 10 % of the labels. The student is a ResNet-18 at an eighth of its width. It learns alone, as in the "
        "study of labels, or from the laptop's network (ResNet-50 at an eighth with selective kernels), which teaches "
        "it for three epochs of all training images, without labels. Self-distilled: the teacher is the fine-tuned "
        "student itself, three epochs at temperature 1. Self-distilled, T 0.1: the teacher is the distilled student "
        "(the network of the package), five epochs at the paper's temperature, with the loss multiplied by the square "
        "of the temperature and with the paper's optimizer and learning rate (LARS, 0.1 x square root of the batch). "
        "LARS was the best of SGD at 0.1, SGD at 1 and LARS after two epochs of 20,000 images, measured on 10,000 "
        "held-out ones: 28.2, 36.6 and 40.4 %.",
        runs,
        found="A student of a deeper teacher with selective kernels is 7.3 points better than the same network "
        "fine-tuned on the same labels (seed 0: 55.6); but the teacher was also pretrained for longer than the "
        "student's own encoder, 20 epochs instead of 5. Self-distillation does not improve on its teachers at "
        "temperature 1: students reach 53.9 % after three epochs from random weights, their teachers 55.0 %. Nor "
        "does it at the paper's temperature, in five epochs: 58.1 ± 0.4 % (three seeds), their teacher 62.9 %. Other "
        "work shared the machine and these three runs were paused, so their seconds say little.",
    )


def _memory() -> Study:
    runs = {}
    for batch in (64, 256):
        for memory in (False, True):
            params = (f"BATCH_SIZE={batch}", *(() if memory else ("Pretrain.make_memory=None",)))
            name = f"batch {batch}, {'with' if memory else 'without'} memory"
            runs[name] = Run("pretrain", recipe("pretrain", "cifar10_small_memory"), params, knn=KNN)
    return Study(
        "The memory",
        "The memory (momentum encoder and queue) is worth about a point.",
        "ResNet-18 at an eighth of its width, 400 steps, temperature 0.2. With so few steps the momentum network has "
        "to follow faster than with a decay of 0.999, and the queue's keys must not be too old. A decay of 0.9 and a "
        "queue of 1,024 were chosen at batch 64 on a held-out fifth of `train` (among decays of 0.5, 0.9, 0.95 and "
        "0.99 and queues of 1,024 and 8,192). The probe trains alongside; k-NN uses 10,000 training images "
        "and 20 neighbors.",
        runs,
        found="Not confirmed at this scale. In 400 steps the memory makes no difference that is significant with three "
        "seeds (k-NN is the same at batch 64 and 1.6 points lower at batch 256). With a queue of 8,192, whose keys are "
        "up to 64 steps old, k-NN lost 4.5 points on the held-out images. This says little about runs of many epochs, "
        "for which the paper used the memory. Other work shared the machine, so the seconds cannot be compared.",
    )


def _augmentation() -> Study:
    no_crop, no_color = "Augment.area_min=1.0", ("Augment.jitter_probability=0.0", "Augment.gray_probability=0.0")
    ways = {
        "crop": no_color,
        "color": (no_crop,),
        "crop and color": (),
        "crop and cutout": (*no_color, "Augment.cutout_probability=1.0"),
        "crop and rotation": (*no_color, "Augment.rotation_probability=1.0"),
    }
    # Color distortion makes so large a difference that one seed is enough; the other variants are close together.
    runs = {
        name: Run("pretrain", recipe("pretrain"), ("EPOCHS=2", *params), knn=KNN, seeds=1 if "color" in name else 3)
        for name, params in ways.items()
    }
    return Study(
        "Augmentation",
        "Crops and color distortion together teach far more than either alone.",
        "ResNet-18 at an eighth of its width, two epochs; all variants flip images.",
        runs,
        found="Confirmed here: both together (one seed) are 7.6 points better by k-NN than crops alone (three seeds) "
        "and 18.5 better than color distortion alone (one seed). Cutout or rotation instead of color distortion gains "
        "nothing by k-NN and loses 2 to 3 points by the probe.",
    )


STUDIES = {
    "laptop": _laptop(),
    "labels": _few_labels(),
    "size": _size(),
    "head": _head(),
    "distillation": _distillation(),
    "memory": _memory(),
    "augmentation": _augmentation(),
}
