"""`make demo`: runs the commands that a user would type, then prints tables of their results."""

from __future__ import annotations

import os
import time

from simclr_tf.commands.sequence import run_command, table
from simclr_tf.core.files import read_json
from simclr_tf.core.text import duration
from simclr_tf.models import bundled
from simclr_tf.workdir import records

# Name in the table -> subfolder, for the runs that end with a classifier.
_CLASSIFIERS = {
    "from scratch, few labels": "supervised",
    "pretrained, then fine-tuned": "finetune",
    "distilled into a smaller student": "distill",
}

_REPORTED = ("pretrain", *_CLASSIFIERS.values())


def run(workdir: str, *, others: list[str]) -> None:
    """Runs the paper's three stages, with comparisons, on the embedded images.

    Pretrains without labels and compares the encoder with an untrained one. Then fine-tunes it on a few labels and
    compares the result with training from scratch on the same labels. Last, distills it into a smaller student.

    Args:
      workdir: The folder of the runs, one subfolder each. Runs that are finished there are not repeated.
      others: Flags for every command.
    """
    started = time.monotonic()
    # TensorFlow turns oneDNN kernels off on processors with AVX2 only. The demo's networks run safely with them there,
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
    options = (f"--output={page}", "--gin_param=report.max_images=500")
    run_command("--mode=report", f"--workdir={compared}", *options, *others)

    print(
        f"\nAll of this took {duration(time.monotonic() - started)}. Accuracy on 1,000 test photographs in 10 classes:"
    )
    print(f"\nHow much the encoders know about the classes\n\n{_encoders(workdir)}")
    print("\nThe last one comes with the package. Its teacher trained longer, on all of CIFAR-10.")
    rows = [(name, os.path.join(workdir, folder)) for name, folder in _CLASSIFIERS.items()]
    print(f"\nWhat a few labels add\n\n{table(rows)}\n\nAll runs are in {workdir}/.")
    print(f"Open {page} in a browser for curves, training images, nearest neighbors, a map and mistakes.")


def _folder(workdir: str, source: str) -> str:
    """Returns where a source run is: in the demo's folder, or in the package."""
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
