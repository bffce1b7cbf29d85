#!/usr/bin/env bash
# Copies this checkout to all hosts of the TPU and installs its requirements there.
#
# Usage: setup.sh [--print] [--config=FILE]
#   --print shows the commands without running them.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"

archive=/tmp/simclr_tf_project.tar.gz
if [[ ! $PRINT ]]; then
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
fi
run tar -C "$root" --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=./logs --exclude=__pycache__ \
  -czf "$archive" .
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:$remote.tar.gz" "${place[@]}" --worker=all
on all "mkdir -p $remote && tar -C $remote -xzf $remote.tar.gz && bash $remote/tpu_scripts/remote_setup.sh $STACK"
