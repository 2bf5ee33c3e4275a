#!/usr/bin/env bash
# Train the embedded policy from random weights: pairs, change encoder, cold start and reinforcement learning, with the recipes here.
#   pip install 'differad[train]'
#   apt-get install plasma-workspace-wallpapers mate-backgrounds     # free photographs, see data.sh; not needed for a first try
#   bash recipes/tiny/train.sh work/tiny              # about four hours on two cores; after an interruption the same command continues
#   bash recipes/tiny/train.sh work/look 0.005        # a first try with 1/200 of the pairs and steps, some minutes; it learns nothing
# KEY=VALUE after the share applies to all three recipes (train.batch_size=16).
# Everything is written to the given folder; the policy is FOLDER/runs/tiny/rl/model:
#   differad locate good.png test.png --model FOLDER/runs/tiny/rl/model
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?folder for data and runs}
share=${2:-1}
shift $(($# < 2 ? $# : 2))
overrides=("$@")
# Such a small model gains nothing from more torch threads; generating pairs uses two processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

part() { # of a count, at least 1
  awk -v count="$1" -v share="$share" 'BEGIN { n = int(count * share + 0.5); print (n < 1 ? 1 : n) }'
}

[ -z "${PHOTOGRAPHS:-}" ] || PHOTOGRAPHS=$(cd "$PHOTOGRAPHS" && pwd)
export PHOTOGRAPHS=${PHOTOGRAPHS:-}
mkdir -p "$folder"
cd "$folder"
SHARE=$share bash "$here/data.sh" data/tiny
train() { # phase, recipe, overrides
  local phase=$1 name=$2
  shift 2
  [ -d "runs/tiny/$name/model" ] || differad train "$phase" "$here/$name.yaml" --resume "$@" "${overrides[@]:+${overrides[@]}}"
}
# The commands' last lines name paths relative to FOLDER.
train sft compare "train.steps=$(part 500)" >/dev/null
train sft sft "model.tiny.reading=$(part 400)" >/dev/null
train rl rl "train.steps=$(part 80)" >/dev/null
echo "policy: $folder/runs/tiny/rl/model (differad locate --model takes it)"
