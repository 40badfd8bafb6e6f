#!/usr/bin/env bash
# One process on one GPU (or on the CPU, where there is none):
#   recipes/launch/one_gpu.sh distill --recipe recipes/ctd_internvl3_8b.toml --set data.path=VIDEOS
# The same command goes on where a stopped or killed run was.
set -euo pipefail
exec "${PYTHON:-python}" -m liteframe "$@"
