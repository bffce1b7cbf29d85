#!/usr/bin/env bash
# Runs what config.sh says on the TPU, to its end: creates and sets up the TPU where there is none, starts the run, watches
# it, starts it again when it asks for that (exit code 75), and makes a new TPU when this one was taken away.
# Nothing is lost in between: the run goes on from its last checkpoint in WORKDIR.
#
# Usage: launch.sh [--print] [--config=FILE]
#   --print shows the commands of an undisturbed run without running them.
# Ctrl-C ends only the watching. The same command watches again.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"

[[ $WORKDIR == gs://* ]] || die "WORKDIR=$WORKDIR is not in a bucket; a TPU VM's disk is lost with it: use gs://..."
((${#RUN[@]})) || die "RUN is empty; say what to do, such as RUN=(--mode=pretrain --gin_file=imagenet_r50)"
arguments=("${RUN[@]}" --workdir="$WORKDIR" --tpu=local)
[[ $DATA_DIR ]] && arguments+=(--data_dir="$DATA_DIR")
start_command="bash $remote/tpu_scripts/remote_run.sh start $host_count $(printf '%q ' "${arguments[@]}")"
status_command="bash $remote/tpu_scripts/remote_run.sh status"

if [[ $PRINT ]]; then
  show gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" '--format=value(state)'
  script create.sh
  script setup.sh
  on all "$start_command"
  on 0 "$status_command"
  exit
fi

# Deletes what is left of a TPU that was taken away, and makes a new one.
renew() {
  [[ $1 == NONE && ($QUEUED == no || $(queue_state) == NONE) ]] || script delete.sh
  until script create.sh; do
    note "no TPU to be had; asking again in ${POLL_SECONDS}s"
    sleep "$POLL_SECONDS"
    [[ $(tpu_state) == NONE && ($QUEUED == no || $(queue_state) == NONE) ]] || script delete.sh
  done
  script setup.sh
}

crashes=0
while :; do
  state=$(tpu_state)
  case $state in
    READY) ;;
    NONE) note "there is no TPU $NAME; making one"; renew "$state"; continue ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED | SUSPENDED)
      note "the TPU is $state; making a new one"; renew "$state"; continue ;;
    *) note "the TPU is $state; waiting"; sleep "$POLL_SECONDS"; continue ;;
  esac
  # An ssh that fails says nothing of the run: the next look at the TPU's state does.
  status=$(on 0 "$status_command" 2>/dev/null | tail -n 1) || status=unreachable
  case $status in
    running) sleep "$POLL_SECONDS" ;;
    "exited 0")
      note "the run is finished; see $WORKDIR, and fetch.sh"
      exit 0 ;;
    none | lost | "exited 75")
      [[ $status == "exited 75" ]] && crashes=0
      note "the run is to be started (it was: $status)"
      on all "$start_command" || note "cannot reach the TPU; trying again"
      sleep "$POLL_SECONDS" ;;
    "exited "*)
      code=${status#exited }
      # 128 and more: ended by a signal, such as 137 by the kernel when memory ran out.
      if ((code > 128 && ++crashes < MAX_CRASHES)); then
        note "the run was ended by signal $((code - 128)); starting it again ($crashes of $MAX_CRASHES)"
        on all "$start_command" || note "cannot reach the TPU; trying again"
        sleep "$POLL_SECONDS"
        continue
      fi
      note "the run failed with exit code $code; the end of its log:"
      on 0 "tail -n 20 simclr_run/log" >&2 || true
      exit "$code" ;;
    *)
      # Either the host does not answer, or it answers but has nothing on it yet.
      if on 0 true 2>/dev/null; then script setup.sh; else note "$NAME does not answer; waiting"; fi
      sleep "$POLL_SECONDS" ;;
  esac
done
