"""One run on several processes: who this one is, sums over all of them, gradients of all of them.

Every function is the identity for a single process, so a recipe calls them without asking. Sums are
taken before formulas: a loss whose statistics went through `reduce` has the value and the gradient
that one process with the whole batch would compute.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from em_models import BatchNorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """The number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine: which of the GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def share(total: int, key: str) -> int:
    """This process's part of a number that is divided among all, for instance the batch."""
    if total % size():
        raise ValueError(
            f"{key} is {total}, which {size()} processes cannot divide evenly; take a multiple of "
            f"{size()}"
        )
    return total // size()


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def reduce(sums: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable: what losses take as `reduce`."""
    return _Sum.apply(sums) if size() > 1 else sums


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in their order, differentiable: (M, D) -> (all M, D)."""
    if size() == 1:
        return rows
    before, after = rank() * len(rows), (size() - 1 - rank()) * len(rows)
    return reduce(F.pad(rows, (0, 0, before, after)))


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if size() == 1:
        return number
    shared = torch.tensor(number)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def mean(number: float) -> float:
    """The mean of the numbers of all processes, equal on all to the last bit."""
    if size() == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(shared)
    return float(shared) / size()


def means(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each term over all processes: what is logged is of the whole batch."""
    values = torch.stack([value.detach().double().cpu() for value in terms.values()])
    if size() > 1:
        dist.all_reduce(values)
    return dict(zip(terms, (values / size()).tolist(), strict=True))


class _Call(nn.Module):
    """A function of networks as a module, because that is what torch knows how to parallelise."""

    def __init__(self, function: Callable[..., Any], networks: nn.Module) -> None:
        super().__init__()
        self.function, self.networks = function, networks

    def forward(self, *rest: Any) -> Any:
        return self.function(self.networks, *rest)


def parallel(function: Callable[..., Any], networks: nn.Module) -> Callable[..., Any]:
    """`function(networks, …)` as a function of the rest; `backward` averages over processes.

    Batch norms get the statistics of the global batch. The average of the gradients is that of the
    global loss, whether `function` returns the mean over its own samples or, by `reduce`, over all.
    """
    if size() == 1:
        return partial(function, networks)
    share_statistics(networks)
    # Buffers are equal anyway: they come from statistics of the global batch.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    settings: dict[str, Any] = {name: False}
    # Otherwise torch sorts its buckets anew after the first step, so that a resumed run adds up the
    # gradients of more than two processes in another order than the one that went on.
    settings["find_unused_parameters"] = size() > 2
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return DistributedDataParallel(_Call(function, networks), **settings)


def share_statistics(networks: nn.Module) -> None:
    """Let batch norms see the global batch; those that cannot are refused."""
    for name, module in networks.named_modules():
        if isinstance(module, BatchNorm):
            module.reduce = reduce
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TypeError(
                f"{name} is a {type(module).__name__}, which sees the batch of its own process "
                "only; use em_models.BatchNorm"
            )


@contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Belong to the processes that the environment names (`RANK`, `WORLD_SIZE`), if it names any."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if cuda:
        torch.cuda.set_device(local_rank())
    try:
        # Flags travel between CPUs, so that no step waits for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        taken = "EADDRINUSE" in reason or "address already in use" in reason.lower()
        raise ConnectionError(
            f"the processes cannot meet at {where}: "
            + (
                "another program uses that address; choose another port (MASTER_PORT, or "
                "--master-port of torchrun)"
                if taken
                else f"{reason}; is the address right, and is every process running?"
            )
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()
