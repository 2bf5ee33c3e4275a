#!/usr/bin/env bash
# Generate the embedded policy's training pairs in the given folder: 19,000, and 400 held-out pairs of other categories.
#   apt-get install plasma-workspace-wallpapers mate-backgrounds     # free photographs; licences in their copyright files
#   bash recipes/tiny/data.sh data/tiny [WORKERS]
#   PHOTOGRAPHS=~/photographs bash recipes/tiny/data.sh data/tiny    # photographs from your own folder instead
#   SHARE=0.005 bash recipes/tiny/data.sh data/look      # a first try: this share of every set, at least 16; needs no photographs
#   MINUTES=10 bash recipes/tiny/data.sh data/tiny 16    # all sets in parallel, as many pairs as the time allows; needs no photographs either
#   LEAST=2 SHARE=0.0005 bash recipes/tiny/data.sh data/look    # the minimum of pairs per set, instead of 16
# Continues where it was stopped. The first epoch of training computes the pair features of the frozen backbone, or
# `differad train evidence` does so in advance. PYTHON names another interpreter.
set -euo pipefail
out=${1:?folder for the data}
workers=${2:-2}
share=${SHARE:-1}
minutes=${MINUTES:-}
least=${LEAST:-16}
python=${PYTHON:-python}
mkdir -p "$out"
photographs="--photographs $out/photographs"
natural="--natural-share 1"
if [ -z "$(find "$out/photographs" -type f -print -quit 2>/dev/null)" ]; then # an empty folder counts as missing
  if [ -n "${PHOTOGRAPHS:-}" ]; then folders=("$PHOTOGRAPHS"); else folders=(/usr/share/wallpapers /usr/share/backgrounds/mate/nature); fi
  if ! "$python" "$(dirname "$0")/photographs.py" "$out/photographs" "${folders[@]}"; then
    [ -n "$minutes" ] || awk -v share="$share" 'BEGIN { exit !(share < 1) }' || exit 2
    echo "differad: goes on without photographs; parts are drawn in their place" >&2
    photographs="" natural=""
  fi
fi
running=()

draw() { # name, count, sixteenths of the workers, seed, size, more options
  local name=$1 count=$2 sixteenths=$3 seed=$4 size=$5
  shift 5
  count=$(awk -v count="$count" -v share="$share" -v least="$least" 'BEGIN { n = int(count * share + 0.5); print (n < least ? least : n) }')
  if [ -z "$minutes" ]; then
    "$python" -m differad synthesize --workers "$workers" --normal-share 0.4 --count "$count" --seed "$seed" --size "$size" "$@" --out "$out/$name"
    return
  fi
  # Only the held-out set has a fixed count; time limits the others.
  [ "$name" = held_out ] || count=10000000
  "$python" -m differad synthesize --workers $((workers * sixteenths > 16 ? workers * sixteenths / 16 : 1)) --minutes "$minutes" \
    --normal-share 0.4 --count "$count" --seed "$seed" --size "$size" "$@" --out "$out/$name" &
  running+=($!)
}
each() { # option, values: repeats the option for each value
  local option=$1
  shift
  for value in "$@"; do printf -- '%s %s ' "$option" "$value"; done
}
seen=$(each --categories brushed woven grain printed board machined striped tiled assembled)
unseen=$(each --categories wood perforated lettered)
laid_on=$(each --kinds texture shifted stained scratched pierced smeared missing duplicated turned shoved warped transplanted)
# shellcheck disable=SC2086
{
  draw held_out 400 1 91 448 --aspect 2.5 --siblings 0.5 $unseen $laid_on
  draw small_siblings 3000 2 1 224 --aspect 2.5 --siblings 1 $seen $photographs
  draw siblings 4000 3 2 448 --aspect 2.5 --siblings 1 $seen $photographs
  draw same 3000 2 3 448 --aspect 2.5 $seen $photographs
  draw large 1500 2 4 640 --aspect 2 $seen $photographs
  if [ -n "$photographs" ] || [ -z "$minutes" ]; then
    draw natural 1500 1 5 448 --aspect 2.5 $natural $photographs
  fi
  draw unaligned 4000 3 6 448 --unaligned 1 $seen
  draw fresh 1200 1 12 448 --aspect 2.5 --siblings 0.6 $seen $photographs
  draw fresh_unaligned 800 1 13 448 --unaligned 1 $seen
}
for one in "${running[@]:+${running[@]}}"; do wait "$one"; done
