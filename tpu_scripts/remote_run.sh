#!/usr/bin/env bash
# Runs on each host of the TPU: starts the run, and reports its status.
#
# Usage: remote_run.sh start HOSTS ARGUMENTS...   starts `simclr ARGUMENTS` unless it is running; on host 0 only
#        remote_run.sh status [ARGUMENTS...]      prints: running, exited CODE, lost (it ended without a code), none, or
#                                                 unready (setup.sh did not end); with arguments, for a run of others:
#                                                 another (it is running), or none
#        remote_run.sh stop                       asks the run to save and end, and waits
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$HOME/simclr_run

# A run writes its exit code last; its process may live on for a moment.
running() {
  local pid
  [[ ! -e $state/code && -r $state/pid ]] && pid=$(<"$state/pid") && kill -0 "$pid" 2>/dev/null
}

# Prints this host's number. Host 0 leads the others, which run the servers of the TPU's image.
worker() {
  curl -sf -m 5 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/attributes/agent-worker-number" || echo 0
}

# Prints the path of the library by which TensorFlow talks to the TPU: the environment's own, else the image's.
plugin() {
  local path
  path=$("$HOME/simclr_venv/bin/python" -c 'import libtpu; print(libtpu.get_library_path())' 2>/dev/null) || true
  [[ $path == "$HOME/simclr_venv/"* ]] || path=${TPU_LIBRARY_PATH:-/lib/libtpu.so}
  [[ -e $path ]] && echo "$path"
}

case ${1:-} in
  start)
    hosts=$2
    shift 2
    number=$(worker)
    if ((number > 0)); then
      echo "host $number serves host 0"
      exit 0
    fi
    mkdir -p "$state"
    if running; then
      echo running
      exit 0
    fi
    rm -f "$state/code"
    printf '%q ' "$@" > "$state/arguments"
    # On a pod the hosts' servers hold the TPU, and this process only talks to them.
    ((hosts > 1)) && export TPU_LOAD_LIBRARY=0
    # On a single host, TensorFlow loads the TPU as a plugin (PJRT) from this path.
    if ((hosts == 1)) && [[ -z ${TF_PLUGGABLE_DEVICE_LIBRARY_PATH:-} ]] && library=$(plugin); then
      export TF_PLUGGABLE_DEVICE_LIBRARY_PATH=$library NEXT_PLUGGABLE_DEVICE_USE_C_API=true
    fi
    cd "$(dirname "$here")"
    # The shell writes the code whatever ends the run, so that `status` can tell a fault from a host that went down.
    # shellcheck disable=SC2016
    setsid nohup bash -c '
      state=$1; shift
      "$HOME/simclr_venv/bin/python" run.py "$@" &
      child=$!
      trap "kill -TERM $child" TERM
      code=0
      wait "$child" || code=$?
      # A signal ends `wait` early, while the child still saves.
      while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
      echo "$code" > "$state/code.new" && mv "$state/code.new" "$state/code"
    ' run "$state" "$@" >> "$state/log" 2>&1 < /dev/null &
    echo $! > "$state/pid"
    echo started
    ;;
  status)
    shift
    same=yes
    if (($#)) && [[ -e $state/arguments && $(<"$state/arguments") != "$(printf '%q ' "$@")" ]]; then same=''; fi
    if running; then
      if [[ $same ]]; then echo running; else echo another; fi
    elif [[ ! -e $HOME/simclr_ready ]]; then
      echo unready
    elif [[ ! $same ]]; then
      echo none
    elif [[ -r $state/code ]]; then
      echo "exited $(<"$state/code")"
    elif [[ -e $state/pid ]]; then
      echo lost
    else
      echo none
    fi
    ;;
  stop)
    if running; then
      kill -TERM "$(<"$state/pid")"
      while running; do sleep 1; done
    fi
    "${BASH_SOURCE[0]}" status
    ;;
  *)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
