#!/usr/bin/env bash
# The embedded policy from nothing in so many minutes, on one machine with an accelerator (or without), no internet needed:
#   bash recipes/tiny/gpu.sh OUT MINUTES                                            # with differad installed
#   PYTHON=python3 PYTHONPATH=$PWD/src bash recipes/tiny/gpu.sh OUT MINUTES         # from a copied checkout
# OUT/model is the policy, from the first checkpoint on, whatever stops the run; the same command goes on. What is worth carrying
# away lies in OUT/back (10 MB): model.tar, result.jsonl, result.md, curves.jsonl, log.txt. What is done is in gpu.py beside this.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
