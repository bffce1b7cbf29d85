"""This project's step, augmentation on the device included."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import _common, step


def main() -> None:
    """Builds and serves."""
    options = serve.options()
    built = argparse.Namespace(images=options.images, size=options.size, depth=options.depth, width=1, xla=False)
    ours = step.Ours(options.precision, built)

    def take() -> float:
        ours.run()
        return ours.loss

    serve.serve(take, f"simclr_tf, tensorflow {_common.version('tensorflow')}")


if __name__ == "__main__":
    main()
