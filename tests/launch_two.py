"""Two processes by torchrun, as the tests start them."""

from __future__ import annotations

import os
import subprocess
import sys


def torchrun(program: str, *arguments: str, restarts: int = 0, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run it to its end, whatever that is."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", str(restarts)]
    # A process that is aborted in native code tells where Python stood.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *launcher, program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def told(run: subprocess.CompletedProcess) -> str:
    """What a failed run's programs said last: the launcher's own long words come behind it."""
    return run.stderr.split('Traceback (most recent call last):\n  File "<frozen runpy>"')[0][-4000:]
