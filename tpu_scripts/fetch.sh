#!/usr/bin/env bash
# Copies the run's records and results from WORKDIR to results/NAME in the current folder.
#
# Usage: fetch.sh [--all] [--print] [--config=FILE]
#   --all also copies the checkpoints.
#   --print shows the command without running it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
takes_all=yes
start "$@"
[[ $WORKDIR == gs://* ]] || die "WORKDIR=$WORKDIR is not in a bucket; copy it from where it is"
target=results/$(basename "$WORKDIR")
[[ $PRINT ]] || mkdir -p "$target"
exclude=(--exclude='^checkpoints/')
[[ $ALL ]] && exclude=()
run gcloud storage rsync --recursive ${exclude[@]+"${exclude[@]}"} "$WORKDIR" "$target"
