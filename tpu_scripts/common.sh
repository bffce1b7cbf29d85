# shellcheck shell=bash source-path=SCRIPTDIR disable=SC2034,SC2153
# Shared by the scripts, which source it: flags, configuration, gcloud calls, the state of the TPU.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# The project's folder on the TPU VM, below the user's home folder.
remote=simclr_tf_project

die() { echo "$(basename "$0"): $*" >&2; exit 1; }
note() { echo "$(basename "$0"): $*" >&2; }

usage() {
  # Prints the comment at the top of the script, up to the first line of code.
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}

# Sets PRINT, ALL and config from the command line, then reads the configuration.
start() {
  config_path=$here/config.sh
  PRINT='' ALL=''
  while (($#)); do
    case $1 in
      --print) PRINT=yes ;;
      --all) [[ ${takes_all:-} ]] || die "--all is for fetch.sh"; ALL=yes ;;
      --config=*) config_path=${1#*=} ;;
      -h | --help) usage; exit 0 ;;
      *) die "$1 is unknown; it takes --print, --config=FILE and --help; see the top of $0" ;;
    esac
    shift
  done
  [[ -r $config_path ]] || die "cannot read the configuration $config_path; give another with --config=FILE"
  local name
  CREATE_FLAGS=() RUN=()
  # shellcheck source=config.sh
  source "$config_path"
  for name in PROJECT ZONE NAME ACCELERATOR_TYPE WORKDIR; do
    [[ -n ${!name:-} ]] || die "$config_path sets no $name; fill it in"
  done
  for name in SPOT QUEUED; do
    [[ ${!name:-} == yes || ${!name:-} == no ]] || die "$name=${!name:-} in $config_path; use yes or no"
  done
  [[ ${STACK:-} == 2.15 || ${STACK:-} == 2.20 ]] || die "STACK=${STACK:-} in $config_path; use 2.15 or 2.20"
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "NAME=$NAME in $config_path; use small letters, digits and dashes"
  POLL_SECONDS=${POLL_SECONDS:-60} MAX_CRASHES=${MAX_CRASHES:-5} DATA_DIR=${DATA_DIR:-} RUNTIME_VERSION=${RUNTIME_VERSION:-}
  [[ $PRINT ]] || command -v gcloud > /dev/null || die "there is no gcloud here; install Google's Cloud CLI and log in"
  place=(--project="$PROJECT" --zone="$ZONE")
  host_count=$(hosts)
}

# Prints a command as a user could type it.
show() { printf '%q ' "$@" | sed 's/ $//'; echo; }

# Runs a command, or prints it under --print.
run() {
  if [[ $PRINT ]]; then show "$@"; else "$@"; fi
}

# Prints a TPU's number of hosts, from its type. The number after the dash counts chips of v5e and v6e, else cores.
hosts() {
  local number=${ACCELERATOR_TYPE##*-}
  [[ $number =~ ^[0-9]+$ ]] || die "ACCELERATOR_TYPE=$ACCELERATOR_TYPE; it looks like v3-8 or v5litepod-16"
  case $ACCELERATOR_TYPE in
    v5litepod-* | v6e-*) if ((number <= 8)); then echo 1; else echo $((number / 4)); fi ;;
    *) echo $(((number + 7) / 8)) ;;
  esac
}

# Prints the TPU software version: an image with TensorFlow for 2.15, a bare one for 2.20, which pip installs.
runtime_version() {
  if [[ $RUNTIME_VERSION ]]; then
    echo "$RUNTIME_VERSION"
  elif [[ $STACK == 2.15 ]]; then
    if ((host_count > 1)); then echo tpu-vm-tf-2.15.1-pod-pjrt; else echo tpu-vm-tf-2.15.1-pjrt; fi
  elif ((host_count > 1)); then
    die "STACK=2.20 has no image whose hosts serve host 0, and $ACCELERATOR_TYPE has $host_count hosts; use STACK=2.15, or name an image in RUNTIME_VERSION"
  else
    case $ACCELERATOR_TYPE in
      v6e-*) echo v2-alpha-tpuv6e ;;
      v5p-*) echo v2-alpha-tpuv5 ;;
      v5litepod-*) echo v2-alpha-tpuv5-lite ;;
      *) echo tpu-ubuntu2204-base ;;
    esac
  fi
}

# described KIND FIELD: prints a state in gcloud's words; NONE where no such resource exists.
described() {
  local answer errors
  # Errors go to a file of their own, because gcloud also prints warnings.
  errors=$(mktemp)
  if answer=$(gcloud compute tpus "$1" describe "$NAME" "${place[@]}" --format="value($2)" 2> "$errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo NONE
  else
    note "gcloud cannot tell the state of $NAME ($1): $(grep ERROR "$errors" | head -n 1)"
    echo UNKNOWN
  fi
  rm -f "$errors"
}

# The TPU's state.
tpu_state() { described tpu-vm state; }

# The state of the queued request.
queue_state() { described queued-resources state.state; }

# on WORKER COMMAND: runs a command on one host, or on "all".
on() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker="$1" --command="$2"
}

script() {
  local name=$1
  shift
  local flags=(--config="$config_path")
  [[ $PRINT ]] && flags+=(--print)
  "$here/$name" "${flags[@]}" "$@"
}
