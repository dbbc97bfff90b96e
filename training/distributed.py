"""Processes of one run: joining them, wrapping an objective for them, and what they must agree on.

torchrun starts the processes and sets the environment; without it a run is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint

from models.layers.token_merging import Tokens
from training.collectives import rank, world_size
from training.errors import TrainingError

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did → the device of this one."""
    local, several = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not several:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_main() -> bool:
    return rank() == 0


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True if `flag` is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def blocks_of(objective: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of all networks inside: members of module lists named `…blocks`."""
    lists = [module for name, module in objective.named_modules() if isinstance(module, nn.ModuleList) and name.endswith("blocks")]
    return [block for members in lists for block in members]


def recompute_blocks(objective: nn.Module) -> None:
    """Keep the input of each block alone, and compute the block again in the backward pass."""
    for block in blocks_of(objective):
        block.forward = _recomputing(block.forward)


def _recomputing(forward: Any) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return run


def wrap_distributed(
    objective: nn.Module, sharding: Literal["ddp", "fsdp"], precision: Literal["fp32", "bf16", "fp16"], device: torch.device
) -> nn.Module:
    """Prepare an objective for several processes → what is to be called. Raises TrainingError."""
    if world_size() == 1 and sharding == "ddp":
        return objective
    if sharding == "ddp":
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True, **_own_buffers())
    scalars = [name for name, parameter in objective.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise TrainingError(f"loop.sharding: fsdp cannot split single numbers ({', '.join(scalars)}); use ddp")
    if world_size() == 1:
        raise TrainingError("loop.sharding: fsdp needs several processes: start them with torchrun, or leave it out")
    if any(getattr(getattr(module, "config", None), "reversible", False) for module in objective.modules()):
        raise TrainingError("loop.sharding: fsdp cannot gather the weights that a reversible trunk computes with again; use ddp")
    _let_hooks_see(Tokens)
    policy = MixedPrecisionPolicy(param_dtype=None if precision == "fp32" else TYPES[precision], reduce_dtype=torch.float32)
    for block in blocks_of(objective):
        fully_shard(block, mp_policy=policy)
        if hasattr(block, "remember"):  # DiffMAE's decoder computes keys and values of what it looks at before it runs
            register_fsdp_forward_method(block, "remember")
    fully_shard(objective, mp_policy=policy)
    return objective


def _own_buffers() -> dict[str, Any]:
    """Return the argument that keeps buffers local: newer versions of torch warn about its old name in every process."""
    new = "forward_sync_buffers"
    return {new if new in signature(DistributedDataParallel).parameters else "broadcast_buffers": False}


def _let_hooks_see(kind: type) -> None:
    """Register a dataclass of tensors, so that FSDP finds the tensors in what a block takes and gives."""
    assert is_dataclass(kind)
    if kind in _pytree.SUPPORTED_NODES:
        return
    names = [field.name for field in fields(kind)]
    _pytree.register_pytree_node(
        kind,
        lambda value: ([getattr(value, name) for name in names], None),
        lambda values, _: kind(**dict(zip(names, values, strict=True))),
    )


def without_sync(wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Exchange gradients after the last micro-batch of a step alone."""
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
    return nullcontext()


def gather_full(tensor: Tensor) -> Tensor:
    """Gather a tensor of any shape that is sharded over processes."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor
