"""What `benchmarks/results.py` trains: one study for each claim of the paper, as data.

All on CIFAR-10 with narrow networks and few steps, so that a difference says something about this scale only.
Hyper-parameters were chosen for pretraining, fine-tuning and training from scratch alike on a part of `train`.
"""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A training run.

    Attributes:
      mode: of the command line.
      recipe: gin file.
      params: gin bindings on top.
      sources: flag that names another run -> (study, run).
      knn: whether a k-NN classifier measures it, too.
      subset: whether its seed also chooses the labels.
      seeds: how many.
    """

    mode: str
    recipe: str
    params: tuple[str, ...] = ()
    sources: dict[str, tuple[str, str]] = {}
    knn: bool = False
    subset: bool = False
    seeds: int = 3


class Study(NamedTuple):
    """Runs that are compared.

    Attributes:
      title: what it is about.
      claim: what the paper says.
      note: what was run.
      runs: name -> run, in the order in which they are shown.
      hidden: runs that only others start from.
      found: what the figures say of the claim, in words; empty until they are there.
    """

    title: str
    claim: str
    note: str
    runs: dict[str, Run]
    hidden: tuple[str, ...] = ()
    found: str = ""


def recipe(mode: str, name: str = "cifar10_small") -> str:
    """The path of a recipe."""
    return f"recipes/{mode}/{name}"


# Fraction of labels -> what it is called, and how many epochs a network sees them.
FRACTIONS = {0.01: ("1 %", 60), 0.1: ("10 %", 30), 1.0: ("100 %", 6)}
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
    runs = {"pretrain": Run("pretrain", recipe("pretrain"), knn=True, seeds=1)}
    for fraction, (name, _) in FRACTIONS.items():
        runs[f"{name}, from scratch"] = supervised(fraction)
        runs[f"{name}, fine-tuned"] = finetune("labels", "pretrain", fraction)
    return Study(
        "Few labels",
        "Pretraining without labels pays, the more so the fewer labels there are.",
        "ResNet-18 at a quarter of its width, pretrained once without labels; the same labels for both.",
        runs,
        ("pretrain",),
    )


def _size() -> Study:
    networks = {
        "R18 1/8": ("ResNet.width=0.125",),
        "R18 1/4": (),
        "R18 1/2": ("ResNet.width=0.5",),
        "R50 1/8": ("ResNet.depth=50", "ResNet.width=0.125"),
        "R50 1/8 SK": ("ResNet.depth=50", "ResNet.width=0.125", "ResNet.sk_ratio=0.0625"),
    }
    runs, hidden = {}, []
    for network, params in networks.items():
        name = f"pretrain {network}"
        hidden.append(name)
        runs[name] = Run("pretrain", recipe("pretrain"), params, knn=True, seeds=1)
    for fraction in FRACTIONS:
        for network, params in networks.items():
            shown = f"{FRACTIONS[fraction][0]}, {network}"
            runs[f"{shown}, from scratch"] = supervised(fraction, *params, seeds=1)
            runs[f"{shown}, fine-tuned"] = finetune("size", f"pretrain {network}", fraction, seeds=1)
    return Study(
        "Bigger networks",
        "Bigger networks gain more, and the more so the fewer labels there are.",
        "Three widths and two depths, selective kernels on and off; same steps for all.",
        runs,
        tuple(hidden),
    )


def _head() -> Study:
    runs, hidden = {}, []
    for depth in (1, 2, 3):
        name = f"pretrain, head of {depth}"
        hidden.append(name)
        runs[name] = Run("pretrain", recipe("pretrain"), (f"ProjectionHead.num_layers={depth}",), seeds=1)
    for fraction in ONE_AND_TEN:
        for depth in (1, 2, 3):
            for layer in (0, 1) if depth > 1 else (0,):
                origin = "its first layer" if layer else "the encoder"
                runs[f"{FRACTIONS[fraction][0]}, head of {depth}, from {origin}"] = finetune(
                    "head", f"pretrain, head of {depth}", fraction, f"Supervised.head_layer={layer}"
                )
    return Study(
        "The projection head",
        "A deeper projection head, fine-tuned from its first layer, beats fine-tuning from the encoder.",
        "Heads of one to three layers, pretrained once each.",
        runs,
        tuple(hidden),
    )


def _distillation() -> Study:
    teacher = {"teacher": ("labels", "10 %, fine-tuned")}
    small = ("ResNet.width=0.125",)
    own = Run("pretrain", recipe("pretrain"), small, seeds=1)
    runs = {
        "pretrain the student": own,
        "student alone, from scratch": supervised(0.1, *small),
        "student alone, fine-tuned": finetune("distillation", "pretrain the student", 0.1),
        "student, distilled": Run("distill", recipe("distill"), small, teacher),
        "self-distilled": Run("distill", recipe("distill"), ("Distill.temperature=0.1",), teacher),
    }
    return Study(
        "Distillation",
        "A student of the fine-tuned network beats what it learns by itself; self-distillation improves the teacher.",
        "10 % of the labels; teacher: ResNet-18 at a quarter of its width, fine-tuned (first study); student at an "
        "eighth.",
        runs,
        ("pretrain the student",),
    )


def _memory() -> Study:
    runs = {}
    for batch in (64, 256):
        for memory in (False, True):
            params = (f"BATCH_SIZE={batch}", *(() if memory else ("Pretrain.make_memory=None",)))
            name = f"batch {batch}, {'with' if memory else 'without'} memory"
            runs[name] = Run("pretrain", recipe("pretrain", "cifar10_small_memory"), params, knn=True)
    return Study(
        "The memory",
        "The memory (momentum encoder and queue) is worth about a point where batches are small.",
        "ResNet-18 at an eighth of its width, 400 steps, temperature 0.2. So few steps need a network that follows "
        "faster than 0.999 and a queue of keys that are not too old: decay 0.9 and a queue of 1,024, chosen at batch "
        "64 on a held-out fifth of `train` (decays 0.5, 0.9, 0.95 and 0.99, queues of 1,024 and 8,192). The probe is "
        "trained beside, k-NN uses 10,000 training images and 20 neighbours.",
        runs,
        found="It did not show at this scale. In 400 steps the memory brings nothing that three seeds can tell from "
        "chance (k-NN the same at batch 64, 1.5 points less at batch 256); with a queue of 8,192, keys up to 64 steps "
        "old, k-NN lost 4.5 points on the held-out images. That is no verdict on runs of many epochs, for which the "
        "paper used it. The machine had other work beside, so that seconds are no measure.",
    )


def _augmentation() -> Study:
    no_crop, no_color = "Augment.area_min=1.0", ("Augment.jitter_probability=0.0", "Augment.gray_probability=0.0")
    ways = {
        "none": (no_crop, *no_color),
        "crop": no_color,
        "color": (no_crop,),
        "crop and color": (),
        "crop and cutout": (*no_color, "Augment.cutout_probability=1.0"),
        "crop and rotation": (*no_color, "Augment.rotation_probability=1.0"),
        "crop, color and cutout": ("Augment.cutout_probability=1.0",),
    }
    runs = {name: Run("pretrain", recipe("pretrain"), ("EPOCHS=3", *params), knn=True) for name, params in ways.items()}
    return Study(
        "Augmentation",
        "Crops and color distortion together teach far more than either alone.",
        "ResNet-18 at a quarter of its width, three epochs; flips in all.",
        runs,
    )


STUDIES = {
    "labels": _few_labels(),
    "size": _size(),
    "head": _head(),
    "distillation": _distillation(),
    "memory": _memory(),
    "augmentation": _augmentation(),
}
