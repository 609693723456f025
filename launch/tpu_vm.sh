#!/usr/bin/env bash
# Runs on each TPU VM; launch/tpu.sh calls it there. All of it is safe to repeat.
#
#   launch/tpu_vm.sh install BUCKET                            environment, and BUCKET on /mnt/BUCKET
#   launch/tpu_vm.sh start FOLDER RESTARTS TRAINING-ARGUMENTS  training as the systemd unit synrank
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The image's Python is older than the project needs; uv brings its own.
PYTHON=3.12
GCSFUSE=3.8.0

install() {
  local bucket=$1 uv=$HOME/.local/bin/uv
  python3 -m pip install --quiet --user uv
  "$uv" venv --quiet --allow-existing --python "$PYTHON" .venv
  "$uv" pip install --quiet --python .venv/bin/python --constraints requirements.lock --editable '.[tpu]'
  if ! command -v gcsfuse >/dev/null; then
    curl --silent --show-error --fail --location --output /tmp/gcsfuse.deb \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/gcsfuse_${GCSFUSE}_amd64.deb"
    sudo apt-get install --yes --quiet -o DPkg::Lock::Timeout=300 /tmp/gcsfuse.deb
  fi
  if ! mountpoint --quiet "/mnt/$bucket"; then
    sudo mkdir --parents "/mnt/$bucket"
    sudo chown "$USER" "/mnt/$bucket"
    # No caching of names: all hosts must see the same newest checkpoint.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$bucket" "/mnt/$bucket"
  fi
}

start() {
  local run=$1 restarts=$2
  shift 2
  if [[ $(systemctl show --property=SubState --value synrank) == running ]]; then
    echo "training already runs"
    return
  fi
  sudo systemctl stop synrank 2>/dev/null || true # what an ended run left behind
  sudo systemctl reset-failed synrank 2>/dev/null || true
  # systemd expands $FOO, ${FOO} and $$ in arguments; $$ is a $. It leaves % alone: that is for files.
  # KillMode=mixed: at a shutdown only worker.sh is told, so that training is told once. libtpu locks
  # more memory than a service may by default.
  sudo systemd-run --unit=synrank --uid="$USER" --remain-after-exit --working-directory="$PWD" \
    --property=KillMode=mixed --property=TimeoutStopSec=300 --property=LimitMEMLOCK=infinity \
    "$PWD/launch/worker.sh" --run "$run" --restarts "$restarts" -- \
    "$PWD/.venv/bin/python" -m synrank_jax.train --distributed "${@//\$/\$\$}"
}

case ${1-} in
  install | start) "$@" ;;
  *) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0" ;;
esac
