"""Run a strided network at any pitch: strides that are not taken spread the later kernels.

A network with strides 2, 2, 2 gives one output every 8 pixels. Leave a stride out, double the
dilation of everything behind it, and there are twice as many outputs along each axis, of which every
second is one of the old ones, to the last digit. This is done here to networks that somebody else
wrote, by their layers alone; `reach` then measures what an output sees, instead of trusting a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
LARGEST = 4096  # px; a field beyond it is taken for the whole image


class _Pool(nn.Module):
    """`nn.MaxPool2d` or `nn.AvgPool2d` with dilation and any padding."""

    def __init__(self, pool: nn.MaxPool2d | nn.AvgPool2d) -> None:
        super().__init__()
        self.largest = isinstance(pool, nn.MaxPool2d)
        self.kernel_size, self.padding = _pair(pool.kernel_size), pool.padding
        self.stride = pool.stride or pool.kernel_size
        self.dilation: Any = getattr(pool, "dilation", 1)
        self.complete = (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.complete, value=-math.inf if self.largest else 0)
        if self.largest:
            return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation)
        height, width = self.kernel_size
        kernel = x.new_full((x.shape[1], 1, height, width), 1 / (height * width))
        return F.conv2d(x, kernel, None, self.stride, 0, self.dilation, groups=x.shape[1])


@dataclass(frozen=True)
class _Layer:
    """A convolution or pooling as its author meant it."""

    module: Any
    pitch: int  # pixels between neighbours of its input
    kernel: tuple[int, int]
    stride: int
    dilation: tuple[int, int]
    padding: tuple[int, int]


class Spread:
    """The layers of a network that know about space, and the pitch at which they run.

    Every layer gives ceil(size / stride) outputs, whatever its kernel: what even kernels lack is
    added after the last pixel. Only `Conv2d`, `MaxPool2d` and `AvgPool2d` are understood; whether
    that was enough is for the caller to try (`agrees`).
    """

    def __init__(self, network: nn.Module, probe: Tensor) -> None:
        """Find the layers by running the network once, on an image (1, C, N, N), N = 64 or so."""
        self.layers: list[_Layer] = []
        seen: dict[nn.Module, int] = {}

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            pitch, rest = divmod(probe.shape[-1], inputs[0].shape[-1])
            if rest or seen.setdefault(module, pitch) != pitch:
                raise ValueError(f"{type(module).__name__} has no one pitch")

        found = [m for m in network.modules() if isinstance(m, (nn.Conv2d, *POOLS))]
        hooks = [module.register_forward_pre_hook(look) for module in found]
        try:
            with torch.no_grad():
                network(probe)
        finally:
            for hook in hooks:
                hook.remove()
        names = {module: name for name, module in network.named_modules()}
        for module, pitch in seen.items():
            if isinstance(module, POOLS):
                parent, _, name = names[module].rpartition(".")
                module = _Pool(module)
                setattr(network.get_submodule(parent), name, module)
            self._add(module, pitch)

    def _add(self, module: Any, pitch: int) -> None:
        stride, padding = _pair(module.stride), module.padding
        if stride[0] != stride[1] or isinstance(padding, str):
            raise ValueError(f"{module} has strides or padding that cannot be spread")
        layer = _Layer(
            module=module,
            pitch=pitch,
            kernel=_pair(module.kernel_size),
            stride=stride[0],
            dilation=_pair(module.dilation),
            padding=_pair(padding),
        )
        self.layers.append(layer)
        if isinstance(module, nn.Conv2d) and _uneven(layer):
            module.register_forward_pre_hook(_complete)

    def take(self, pitch: int) -> None:
        """From now on run with the strides that lead to `pitch`, and spread the rest."""
        for layer in self.layers:
            before = math.gcd(layer.pitch, pitch)
            spread = layer.pitch // before
            module = layer.module
            module.stride = _pair(math.gcd(layer.pitch * layer.stride, pitch) // before)
            module.dilation = tuple(spread * d for d in layer.dilation)
            ahead = tuple(spread * p for p in layer.padding)
            if isinstance(module, nn.Conv2d) and not _uneven(layer):
                module.padding = ahead
                continue
            # What is added in front and behind, columns first, as F.pad wants it.
            whole = [d * (k - 1) for d, k in zip(module.dilation, layer.kernel, strict=True)]
            behind = [w - a for w, a in zip(whole, ahead, strict=True)]
            module.complete = (ahead[1], behind[1], ahead[0], behind[0])
            module.padding = (0, 0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _uneven(layer: _Layer) -> bool:
    """Whether padding as meant gives another number of outputs than ceil(size / stride)."""
    return any(
        2 * p != d * (k - 1)
        for p, d, k in zip(layer.padding, layer.dilation, layer.kernel, strict=True)
    )


def _complete(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (F.pad(inputs[0], module.complete), *inputs[1:])


def reach(compute: Callable[[Tensor], Tensor], *, axis: int) -> tuple[int, int] | None:
    """Pixels that an output sees before and after its own along an axis (−2 or −1).

    `compute` gives one output per pixel, (1, 1, Y, X) -> (1, C, Y, X). A single NaN marks all that
    depends on it, whatever the weights are. None if that does not end within the image.
    """
    size = 256
    while size <= LARGEST:
        image = torch.zeros(1, 1, 1, size)
        image[..., size // 2] = math.nan
        with torch.no_grad():
            out = compute(image if axis == -1 else image.mT)
        marked = out[0].isnan().any(0).flatten().nonzero()[:, 0]
        first, last = int(marked.min()), int(marked.max())
        if first > 0 and last < size - 1:
            return last - size // 2, size // 2 - first
        size *= 2
    return None
