#!/usr/bin/env bash
# Train the embedded policy from random weights within MINUTES on one machine, with or without an accelerator or internet:
#   bash recipes/tiny/gpu.sh OUT MINUTES                                            # with differad installed
#   PYTHON=python3 PYTHONPATH=$PWD/src bash recipes/tiny/gpu.sh OUT MINUTES         # from a copied checkout
# OUT/model is the policy, from the first checkpoint on, even if the run is stopped; the same command continues. The files to copy
# are in OUT/back (10 MB): model.tar, result.jsonl, result.md, curves.jsonl, log.txt. The program is gpu.py in this folder.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
