#!/usr/bin/env bash
# Runs on each host of the TPU: makes the Python environment of the project.
#
# Usage: remote_setup.sh STACK
#   2.15: the image's TensorFlow, because pip's tensorflow 2.15 is not built for TPUs.
#   2.20: tensorflow-tpu and libtpu from pip, on any image.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stack=${1:?which stack, 2.15 or 2.20}
venv=$HOME/simclr_venv

rm -f "$HOME/simclr_ready"
case $stack in
  2.15) make=(python3 -m venv --system-site-packages "$venv") ;;
  2.20) make=(python3 -m venv "$venv") ;;
  *) echo "remote_setup.sh: STACK is $stack; use 2.15 or 2.20" >&2; exit 2 ;;
esac
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  sudo apt-get -qq update
  sudo apt-get -qq install -y python3-venv
fi
"${make[@]}"
"$venv/bin/python" -m pip install -q --upgrade pip
"$venv/bin/python" -m pip install -q -r "$here/requirements-tf$stack.txt"
# TPU_LOAD_LIBRARY=0 leaves the TPU alone, which a pod's own server may hold.
found=$(cd "$(dirname "$here")" && TPU_LOAD_LIBRARY=0 TF_CPP_MIN_LOG_LEVEL=3 "$venv/bin/python" -c \
  'from simclr_tf.core.tf import tf; print(tf.__version__)')
if [[ $found != "$stack".* ]]; then
  echo "remote_setup.sh: TensorFlow $found is installed, and the stack is $stack; create the TPU with an image of that version" >&2
  exit 1
fi
touch "$HOME/simclr_ready"
echo "$(hostname): TensorFlow $found is ready"
