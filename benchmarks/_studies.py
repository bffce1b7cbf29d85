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


class Shared(NamedTuple):
    """A run of another study, shown in this one too."""

    study: str
    name: str


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
    runs: dict[str, Run | Shared]
    hidden: tuple[str, ...] = ()
    found: str = ""


def recipe(mode: str, name: str = "cifar10_small") -> str:
    """The path of a recipe."""
    return f"recipes/{mode}/{name}"


# Fraction of labels -> what it is called, and how many epochs a network sees them.
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
    runs = {"pretrain": Run("pretrain", recipe("pretrain"), knn=True, seeds=1)}
    for fraction, (name, _) in FRACTIONS.items():
        seeds = 1 if fraction == 1.0 else 3
        runs[f"{name}, from scratch"] = supervised(fraction, seeds=seeds)
        runs[f"{name}, fine-tuned"] = finetune("labels", "pretrain", fraction, seeds=seeds)
    return Study(
        "Few labels",
        "Pretraining without labels pays, the more so the fewer labels there are.",
        "ResNet-18 at an eighth of its width, pretrained once without labels for five epochs; the same labels and "
        "steps for both.",
        runs,
        ("pretrain",),
    )


def _size() -> Study:
    networks = {
        "R18 1/8": ("ResNet.width=0.125",),
        "R18 1/8 SK": ("ResNet.sk_ratio=0.0625",),
        "R34 1/8": ("ResNet.depth=34",),
        "R18 1/4": ("ResNet.width=0.25",),
    }
    smallest = next(iter(networks))
    runs, hidden = {}, []
    for network, params in networks.items():
        if network != smallest:
            name = f"pretrain {network}"
            hidden.append(name)
            runs[name] = Run("pretrain", recipe("pretrain"), params, knn=True, seeds=1)
    for fraction in ONE_AND_TEN:
        label = FRACTIONS[fraction][0]
        for network, params in networks.items():
            for way in ("from scratch", "fine-tuned"):
                if network == smallest:
                    run = Shared("labels", f"{label}, {way}")
                elif way == "from scratch":
                    run = supervised(fraction, *params)
                else:
                    run = finetune("size", f"pretrain {network}", fraction)
                runs[f"{label}, {network}, {way}"] = run
    return Study(
        "Bigger networks",
        "Bigger networks gain more, and the more so the fewer labels there are.",
        "Two widths and two depths, selective kernels on and off; same steps for all.",
        runs,
        tuple(hidden),
    )


def _head() -> Study:
    # The first study's network has a head of three layers.
    shallow = "pretrain, head of 2"
    runs = {shallow: Run("pretrain", recipe("pretrain"), ("ProjectionHead.num_layers=2",), seeds=1)}
    for fraction in ONE_AND_TEN:
        label = FRACTIONS[fraction][0]
        for depth, source in ((2, ("head", shallow)), (3, ("labels", "pretrain"))):
            for layer, origin in ((0, "the encoder"), (1, "its first layer")):
                run = finetune(*source, fraction, f"Supervised.head_layer={layer}")
                if (depth, layer) == (3, 1):
                    run = Shared("labels", f"{label}, fine-tuned")
                runs[f"{label}, head of {depth}, from {origin}"] = run
    return Study(
        "The projection head",
        "A deeper projection head, fine-tuned from its first layer, beats fine-tuning from the encoder.",
        "Heads of two layers (SimCLR) and of three (SimCLRv2), pretrained once each.",
        runs,
        (shallow,),
    )


def _distillation() -> Study:
    teacher = {"teacher": ("labels", "10 %, fine-tuned")}
    # The recipe's student; of the teacher's size otherwise.
    small, same = ("ResNet.width=0.0625",), ("ResNet.width=0.125",)
    runs = {
        "pretrain the student": Run("pretrain", recipe("pretrain"), small, seeds=1),
        "teacher": Shared("labels", "10 %, fine-tuned"),
        "student alone, from scratch": supervised(0.1, *small),
        "student alone, fine-tuned": finetune("distillation", "pretrain the student", 0.1),
        "student, distilled": Run("distill", recipe("distill"), small, teacher),
        "self-distilled": Run("distill", recipe("distill"), same, teacher),
    }
    return Study(
        "Distillation",
        "A student of the fine-tuned network beats what it learns by itself; self-distillation improves the teacher.",
        "10 % of the labels; teacher: ResNet-18 at an eighth of its width, fine-tuned (first study); student at a "
        "sixteenth. Students see all training images three times, without labels.",
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
        "crop": no_color,
        "color": (no_crop,),
        "crop and color": (),
        "crop and cutout": (*no_color, "Augment.cutout_probability=1.0"),
        "crop and rotation": (*no_color, "Augment.rotation_probability=1.0"),
    }
    runs = {name: Run("pretrain", recipe("pretrain"), ("EPOCHS=2", *params), knn=True) for name, params in ways.items()}
    return Study(
        "Augmentation",
        "Crops and color distortion together teach far more than either alone.",
        "ResNet-18 at an eighth of its width, two epochs; flips in all.",
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
