#!/usr/bin/env bash
# One TPU VM, or a pod of them: create, set up, run until done, delete.
#
#   launch/tpu_vm.sh create NAME ZONE v5litepod-256 [RUNTIME]   a queued resource of spot chips
#   launch/tpu_vm.sh setup  NAME ZONE                           this checkout on every host
#   launch/tpu_vm.sh run    NAME ZONE --config=xar_h ...        jaxar.main on every host
#   launch/tpu_vm.sh delete NAME ZONE
#
# A single host and a pod need the same commands: every host runs the same program, and JAX finds
# the others from the TPU's metadata. --workdir must be a directory that all hosts see (Filestore, or
# a bucket mounted with Cloud Storage FUSE). `run` starts again, up to RESTARTS times (default 100),
# after a preemption that saved (42), a stall (43) or the death of a host (134, 255); it gives up on
# bad input (2) and on anything else.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
[[ $# -ge 3 ]] || usage
action=$1 name=$2 zone=$3
shift 3

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$zone"; }
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }

case $action in
  create)
    [[ $# -ge 1 ]] || usage
    gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
      --accelerator-type="$1" --runtime-version="${2:-v2-alpha-tpuv5-lite}" --spot
    ;;
  setup)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$name:jaxar.tar.gz" --worker=all
    everywhere 'mkdir -p jaxar && tar -xzf jaxar.tar.gz -C jaxar && cd jaxar &&
      python3 -m venv .venv && .venv/bin/pip install --quiet "jax[tpu]" --editable .'
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    command="cd jaxar && exec .venv/bin/python -m jaxar.main$(printf ' %q' "$@")"
    for ((again = ${RESTARTS:-100}; ; again--)); do
      code=0
      everywhere "$command" || code=$?
      case $code in
        42 | 43 | 134 | 255) ((again > 0)) || exit "$code" ;;
        *) exit "$code" ;;
      esac
      echo "ended with code $code: starting again, $again times left" >&2
      sleep "${PAUSE:-30}"
    done
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force
    ;;
  *) usage ;;
esac
