#!/usr/bin/env bash
# Train on Cloud TPU, requested as a queued resource.
#
#   launch/tpu.sh COMMAND [OPTION...] [-- TRAINING ARGUMENT...]
#
#   create    request the TPU (nothing to do where it exists)
#   install   copy this working tree to all workers, make the environment, mount the bucket
#   run       start training on all workers (nothing to do where it runs)
#   tail      follow the log of worker 0
#   status    state of the request, and of training on every worker
#   watch     see training through to its end: install and run where needed; after a preemption
#             delete, create, install and run again, which resumes from the run folder
#   delete    delete request and TPU (nothing to do where there is none)
#   up        create and watch; at the end, also on an error or Ctrl-C, delete what it created
#
# Options, or environment variables:
#   --project ID               PROJECT_ID
#   --zone ZONE                ZONE
#   --name NAME                TPU_NAME (default synrank)
#   --accelerator-type TYPE    ACCELERATOR_TYPE: v5litepod-8 for plan's v5e:2x4, v6e-64 for v6e:8x8
#   --runtime-version VERSION  RUNTIME_VERSION (default: the one of the accelerator)
#   --tier TIER                TIER: spot (default, cheap, may be preempted), on-demand or reserved
#   --bucket BUCKET            BUCKET: Cloud Storage bucket, /mnt/BUCKET on the workers
#   --output FOLDER            run folder in the bucket; becomes train.output
#   --restarts N               restarts in a row without a new checkpoint (default 3)
#   --dry-run                  print the commands, run none
#
#   launch/tpu.sh up --project my-project --zone us-west4-a --accelerator-type v5litepod-8 \
#     --bucket my-bucket --output runs/first -- --config configs/mine.yaml
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

POLL_S=${POLL_S:-60} # between looks at the request
ATTEMPTS=3 # requests in a row that fail before they were active

case ${1-} in
  create | install | run | tail | status | watch | delete | up) command=$1 && shift ;;
  --help | '') help && exit ;;
  *) die "unknown command '$1'; see --help" ;;
esac

project=${PROJECT_ID-} zone=${ZONE-} name=${TPU_NAME:-synrank} accelerator=${ACCELERATOR_TYPE-}
runtime=${RUNTIME_VERSION-} tier=${TIER:-spot} bucket=${BUCKET-} output='' restarts=3
while (($#)); do
  case $1 in
    --project) needs "$@" && project=$2 && shift 2 ;;
    --zone) needs "$@" && zone=$2 && shift 2 ;;
    --name) needs "$@" && name=$2 && shift 2 ;;
    --accelerator-type) needs "$@" && accelerator=$2 && shift 2 ;;
    --runtime-version) needs "$@" && runtime=$2 && shift 2 ;;
    --tier) needs "$@" && tier=$2 && shift 2 ;;
    --bucket) needs "$@" && bucket=$2 && shift 2 ;;
    --output) needs "$@" && output=$2 && shift 2 ;;
    --restarts) needs "$@" && restarts=$2 && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    --help) help && exit ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Everything is checked before anything is requested.
check --project "$project" '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' my-project
check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a
check --name "$name" '[a-z]([a-z0-9-]{0,61}[a-z0-9])?' synrank
if [[ $command == create || $command == watch || $command == up ]]; then
  check --accelerator-type "$accelerator" '(v[2-4]|v5p|v5litepod|v6e)-[1-9][0-9]{0,4}' v5litepod-8
  if [[ -z $runtime ]]; then
    case $accelerator in # docs.cloud.google.com/tpu/docs/runtimes
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) runtime=tpu-ubuntu2204-base ;;
    esac
  fi
  check --runtime-version "$runtime" '[a-z0-9][a-z0-9.-]*' v2-alpha-tpuv5-lite
  check --tier "$tier" 'spot|on-demand|reserved' 'spot, on-demand or reserved'
fi
if [[ $command == install || $command == run || $command == watch || $command == up ]]; then
  check_bucket "$bucket"
fi
if [[ $command == run || $command == watch || $command == up ]]; then
  check_output "$output"
  check --restarts "$restarts" '[1-9][0-9]{0,3}' 3
  check_training_arguments "$@"
fi

where=(--project="$project" --zone="$zone" --quiet)
folder=/mnt/$bucket/$output
archive='' created=''
# It also answers where nothing is installed yet.
# shellcheck disable=SC2016 # expanded on the worker
STATUS='echo job $(systemctl show --property=SubState --value synrank) $(systemctl show --property=ExecMainStatus --value synrank) $HOSTNAME'

# What a dry run finds when it asks.
case $command in
  create | up) dry_state=ABSENT ;;
  watch) dry_state=SUSPENDED ;;
  *) dry_state=ACTIVE ;;
esac
dry_job='job dead 0'

# State of the request: ABSENT, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED ...
state() {
  local answer query=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
  if [[ $DRY_RUN ]]; then
    quoted "${query[@]}" >&2
    echo "$dry_state"
  elif answer=$("${query[@]}" 2>&1); then
    grep -xE '[A-Z_]+' <<<"$answer" || echo UNKNOWN
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    die "$answer"
  fi
}

