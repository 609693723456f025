#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster, as the JobSet of jobset.yaml.
#
#   launch/gke/gke.sh COMMAND [OPTION...] [-- TRAINING ARGUMENT...]
#
#   apply     submit the JobSet (nothing to do where the same one exists)
#   tail      follow the log of the first host
#   status    the JobSet and its pods
#   delete    delete the JobSet (nothing to do where there is none)
#
# Options, or environment variables:
#   --name NAME                NAME (default synrank)
#   --namespace NAMESPACE      NAMESPACE (default default)
#   --image IMAGE              IMAGE: launch/Dockerfile built with --build-arg EXTRA=tpu
#   --topology TYPE:TOPOLOGY   TOPOLOGY, as plan takes it: v5e:2x4, v6e:8x8, v5p:2x2x4
#   --bucket BUCKET            BUCKET: Cloud Storage bucket, /mnt/BUCKET in the pods
#   --output FOLDER            run folder in the bucket; becomes train.output
#   --service-account NAME     SERVICE_ACCOUNT of Kubernetes that may write the bucket (default default)
#   --restarts N               restarts of the set before it counts as failed (default 20)
#   --dry-run                  print the manifest and the commands, run none
#
# kubectl's current context chooses the cluster, which needs the JobSet controller, the Cloud
# Storage FUSE driver and a node pool of that topology with 4 chips a node (ct5lp-hightpu-4t,
# ct6e-standard-4t, ct5p-hightpu-4t). --config is a path in the image, that is in this folder.
#
#   launch/gke/gke.sh apply --image my-images/synrank:1 \
#     --topology v6e:4x4 --bucket my-bucket --output runs/first -- --config configs/mine.yaml
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHIPS_PER_HOST=4

case ${1-} in
  apply | tail | status | delete) command=$1 && shift ;;
  --help | '') help && exit ;;
  *) die "unknown command '$1'; see --help" ;;
esac

name=${NAME:-synrank} namespace=${NAMESPACE:-default} image=${IMAGE-} topology=${TOPOLOGY-}
bucket=${BUCKET-} output='' account=${SERVICE_ACCOUNT:-default} restarts=20
while (($#)); do
  case $1 in
    --name) needs "$@" && name=$2 && shift 2 ;;
    --namespace) needs "$@" && namespace=$2 && shift 2 ;;
    --image) needs "$@" && image=$2 && shift 2 ;;
    --topology) needs "$@" && topology=$2 && shift 2 ;;
    --bucket) needs "$@" && bucket=$2 && shift 2 ;;
    --output) needs "$@" && output=$2 && shift 2 ;;
    --service-account) needs "$@" && account=$2 && shift 2 ;;
    --restarts) needs "$@" && restarts=$2 && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    --help) help && exit ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

dns='[a-z0-9]([a-z0-9-]*[a-z0-9])?'
# The longest name the set makes from it is a pod's, NAME-slice-0-HOST-abcde, of 63 characters.
check --name "$name" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' synrank
check --namespace "$namespace" "$dns" default
if [[ $command == apply ]]; then
  check --image "$image" '[a-z0-9][A-Za-z0-9._/:@-]*' my-images/synrank:1
  check --topology "$topology" '(v5e|v6e):[0-9]+x[0-9]+|(v4|v5p):[0-9]+x[0-9]+x[0-9]+' v5e:4x4
  check_bucket "$bucket"
  check_output "$output"
  check --service-account "$account" "$dns" default
  check --restarts "$restarts" '[0-9]{1,4}' 20
  check_training_arguments "$@"
fi

# The words as a JSON list, which is YAML too; $$( keeps Kubernetes from expanding $(...).
# Control characters were refused before.
json_list() {
  local word list=
  for word; do
    word=${word//\\/\\\\}
    word=${word//"\$("/"\$\$("}
    list+="${list:+, }\"${word//\"/\\\"}\""
  done
  printf '[%s]' "$list"
}

# The manifest with its ${...} replaced by values checked above.
manifest() {
  local text key chips=$((${shape//x/*}))
  local -A values=(
    [NAME]=$name [NAMESPACE]=$namespace [RESTARTS]=$restarts [IMAGE]=$image [BUCKET]=$bucket
    [SERVICE_ACCOUNT]=$account [ACCELERATOR]=$(accelerator) [TOPOLOGY]=$shape
    [HOSTS]=$(((chips + CHIPS_PER_HOST - 1) / CHIPS_PER_HOST))
    [CHIPS_PER_HOST]=$((chips < CHIPS_PER_HOST ? chips : CHIPS_PER_HOST))
  )
  text=$(<launch/gke/jobset.yaml)
  for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
  # Last, for an argument may hold anything.
  printf '%s\n' "${text//"\${ARGUMENTS}"/"$(json_list "$@" --set "train.output=/mnt/$bucket/$output")"}"
}

accelerator() {
  case ${topology%%:*} in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
  esac
}

shape=${topology#*:}
at=(--namespace="$namespace")
case $command in
  apply)
    if [[ $DRY_RUN ]]; then
      quoted kubectl apply --filename=-
      manifest "$@"
    else
      manifest "$@" | kubectl apply --filename=-
    fi
    ;;
  tail)
    call kubectl logs "${at[@]}" --follow --tail=100 --container=train \
      --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    ;;
  status)
    call kubectl get "${at[@]}" "jobsets.jobset.x-k8s.io/$name"
    call kubectl get pods "${at[@]}" --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
    ;;
  delete) call kubectl delete "${at[@]}" "jobsets.jobset.x-k8s.io/$name" --ignore-not-found ;;
esac
