"""Makes an embedded network of a finished run: weights without the optimizer's, an export, and a card of figures.

python benchmarks/make_embedded_network.py --workdir=RUN --name=cifar10_student --from=TEXT
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simclr_tf.core.files import read_json  # noqa: E402
from simclr_tf.core.tf import tf  # noqa: E402
from simclr_tf.data.decode import unit_images  # noqa: E402
from simclr_tf.data.sources.open import open_source  # noqa: E402
from simclr_tf.models import bundled  # noqa: E402
from simclr_tf.workdir import records  # noqa: E402
from simclr_tf.workdir.networks import load_network  # noqa: E402

# So that what starts from the network without naming data finds some that are there.
DATA = {"source": "embedded:cifar10_mini", "train_split": "train", "eval_split": "test", "label_fraction": None}


def lighten(workdir: str, folder: Path, origin: str) -> None:
    """Writes what makes a workdir: the network's description and weights, and how the run ended; and the card."""
    network, description, path = load_network(workdir)
    description["data"].update(DATA)
    description.pop("teacher", None)  # Its folders are of another machine.
    kept = folder / "checkpoints"
    kept.mkdir(parents=True)
    step = os.path.basename(path)
    tf.train.Checkpoint(**network.parts()).write(str(kept / step))
    (kept / "checkpoint").write_text(f'model_checkpoint_path: "{step}"\nall_model_checkpoint_paths: "{step}"\n')
    (folder / records.ARCHITECTURE).write_text(json.dumps(description, indent=2) + "\n")
    for name in (records.RESULT, "config.gin"):
        shutil.copy(os.path.join(workdir, name), folder / name)
    result = read_json(os.path.join(workdir, records.RESULT))
    test = open_source(DATA["source"], DATA["eval_split"])
    logits = network.logits(unit_images(tf.constant(test.resident().images)), training=False).numpy()
    card = {
        "from": origin,
        "encoder_parameters": result["encoder_parameters"],
        "top_1": round(100 * result["evaluation"]["top_1"], 2),
        "top_1_embedded_test": round(100 * float(np.mean(logits.argmax(axis=1) == test.labels)), 1),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def export(folder: Path) -> None:
    """Adds the network as a SavedModel with a classifier, whose endpoints have the features, too."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            "--mode=export",
            f"--workdir={folder}",
            f"--output={temporary}",
        ]
        subprocess.run(command, check=True)
        (made,) = [entry for entry in (Path(temporary) / "classifier").iterdir() if entry.name.isdigit()]
        shutil.copytree(made, folder / "saved_model")
    details = folder / "saved_model" / "assets" / "export.json"
    told = json.loads(details.read_text())
    told["checkpoint"] = os.path.basename(told["checkpoint"])
    details.write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a finished run with a classifier")
    parser.add_argument("--name", required=True)
    parser.add_argument("--from", required=True, dest="origin", help="what it learnt from, and by which recipes")
    options = parser.parse_args()
    folder = Path(bundled.FOLDER) / options.name
    if folder.exists():
        parser.error(f"{folder} is there already; move it away first")
    aside = folder.with_suffix(".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    lighten(options.workdir, aside, options.origin)
    export(aside)
    aside.rename(folder)


if __name__ == "__main__":
    main()
