"""Batch norm whose statistics can be those of a batch that is spread over several processes.

torch's SyncBatchNorm refuses tensors on the CPU; here the statistics go through whatever all-reduce
the training loop hands in. Parameters, buffers and their names are those of `nn.BatchNorm2d`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(_BatchNorm):
    """Batch norm over all dimensions but the second: (B, C, …) -> (B, C, …).

    With `reduce` set, a differentiable sum of a vector over processes, training normalises by the
    mean and variance of the global batch. Without it, and in evaluation, it is torch's batch norm.

    >>> BatchNorm(4)(torch.zeros(2, 4, 5, 5, 5)).shape
    torch.Size([2, 4, 5, 5, 5])
    """

    reduce: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, …)."""
        if self.reduce is None or not self.training:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(wide, axes, correction=0)  # (C,) each
        # Sums in float64: the variance of all is then a harmless difference of moments.
        count = torch.full((1,), x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
        mean, var = mean.double(), var.double()
        sums = self.reduce(torch.cat([count, count * mean, count * (var + mean * mean)]))
        count, first, second = sums.split([1, x.shape[1], x.shape[1]])
        mean = first / count
        var = (second / count - mean * mean).clamp_min(0)
        self._track(count.detach(), mean.detach(), var.detach())
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = (var + self.eps).rsqrt().to(wide.dtype)
        if self.weight is not None:
            scale = scale * self.weight
        y = (wide - mean.to(wide.dtype).view(shape)) * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)

    def _track(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics as torch does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        kind = self.running_mean.dtype
        self.running_mean.lerp_(mean.to(kind), share)
        self.running_var.lerp_((var * count / (count - 1).clamp_min(1)).to(kind), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm got shape {tuple(input.shape)}; wanted (B, C, …)")


def share_norms(network: nn.Module) -> None:
    """Batch norms of somebody else's network become ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                same = ("eps", "momentum", "affine", "track_running_stats")
                norm = BatchNorm(child.num_features, **{key: getattr(child, key) for key in same})
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm.train(child.training))
