"""The same pretraining step here and in other implementations from the package index, in turn.

    python benchmarks/peers.py                                   # ResNet-18, CIFAR stem, 64 images, beside lightly
    python benchmarks/peers.py --depth=50 --size=224 --images=8

Each peer is installed into an environment of its own under `--envs` (gigabytes; kept for the next time) and runs as a
process that takes one step when it is asked, so that a change of the machine's mood falls on all. Ours augments on the
device within the step; peers get random numbers for views. tf-models-official is no peer: its wheels (2.8.0 to 2.15.0
were looked into) leave its SimCLR project out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _common

# Peer -> what to install. Without a GPU there is no use for torch's CUDA libraries, but its wheels ask for them.
PEERS = {
    "lightly": ("lightly==1.6.0", "torch", "torchvision"),
}
_STEPS = Path(__file__).resolve().parent / "_peer_steps"


class Peer:
    """A process that takes steps; `run` returns the seconds of one."""

    def __init__(self, python: str, script: str, arguments: list[str]):
        """Starts it and waits until it is ready.

        Raises:
          SystemExit: where it ends instead.
        """
        self._process = subprocess.Popen(
            [python, str(_STEPS / script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = self._answer()["ready"]

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{' '.join(self._process.args)} ended with {self._process.wait()}")

    def run(self) -> float:
        """Asks for a step."""
        print("step", file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def environment(peer: str, folder: Path) -> str:
    """Returns the Python of a peer's environment, which is made where it is missing."""
    python = folder / peer / "bin" / "python"
    done = folder / peer / "installed"
    if not done.exists():
        print(f"installing {', '.join(PEERS[peer])} into {folder / peer}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[peer]], check=True)
        done.touch()
    return str(python)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="lightly", help=f"of {', '.join(PEERS)}, with commas")
    parser.add_argument("--envs", type=Path, default=_common.ROOT / ".venv-peers")
    parser.add_argument("--images", type=int, default=64, help="images of a step; twice as many views")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--depth", type=int, default=18, choices=(18, 34, 50))
    parser.add_argument("--precisions", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    chosen = options.peers.split(",")
    unknown = set(chosen) - PEERS.keys()
    if unknown:
        parser.error(f"--peers={options.peers} names {', '.join(sorted(unknown))}; choose of {', '.join(PEERS)}")
    pythons = {peer: environment(peer, options.envs) for peer in chosen}
    print(
        f"{_common.machine()}\nResNet-{options.depth}, {options.size} pixels, {options.images} images "
        f"({2 * options.images} views)",
        flush=True,
    )
    for precision in options.precisions.split(","):
        arguments = [f"--{name}={getattr(options, name)}" for name in ("images", "size", "depth")]
        arguments.append(f"--precision={precision}")
        peers = {"ours": Peer(sys.executable, "our_step.py", arguments)}
        peers.update({name: Peer(python, f"{name}_step.py", arguments) for name, python in pythons.items()})
        runs: dict[str, Callable[[], float]] = {name: peer.run for name, peer in peers.items()}
        seconds = _common.in_turn(runs, options.rounds, warm_up=3)
        rows = []
        for name, values in seconds.items():
            rate = _common.spread(2 * options.images / value for value in values)
            gain = _common.spread(_common.ratios(values, seconds["ours"]), 2)
            rows.append((peers[name].name, rate, gain))
        print(f"\n{precision}\n\n{_common.table(('step', 'views/s', 'speedup of our step'), rows)}", flush=True)
        for peer in peers.values():
            peer.close()


if __name__ == "__main__":
    main()
