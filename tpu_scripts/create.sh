#!/usr/bin/env bash
# Creates the TPU of config.sh, at once or (QUEUED=yes) through Google's queue, and waits until it exists.
#
# Usage: create.sh [--print] [--config=FILE]
#   --print shows the commands without running them.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"

spot=()
[[ $SPOT == yes ]] && spot=(--spot)
version=$(runtime_version)

if [[ $QUEUED == no ]]; then
  run gcloud compute tpus tpu-vm create "$NAME" "${place[@]}" --accelerator-type="$ACCELERATOR_TYPE" \
    --version="$version" ${spot[@]+"${spot[@]}"} ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"}
  exit
fi

state=NONE
[[ $PRINT ]] || state=$(queue_state)
# A request that is in the queue keeps its place.
[[ $state == NONE ]] && run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${place[@]}" \
  --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$version" ${spot[@]+"${spot[@]}"} ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"}
if [[ $PRINT ]]; then
  show gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)'
  exit
fi
before=''
while :; do
  state=$(queue_state)
  [[ $state == "$before" ]] || note "the request is $state"
  before=$state
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING | NONE)
      die "the request $NAME is $state; delete it with delete.sh, and see 'gcloud compute tpus queued-resources describe'" ;;
  esac
  sleep "$POLL_SECONDS"
done
