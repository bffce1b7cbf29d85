#!/usr/bin/env bash
# Deletes the TPU, so that it costs nothing more. WORKDIR stays as it is.
#
# Usage: delete.sh [--print] [--config=FILE]
#   --print shows the command without running it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"
if [[ $QUEUED == yes ]]; then
  # With --force gcloud deletes the request's TPU, too.
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
else
  run gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet
fi
