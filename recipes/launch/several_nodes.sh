#!/usr/bin/env bash
# Several machines that see the same files. On each of them, in any order:
#   NODES=2 HEAD=name-of-the-first recipes/launch/several_nodes.sh distill --recipe recipes/ctd_internvl3_8b.toml
# PORT (29500) of HEAD must be open to the others; PROCESSES a machine, else one a GPU. When a process or a machine dies,
# all start again from the newest checkpoint once NODES machines are there, at most RESTARTS times (3).
set -euo pipefail
: "${NODES:?how many machines}" "${HEAD:?name or address of one of them}"
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN_ID:-liteframe}" \
  --max-restarts "${RESTARTS:-3}" --module liteframe "$@"
