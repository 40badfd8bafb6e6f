"""Weights, gradients and the optimizer's moments divided among the processes of a run: torch's FSDP2 (`fully_shard`).

What is divided is kept by rows: process k of n has the k-th of n equal runs of rows of every tensor (`Shard(0)`). A
layer's weights are whole only while it is computed. `Processes.sum` is then left out: gradients come summed.

A launcher may ask for it too: ``accelerate launch`` with ``distributed_type: FSDP`` and ``fsdp_version: 2``.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from liteframe.errors import ConfigError

Result = TypeVar("Result")


class RunsInside(nn.Module):
    """A module whose forward pass is whatever it is given: so a root that is divided gathers its weights for it.

    A loss that calls parts of a module, and never the module, would find the weights of the root in pieces.
    """

    def forward(self, run: Callable[[], Result]) -> Result:
        """What `run` returns."""
        return run()


def launcher_shards() -> bool:
    """Whether ``accelerate launch`` asks for FSDP2.

    Raises:
        ConfigError: it asks for what is not supported here.
    """
    if not _is_on("ACCELERATE_USE_FSDP"):
        return False
    wrong = {
        "fsdp_version: 1": os.environ.get("FSDP_VERSION", "1") != "2",
        "fsdp_offload_params: true": _is_on("FSDP_OFFLOAD_PARAMS"),
        "fsdp_cpu_ram_efficient_loading: true": _is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"),
        "fsdp_activation_checkpointing: true": _is_on("FSDP_ACTIVATION_CHECKPOINTING"),
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ConfigError(
            f"accelerate's config: {', '.join(found)} cannot be used; take recipes/launch/fsdp2.yaml, which has "
            "fsdp_version: 2 and none of the others (for activations there is tune.gradient_checkpointing)"
        )
    return True


def shard(root: RunsInside, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Divide the trained parameters of `root` among all processes, in place; those that are frozen stay whole.

    Args:
        root: is called around every use of its parts.
        layers: parts of it whose weights are gathered one after the other. What is in none of them stays gathered
            from the beginning of a forward pass to the end of its backward pass.
        dtype: of the gathered weights, and so of the arithmetic; what is divided stays as it is, and gradients are
            summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(root.parameters()).device
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # DTensor's caches keep the mesh to Python's end, and the mesh the process group, whose threads must end before
    # (`processes._leave`, which was registered earlier and so comes later).
    atexit.register(getattr(mesh, "_pg_registry", {}).clear)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    is_released = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("0", "false", "no")
    frozen = {parameter for parameter in root.parameters() if not parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=is_released, ignored_params=frozen)
    # The root's own would only be gathered again at once, for the backward pass.
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=frozen)


def release(root: nn.Module) -> None:
    """Give back the weights that a forward pass gathered, where no backward pass came behind it."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(root, FSDPModule):
        root.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter of `module` is divided among processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this process has, as a view, and the number of the first; all of it if not divided."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    local = tensor.to_local()
    return local, offset[0] if local.numel() else 0


def clip_gradients(parameters: Sequence[Tensor], max_norm: float | int) -> float:
    """Scale gradients down to a norm, over all processes where they are divided; returns what it was before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
