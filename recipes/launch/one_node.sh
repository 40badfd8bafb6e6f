#!/usr/bin/env bash
# One process for each GPU of this machine; together they make each step's batch:
#   recipes/launch/one_node.sh distill --recipe recipes/ctd_internvl3_8b.toml --set data.path=VIDEOS
# PROCESSES=2 starts so many, also without a GPU. When one dies, all start again from the newest checkpoint, at most
# RESTARTS times (3).
set -euo pipefail
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-gpu}" \
  --max-restarts "${RESTARTS:-3}" --module liteframe "$@"
