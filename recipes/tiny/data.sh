#!/usr/bin/env bash
# Draws what the embedded policy is trained on, below the folder given: 19,000 pairs, and 400 of kinds that are not among them.
#   apt-get install plasma-workspace-wallpapers mate-backgrounds     # free photographs; licences in their copyright files
#   bash recipes/tiny/data.sh data/tiny [WORKERS]
#   PHOTOGRAPHS=~/photographs bash recipes/tiny/data.sh data/tiny    # those below a folder of your own instead
#   SHARE=0.005 bash recipes/tiny/data.sh data/look      # a first look: that share of every set, at least 16; goes without photographs
# Runs again where it was stopped. Evidence (the frozen backbone's comparison) is computed by the first epoch of training.
set -euo pipefail
out=${1:?folder for the data}
workers=${2:-2}
share=${SHARE:-1}
mkdir -p "$out"
photographs="--photographs $out/photographs"
natural="--natural-share 1"
if ! [ -d "$out/photographs" ]; then
  if [ -n "${PHOTOGRAPHS:-}" ]; then folders=("$PHOTOGRAPHS"); else folders=(/usr/share/wallpapers /usr/share/backgrounds/mate/nature); fi
  if ! python "$(dirname "$0")/photographs.py" "$out/photographs" "${folders[@]}"; then
    awk -v share="$share" 'BEGIN { exit !(share < 1) }' || exit 2
    echo "differad: a first look goes on without photographs; parts are drawn in their place" >&2
    photographs="" natural=""
  fi
fi

draw() { # name, count, seed, size, more options
  local name=$1 count=$2 seed=$3 size=$4
  shift 4
  count=$(awk -v count="$count" -v share="$share" 'BEGIN { n = int(count * share + 0.5); print (n < 16 ? 16 : n) }')
  differad synthesize --workers "$workers" --normal-share 0.4 --count "$count" --seed "$seed" --size "$size" "$@" --out "$out/$name"
}
each() { # option, values: the option once for each
  local option=$1
  shift
  for value in "$@"; do printf -- '%s %s ' "$option" "$value"; done
}
seen=$(each --categories brushed woven grain printed board machined striped tiled assembled)
unseen=$(each --categories wood perforated lettered)
laid_on=$(each --kinds texture shifted stained scratched pierced smeared missing duplicated turned shoved warped transplanted)
# shellcheck disable=SC2086
{
  draw held_out 400 91 448 --aspect 2.5 --siblings 0.5 $unseen $laid_on
  draw small_siblings 3000 1 224 --aspect 2.5 --siblings 1 $seen $photographs
  draw siblings 4000 2 448 --aspect 2.5 --siblings 1 $seen $photographs
  draw same 3000 3 448 --aspect 2.5 $seen $photographs
  draw large 1500 4 640 --aspect 2 $seen $photographs
  draw natural 1500 5 448 --aspect 2.5 $natural $photographs
  draw unaligned 4000 6 448 --unaligned 1 $seen
  draw fresh 1200 12 448 --aspect 2.5 --siblings 0.6 $seen $photographs
  draw fresh_unaligned 800 13 448 --unaligned 1 $seen
}
