#!/usr/bin/env bash
# Follows the log of the run on the TPU; Ctrl-C ends the following, not the run.
#
# Usage: logs.sh [--print] [--config=FILE]
#   --print shows the command without running it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"
on 0 "tail -n 200 -F simclr_run/log"
