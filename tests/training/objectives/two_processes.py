"""One of two processes that share a batch: `python -m tests.training.objectives.two_processes RANK STORE RESULT`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from tests.training.objectives.cases import BATCH, CASES, curate_rounds, gradients, make
from training import collectives, random_draws
from training.distributed import gather_full, wrap_distributed

SHARDED = [name for name in CASES if name not in ("supervised_reversible", "lit", "cit")]
"""Others have reversible trunks or parameters that are single numbers."""
ROWS = torch.arange(12.0).view(4, 3)


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {"reductions": reduce(rank), "curated": curate_rounds()}
    found |= {name: share(name, rank) for name in CASES}
    found |= {f"{name} by fsdp": shard(name, rank) for name in SHARDED}
    if rank == 0:
        torch.save(found, result)
    dist.barrier()
    dist.destroy_process_group()


def share(name: str, rank: int) -> dict[str, dict[str, Tensor]]:
    """Values and gradients of half of the batch, averaged over both processes as DDP does."""
    objective, batch = make(name)
    values = objective(half(batch, rank))
    both = {"values": {key: value.detach() for key, value in values.items()}, "gradients": gradients(values["loss"], objective)}
    return {kind: average(part) for kind, part in both.items()}


def average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average all tensors over both processes at once: each exchange waits for the other process."""
    flat = collectives.all_reduce_mean(torch.cat([tensor.flatten() for tensor in tensors.values()]))
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view_as(tensor) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def shard(name: str, rank: int) -> dict[str, Tensor]:
    """Gradients of half of the batch, where each process has half of every parameter."""
    objective, batch = make(name)
    wrap_distributed(objective, "fsdp", "fp32", torch.device("cpu"))(half(batch, rank))["loss"].backward()
    learning = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    return {name: gather_full(parameter.grad) for name, parameter in learning.items() if parameter.grad is not None}


def half(batch: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {key: value[rank * BATCH // 2 : (rank + 1) * BATCH // 2] for key, value in batch.items()}


def reduce(rank: int) -> dict[str, Tensor]:
    ours = ROWS[2 * rank : 2 * rank + 2].clone().requires_grad_()
    joined = collectives.all_gather(ours)
    ((rank + 1) * joined.square()).sum().backward()
    assert ours.grad is not None
    count = torch.tensor([1.0, 3.0])[rank]
    return {
        "gathered": joined.detach(),
        "gradient": collectives.all_gather(ours.grad),
        "summed": collectives.all_reduce_sum(torch.tensor(rank + 1)),
        "mean": collectives.all_reduce_mean(collectives.term_of_mean(torch.tensor([10.0, 2.0])[rank], count)),
        "nothing": collectives.all_reduce_mean(collectives.term_of_mean(torch.tensor(0.0), 0)),
        "draw": random_draws.batch_draw(torch.arange(4)[2 * rank : 2 * rank + 2]),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
