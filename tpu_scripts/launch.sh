#!/usr/bin/env bash
# Runs RUN of config.sh on the TPU until it is finished: creates and sets up the TPU if there is none, starts the run,
# watches it, starts it again when it asks for that (exit code 75), and makes a new TPU when this one was taken away.
# The run continues from its last checkpoint in WORKDIR each time.
#
# Usage: launch.sh [--print] [--config=FILE]
#   --print shows the commands of an undisturbed run without running them.
# Ctrl-C ends only the watching. The same command watches again.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"

[[ $WORKDIR == gs://* ]] || die "WORKDIR=$WORKDIR is not in a bucket; a TPU VM's disk is lost with it: use gs://..."
((${#RUN[@]})) || die "RUN is empty; say what to do, such as RUN=(--mode=pretrain --gin_file=imagenet --gin_file=models/r50)"
arguments=("${RUN[@]}" --workdir="$WORKDIR" --tpu=local)
[[ $DATA_DIR ]] && arguments+=(--data_dir="$DATA_DIR")
start_command="bash $remote/tpu_scripts/remote_run.sh start $host_count $(printf '%q ' "${arguments[@]}")"
status_command="bash $remote/tpu_scripts/remote_run.sh status $(printf '%q ' "${arguments[@]}")"

if [[ $PRINT ]]; then
  show gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" '--format=value(state)'
  script create.sh
  script setup.sh
  on all "$start_command"
  on 0 "$status_command"
  exit
fi

# Ends the watching, with a reminder of the TPU's costs.
leave() {
  note "the TPU $NAME is still there and costs money; delete.sh deletes it"
  exit "$1"
}

remove() {
  script delete.sh && return
  note "cannot delete what is left of $NAME; trying again"
  sleep "$POLL_SECONDS"
}

# Makes a TPU. Returns after a failure that may pass; ends the script after any other.
create() {
  local errors
  errors=$(mktemp)
  if ! script create.sh 2> >(tee "$errors" >&2); then
    sleep 0.1  # tee writes the last line.
    if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|Reauthentication|invalid choice|unrecognized arguments' "$errors"; then
      rm -f "$errors"
      die "asking again will not help; put right what gcloud said"
    fi
    note "no TPU is available; asking again in ${POLL_SECONDS}s"
    sleep "$POLL_SECONDS"
  fi
  rm -f "$errors"
}

# Asks for a TPU where there is none, or keeps the place in the queue.
request() {
  local queue=NONE
  [[ $QUEUED == no ]] || queue=$(queue_state)
  case $queue in
    UNKNOWN) sleep "$POLL_SECONDS" ;;
    # ACTIVE without a TPU: somebody deleted the TPU.
    FAILED | SUSPENDED | SUSPENDING | ACTIVE) remove; create ;;
    *) create ;;
  esac
}

failed_setups=0 renewed=''
# Until it succeeds the status is unready, and the next check sets up again.
set_up() {
  if script setup.sh; then
    failed_setups=0 renewed=yes
  elif ((++failed_setups >= MAX_CRASHES)); then
    note "setup failed $failed_setups times in a row"
    leave 1
  else
    note "setup failed; trying again in ${POLL_SECONDS}s"
    sleep "$POLL_SECONDS"
  fi
}

started=''
start_run() {
  looks=0
  note "starting the run ($1)"
  if on all "$start_command"; then started=yes; else note "cannot reach the TPU; trying again"; fi
  sleep "$POLL_SECONDS"
}

runtime_version > /dev/null
crashes=0 looks=0 state=''
while :; do
  before=$state
  state=$(tpu_state)
  # An unknown state at the first check is a wrong configuration; later it may be the network.
  [[ $state$before != UNKNOWN ]] || die "put right what gcloud said, and launch again"
  case $state in
    READY) ;;
    NONE) note "there is no TPU $NAME; making one"; request; continue ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED | SUSPENDED)
      note "the TPU is $state; making a new one"; remove; continue ;;
    *) note "the TPU is $state; waiting"; sleep "$POLL_SECONDS"; continue ;;
  esac
  # A failed ssh says nothing about the run; the next check of the TPU's state does.
  status=$(on 0 "$status_command" 2>/dev/null | tail -n 1) || status=unreachable
  case $status in
    running)
      started=yes
      # A run of this length ends a row of crashes.
      ((++looks < 30)) || crashes=0
      sleep "$POLL_SECONDS" ;;
    "exited 0")
      note "the run is finished; see $WORKDIR, and fetch.sh"
      leave 0 ;;
    none | lost | "exited 75" | "exited 143")  # 143: SIGTERM, before the run could save anything.
      [[ $status == "exited 75" ]] && crashes=0
      start_run "it was: $status" ;;
    another)
      note "another run is going on on $NAME; see logs.sh, and wait for its end, or give another NAME"
      leave 1 ;;
    unready) set_up ;;
    "exited "*)
      code=${status#exited }
      # Above 128: a signal ended the run, such as 137 from the kernel when memory ran out.
      if ((code > 128 && ++crashes < MAX_CRASHES)); then
        start_run "signal $((code - 128)) ended it; $crashes of $MAX_CRASHES"
        continue
      fi
      if [[ ! $started ]]; then
        # The run ended before this watch began; the checkout may have been fixed since.
        if [[ $renewed ]]; then start_run "an earlier one ended with $code"; else set_up; fi
        continue
      fi
      note "the run failed with exit code $code; the end of its log:"
      on 0 "tail -n 20 simclr_run/log" >&2 || true
      leave "$code" ;;
    *)
      # Either the host does not answer, or setup has not copied the project to it yet.
      if on 0 true 2>/dev/null; then set_up; else note "$NAME does not answer; waiting"; sleep "$POLL_SECONDS"; fi ;;
  esac
done
