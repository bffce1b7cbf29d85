"""`make demo`: the commands a user would type, one after the other, and tables of what came of them."""

from __future__ import annotations

import os
import time

from simclr_tf.commands.sequence import run_command, table
from simclr_tf.core.files import read_json
from simclr_tf.core.text import duration
from simclr_tf.models import bundled
from simclr_tf.workdir import records

# Name in the table -> sub-folder, for the runs that end with a classifier.
_CLASSIFIERS = {
    "from scratch, few labels": "supervised",
    "pretrained, then fine-tuned": "finetune",
    "distilled into a smaller student": "distill",
}

_REPORTED = ("pretrain", *_CLASSIFIERS.values())


def run(workdir: str, *, others: list[str]) -> None:
    """Tells the whole story on the embedded images.

    Pretrains without labels and compares the encoder with an untrained one; fine-tunes it on a few labels and compares
    with training from scratch on the same labels; distills it into a smaller student.

    Args:
      workdir: folder of the runs, one sub-folder each. What is finished there is not done again.
      others: flags that every command gets.
    """
    started = time.monotonic()
    # TensorFlow leaves these kernels off where a processor has AVX2 alone; for the demo's networks they are safe there,
    # and nearly twice as fast.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

    def simclr(mode: str, name: str, **sources: str) -> None:
        flags = [f"--{flag}={_folder(workdir, source)}" for flag, source in sources.items()]
        run_command(f"--mode={mode}", *flags, f"--workdir={os.path.join(workdir, name)}", *others)

    simclr("pretrain", "pretrain")
    simclr("linear_eval", "linear", init_from="pretrain")
    simclr("linear_eval", "untrained")
    simclr("linear_eval", "embedded", init_from=bundled.DEFAULT)
    for name in ("pretrain", "untrained", "embedded"):
        simclr("knn", name)
    simclr("supervised", "supervised")
    simclr("finetune", "finetune", init_from="pretrain")
    simclr("distill", "distill", teacher="finetune")
    page = os.path.join(workdir, "report.html")
    compared = ",".join([*(os.path.join(workdir, name) for name in _REPORTED), bundled.DEFAULT])
    look = (f"--output={page}", "--gin_param=report.max_images=500")
    run_command("--mode=report", f"--workdir={compared}", *look, *others)

    print(
        f"\nThe whole story took {duration(time.monotonic() - started)}. Accuracy on 1,000 test photographs in 10 "
        "classes:"
    )
    print(f"\nWhat encoders know of the classes\n\n{_encoders(workdir)}")
    print("\nThe last one comes with the package: distilled from a network that saw all of CIFAR-10 for longer.")
    rows = [(name, os.path.join(workdir, folder)) for name, folder in _CLASSIFIERS.items()]
    print(f"\nWhat a few labels make of it\n\n{table(rows)}\n\nAll runs are in {workdir}/.")
    print(f"Curves, what training sees, neighbours, a map, mistakes: open {page} in a browser.")


def _folder(workdir: str, source: str) -> str:
    """Where a run lies that another starts from: in the demo's folder, or in the package."""
    return source if bundled.is_embedded(source) else os.path.join(workdir, source)


def _encoders(workdir: str) -> str:
    lines = [
        "| encoder                   | kNN top-1 | linear top-1 |",
        "| ------------------------- | --------: | -----------: |",
    ]
    for name, encoder, linear in (
        ("untrained", "untrained", "untrained"),
        ("pretrained without labels", "pretrain", "linear"),
        ("embedded:cifar10_student", "embedded", "embedded"),
    ):
        knn = read_json(os.path.join(workdir, encoder, "knn.json"))["top_1"]
        top_1 = read_json(os.path.join(workdir, linear, records.RESULT))["evaluation"]["top_1"]
        lines.append(f"| {name:<25} | {100 * knn:>7.1f} % | {100 * top_1:>10.1f} % |")
    return "\n".join(lines)