# on WORKER COMMAND: run it there; WORKER is a number or all.
on() { call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }

# What all workers say, in the word of the one to act on: "fatal CODE HOST", silent, dead, failed,
# running, or exited where all have.
job() {
  local answer word state code host found=' '
  if [[ $DRY_RUN ]]; then
    on all "$STATUS" >&2
    answer=$dry_job
  else
    answer=$(on all "$STATUS") || found+='silent ' # one is enough for gcloud to fail
  fi
  while read -r word state code host; do
    [[ $word == job ]] || continue # gcloud has its own to say
    if [[ $state == failed && $code != 75 && $code != 76 ]]; then
      echo "fatal $code $host"
      return
    fi
    found+="$state "
  done <<<"$answer"
  for state in silent dead failed; do
    if [[ $found == *" $state "* ]]; then echo "$state" && return; fi
  done
  if [[ ${found// exited/} == ' ' ]]; then echo exited; else echo running; fi
}

create() {
  local now flags=()
  now=$(state) || return 1
  if [[ $now != ABSENT ]]; then
    say "$name exists ($now); not created"
    return 0
  fi
  if [[ $tier != on-demand ]]; then flags=("--$tier"); fi
  created=1 # from here on there may be something to delete
  call gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${flags[@]}" || return 1
  dry_state=ACTIVE
}

delete() {
  local now
  now=$(state) || return 1
  if [[ $now == ABSENT ]]; then
    say "$name does not exist; nothing to delete"
    return 0 # a bare return, in a trap, gives the status from before the trap
  fi
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force || return 1
  dry_state=ABSENT
}

# The working tree without what .gitignore names, packed once: all restarts run the same code.
pack() {
  [[ -z $archive ]] || return 0
  if [[ $DRY_RUN ]]; then archive=TEMPORARY/synrank.tar.gz; else archive=$(mktemp -d)/synrank.tar.gz; fi
  call bash -o pipefail -c \
    "git ls-files -z --cached --others --exclude-standard | tar --create --gzip --null --files-from=- --file=$archive"
}

install() {
  pack &&
    call gcloud compute tpus tpu-vm scp "$archive" "$name:synrank.tar.gz" "${where[@]}" --worker=all &&
    on all "mkdir -p synrank && tar -xzf synrank.tar.gz -C synrank && bash synrank/launch/tpu_vm.sh install $bucket"
}

run() {
  on all "bash synrank/launch/tpu_vm.sh start $(quoted "$folder" "$restarts" "$@" --set "train.output=$folder")" &&
    dry_job='job exited 0'
}

pause() {
  [[ -z $DRY_RUN ]] || return 0
  sleep "$POLL_S" &
  wait $! # unlike sleep itself, wait lets a signal through at once
}

watch() {
  local now before='' training code host attempts=0 again=''
  while :; do
    now=$(state) || now=UNKNOWN
    [[ $now == "$before" ]] || say "$name: $now"
    before=$now
    case $now in
      ACTIVE)
        attempts=0 again=''
        read -r training code host < <(job) || training=silent
        # A worker is started while others still run: they notice the loss at the latest when it comes
        # back, and start again by themselves (worker.sh). They never end before they give up on it.
        case $training in
          exited) say "training has finished" && return ;;
          dead) { install && run "$@"; } || say "not started; trying again" ;;
          # 75 or 76: run me again. If this is the start of a preemption, SUSPENDED comes next.
          failed) run "$@" || say "not started; trying again" ;;
          fatal)
            on all 'sudo journalctl --unit=synrank --lines=50' || true # each line names its host
            die "training ended with exit code $code on $host; the last lines of all hosts are above"
            ;;
          silent) say "a worker does not answer; trying again" ;;
        esac
        ;;
      SUSPENDED | FAILED)
        call gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=yaml(state)' || true
        if delete; then again=1; else say "not deleted; trying again"; fi
        ;;
      ABSENT)
        [[ $again ]] || die "$name does not exist; launch/tpu.sh create makes it"
        attempts=$((attempts + 1))
        ((attempts <= ATTEMPTS)) || die "$ATTEMPTS requests in a row came to nothing"
        create || say "not created; trying again"
        ;;
    esac
    pause
  done
}

clean_up() {
  local code=$?
  trap '' INT TERM HUP # not to be interrupted: what stays is paid for
  if [[ $command == up && $created ]] && ! delete; then
    say "NOT DELETED: $name costs money until this succeeds: launch/tpu.sh delete --name $name ${where[*]:0:2}"
    code=1
  fi
  if [[ -z $DRY_RUN && $archive ]]; then rm -rf "$(dirname "$archive")"; fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

case $command in
  create | install | delete) "$command" ;;
  run | watch) "$command" "$@" ;;
  tail) on 0 'sudo journalctl --unit=synrank --follow --lines=100 --output=cat' ;;
  status)
    say "$name: $(state)"
    on all "$STATUS"
    ;;
  up)
    create
    watch "$@"
    ;;
esac
