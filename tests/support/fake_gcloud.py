"""A stand-in for gcloud and a TPU VM, in a folder: records what is called, and runs what is sent over ssh."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"

# $STAND holds: calls, state (of the TPU; absent where there is none), queue (of the request), home/ (the TPU VM), codes
# (how the next runs end), starts (what was run), preempt_at (the number of the look at which the TPU is taken away).
GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$STAND/calls"
echo "WARNING: This command is using service account impersonation." >&2
if [[ -e $STAND/no_account ]]; then
  echo "ERROR: (gcloud) You do not currently have an active account selected." >&2
  exit 1
fi
vanish() { rm -rf "$STAND/state" "$STAND/home"; }
appear() { mkdir -p "$STAND/home"; echo READY > "$STAND/state"; }
missing() { echo "ERROR: (gcloud) NOT_FOUND: no such thing" >&2; exit 1; }
case "$*" in
  *"tpu-vm describe"*) [[ -e $STAND/state ]] || missing; cat "$STAND/state" ;;
  *"queued-resources describe"*)
    [[ -e $STAND/queue ]] || missing
    head -n 1 "$STAND/queue"
    [[ $(wc -l < "$STAND/queue") == 1 ]] || sed -i 1d "$STAND/queue"
    [[ $(cat "$STAND/queue") != ACTIVE ]] || appear ;;
  *"tpu-vm create"*)
    if [[ -e $STAND/refused ]]; then echo "ERROR: (gcloud) PERMISSION_DENIED: not yours" >&2; exit 1; fi
    if [[ -e $STAND/no_capacity ]]; then rm "$STAND/no_capacity"; echo "ERROR: no more capacity" >&2; exit 1; fi
    appear ;;
  *"queued-resources create"*) printf '%s\n' WAITING_FOR_RESOURCES PROVISIONING ACTIVE > "$STAND/queue" ;;
  *"tpu-vm delete"*) vanish ;;
  *"queued-resources delete"*) vanish; rm -f "$STAND/queue" ;;
  *"tpu-vm scp"*) cp "$5" "$STAND/home/${6#*:}" ;;
  *"tpu-vm ssh"*)
    [[ $(cat "$STAND/state" 2> /dev/null) == READY ]] || { echo "ssh: connect: no route to host" >&2; exit 255; }
    for argument; do [[ $argument == --command=* ]] && command=${argument#--command=}; done
    if [[ $command == *status* ]]; then
      echo look >> "$STAND/looks"
      if [[ $(wc -l < "$STAND/looks") == $(cat "$STAND/preempt_at" 2> /dev/null) ]]; then
        echo PREEMPTED > "$STAND/state"
        if [[ -e $STAND/queue ]]; then echo SUSPENDED > "$STAND/queue"; fi
        exit 255
      fi
    fi
    cd "$STAND/home" && HOME=$STAND/home PATH=$STAND/vm:$PATH bash -c "$command" ;;
  *"storage rsync"*) ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""

# Of the TPU VM: makes environments whose Python is this same file, and "trains".
PYTHON3 = r"""#!/usr/bin/env bash
case "$*" in
  *"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"; echo "$*" >> "$STAND/venv" ;;
  *"-m pip"*)
    echo "$*" >> "$STAND/pip"
    if [[ -s $STAND/pip_fails ]]; then sed -i 1d "$STAND/pip_fails"; exit 1; fi ;;
  "-c import ensurepip"*) ;;
  "-c import libtpu"*) cat "$STAND/own_library" ;;
  *simclr_tf.core.tf*) cat "$STAND/tensorflow" ;;
  run.py*)
    printf '%s\n' "$*" >> "$STAND/starts"
    echo "TPU_LOAD_LIBRARY=${TPU_LOAD_LIBRARY:-unset}" >> "$STAND/environment"
    echo "${NEXT_PLUGGABLE_DEVICE_USE_C_API:-} ${TF_PLUGGABLE_DEVICE_LIBRARY_PATH:-}" >> "$STAND/plugin"
    code=$(head -n 1 "$STAND/codes"); sed -i 1d "$STAND/codes"
    echo "this run ends with $code"
    if [[ $code == waits ]]; then
      trap 'sleep 0.3; exit 75' TERM; touch "$STAND/trapped"
      for _ in {1..600}; do sleep 0.1; done; exit 1
    fi
    exit "$code" ;;
  *) exec /usr/bin/env python3 "$@" ;;
esac
"""

CURL = """#!/usr/bin/env bash
[[ -e $STAND/worker ]] && cat "$STAND/worker"
"""

CONFIG = """
PROJECT=p ZONE=z NAME=tpu ACCELERATOR_TYPE=v3-8 SPOT=yes QUEUED=no STACK=2.15
WORKDIR=gs://bucket/run DATA_DIR=gs://bucket/data
RUN=(--mode=pretrain --gin_param="Data.source='tfds:x y'")
POLL_SECONDS=0.1 MAX_CRASHES=3
"""


class Stand:
    """A place where the scripts can run."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in {"bin/gcloud": GCLOUD, "vm/python3": PYTHON3, "vm/curl": CURL}.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        # A checkout of the scripts alone, so that each set-up copies little.
        shutil.copytree(SCRIPTS, folder / "checkout/tpu_scripts")
        self.write("config", CONFIG)
        self.write("tensorflow", "2.15.1\n")
        self.environment = {**os.environ, "STAND": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def configure(self, **changes: str) -> None:
        self.write("config", CONFIG + "".join(f"{name}={value}\n" for name, value in changes.items()))

    def run(self, script: str, *flags: str) -> subprocess.CompletedProcess:
        command = [str(self.folder / "checkout/tpu_scripts" / script), f"--config={self.folder}/config", *flags]
        where = {"env": self.environment, "cwd": self.folder}
        return subprocess.run(command, **where, text=True, capture_output=True, timeout=60)

    def on_vm(self, *arguments: str) -> str:
        command = ["bash", str(self.folder / "home/simclr_tf_project/tpu_scripts/remote_run.sh"), *arguments]
        environment = {
            **self.environment,
            "HOME": str(self.folder / "home"),
            "PATH": f"{self.folder}/vm:{self.environment['PATH']}",
        }
        return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=30, check=True).stdout

    def verbs(self) -> list[str]:
        """The calls in short."""
        short = []
        for call in self.read("calls"):
            words = call.split()
            short.append(" ".join(words[2:4]) if words[0] == "compute" else " ".join(words[:2]))
        return short
