#!/usr/bin/env bash
# Run training on one host, and run it again when it asks for that.
#
#   launch/worker.sh [--run FOLDER] [--restarts N] [--dry-run] -- COMMAND...
#
# COMMAND is started again when it exits with 75 (preempted, saved) or 76 (another host was lost).
# Any other exit code is passed on.
#
#   --run FOLDER    the run folder (train.output). A new entry in its checkpoints/ is progress.
#   --restarts N    so many restarts in a row without progress (default 3), then exit code 1.
#                   0: a scheduler restarts, every exit code is passed on.
#   --dry-run       print COMMAND and stop
#
# SIGTERM and SIGINT go to COMMAND, once, and end the loop. On Google Cloud a notice of preemption
# does the same (the host is about to go; whoever made it starts the next one), and a notice of
# maintenance makes COMMAND save and start again. GCE_METADATA_HOST names another metadata server.
set -euo pipefail
# Jobs get process groups of their own, so that a signal to this script's group reaches COMMAND
# only through this script: the second one would end training before it has saved.
set -m
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PREEMPTED=75
HOST_LOST=76
KILLED_BY_TERM=143
METADATA=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1

run='' restarts=3
while (($#)); do
  case $1 in
    --run) needs "$@" && run=$2 && shift 2 ;;
    --restarts) needs "$@" && restarts=$2 && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    --help) help && exit ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
check --restarts "$restarts" '[0-9]{1,4}' 3
(($#)) || die "give the training command after --"
if [[ $DRY_RUN ]]; then
  quoted "$@"
  exit
fi

# stop: the signal that ends the loop. sent: the one that COMMAND has had.
child='' stop='' sent=''

send() {
  if [[ $child && -z $sent ]]; then
    sent=$1
    kill -s "$1" -- "-$child" 2>/dev/null || true
  fi
}

on_stop() {
  stop=$1
  send "$1"
}

trap 'on_stop TERM' TERM
trap 'on_stop INT' INT
trap 'send TERM' USR1 # maintenance

# is KEY[?QUERY] [VALUE]: whether Google Cloud's metadata server answers, with the value.
is() {
  local now
  now=$(curl --silent --fail --connect-timeout 2 --max-time 120 --header 'Metadata-Flavor: Google' \
    "$METADATA/instance/$1") && [[ $now == "${2-$now}" ]]
}

# watch KEY VALUE SIGNAL: send this script the signal once the key has the value.
watch() {
  set +m # curl belongs to this job's process group
  # What it is now, then what it changes to. The server restarts at times, or does not wait.
  until is "$1" "$2" || is "$1?wait_for_change=true&timeout_sec=60" "$2"; do sleep 1; done
  say "worker: $1 is $2"
  kill -s "$3" $$
}

watchers=()
if is id; then
  watch preempted TRUE TERM &
  watchers+=($!)
  watch maintenance-event TERMINATE_ON_HOST_MAINTENANCE USR1 &
  watchers+=($!)
fi

status=$(mktemp)

clean_up() {
  local pid
  for pid in "${watchers[@]}"; do kill -s TERM -- "-$pid" 2>/dev/null || true; done
  rm -f "$status" || true
}
trap clean_up EXIT

# recorded COMMAND...: run it and note its exit code, whatever signals come. (wait alone will not
# do: it loses the code when it is interrupted at the moment of the end.)
recorded() {
  set +m # COMMAND belongs to this job's process group
  trap : TERM INT
  local code=0
  "$@" || code=$?
  echo "$code" >"$status"
}

# once COMMAND...: run it to its end; sets code.
once() {
  sent=''
  : >"$status"
  recorded "$@" &
  child=$!
  [[ -z $stop ]] || send "$stop" # a signal that came before there was a child
  until [[ -s $status ]]; do
    wait "$child" || true # until the end or a signal
    kill -0 "$child" 2>/dev/null || break
  done
  child=''
  read -r code <"$status" || code=$KILLED_BY_TERM
  # The signal came before training could handle it: there was nothing to save.
  if [[ $sent == TERM ]] && ((code == KILLED_BY_TERM)); then code=$PREEMPTED; fi
}

checkpoints() { [[ -z $run ]] || ls "$run/checkpoints" 2>/dev/null || true; }

failures=0
while :; do
  before=$(checkpoints) || true
  once "$@"
  if ((code != PREEMPTED && code != HOST_LOST)) || ((restarts == 0)) || [[ $stop ]]; then
    exit "$code"
  fi
  failures=$((failures + 1))
  [[ -z $run || $(checkpoints) == "$before" ]] || failures=1
  if ((failures > restarts)); then
    say "worker: exit code $code again after $restarts restarts without a new checkpoint; giving up"
    exit 1
  fi
  say "worker: exit code $code; restart $failures of at most $restarts without a new checkpoint"
done
