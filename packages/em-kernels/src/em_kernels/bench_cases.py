"""What `em_kernels.bench` measures: each operator, the plain formula, and the copy that limits it."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from em_kernels.crops import gather_crops
from em_kernels.divergence import divergence_sums
from em_kernels.entropy import entropy_gradient, entropy_sums
from em_kernels.patches import patch_targets, patchify, reconstruction_sums, unpatchify

__all__ = ["crops", "divergence", "entropy", "patches"]

SETS = 4  # of buffers, taken in turn

Call = Callable[[int], Any]


class Case(NamedTuple):
    """One row: callables that take the number of a buffer set; `prepare` is not timed."""

    name: str
    gigabytes: float  # read and written by an ideal operator
    calls: dict[str, Call]  # "ours", peers, "limit", and "sum" where only reading counts
    prepare: Mapping[str, Call] = MappingProxyType(
        {}
    )  # its result is what the call of the same name is given
    tolerance: float = 1e-4  # of the largest value, between ours and eager


def _plain_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.float(), dim=1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum((0, 2, 3))


def _plain_divergence(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_q, log_p = (torch.log_softmax(x, dim=1) for x in (prediction, target))
    p = log_p.exp()
    return -(p * log_q).sum() + 0.1 * (p * log_p).sum(), p.sum((0, 2, 3))


def _plain_patchify(volume: Tensor, patch: int) -> Tensor:
    batch, channels, *size = volume.shape
    z, y, x = (n // patch for n in size)
    cut = volume.reshape(batch, channels, z, patch, y, patch, x, patch)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, z * y * x, -1).float()


def _plain_unpatchify(patches: Tensor, patch: int, shape: tuple[int, ...]) -> Tensor:
    batch, channels, *size = shape
    z, y, x = (n // patch for n in size)
    cut = patches.reshape(batch, z, y, x, channels, patch, patch, patch)
    return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)


def _plain_targets(volume: Tensor, patch: int) -> Tensor:
    values = _plain_patchify(volume, patch)
    mean, variance = values.mean(-1, keepdim=True), values.var(-1, keepdim=True)
    return (values - mean) / (variance + 1e-6).sqrt()


def _plain_reconstruction(prediction: Tensor, volume: Tensor, patch: int) -> Tensor:
    return (prediction - _plain_targets(volume, patch)).square().sum()


def _peers(call: Any, compiled: bool) -> dict[str, Any]:
    """Return the plain formula as it is, and compiled where wanted."""
    return {"eager": call, **({"compile": torch.compile(call, dynamic=False)} if compiled else {})}


def _over(call: Any, sets: Any) -> Call:
    """Return a call that takes the number of a set."""
    return lambda i: call(sets[i % SETS])


def _after(first: Call, then: Any) -> Call:
    return lambda i: then(first(i))


def _gigabytes(*tensors: Tensor) -> float:
    return sum(x.numel() * x.element_size() for x in tensors) / 1e9


def entropy(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Forward, backward into a given buffer, and both through autograd."""
    shape = (2, 50, 128, 128) if quick else (8, 50, 256, 256)
    for dtype in (torch.float32, torch.bfloat16):
        logits = [torch.randn(shape, device=device).to(dtype) for _ in range(SETS)]
        buffers = [torch.zeros_like(x) for x in logits]
        name = f"{shape} {str(dtype).removeprefix('torch.')}"
        weight = torch.randn(shape[1], device=device)
        one = torch.ones((), device=device)
        size = _gigabytes(logits[0])
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2

        def copy(i: int, logits: Any = logits, buffers: Any = buffers) -> Tensor:
            return buffers[i % SETS].copy_(logits[i % SETS])

        def loss(sums: Any, weight: Tensor = weight) -> Tensor:
            return sums[0] + (sums[1] * weight).sum()

        forward: dict[str, Call] = {
            "ours": _over(lambda x: entropy_sums(x)[:2], logits),
            "limit": copy,
            "sum": _over(torch.sum, logits),  # the limit of reading alone
        }
        for peer, plain in _peers(_plain_entropy, compiled).items():
            forward[peer] = _over(plain, logits)
        yield Case(f"entropy forward {name}", size, forward, tolerance=tolerance)

        def write(i: int, x: Any = logits, to: Any = buffers, b: Any = (one, weight)) -> Tensor:
            return entropy_gradient(x[i % SETS], *b, out=to[i % SETS])

        backward: dict[str, Call] = {"ours": write, "limit": copy}
        full: dict[str, Call] = {"limit": copy}
        prepare: dict[str, Call] = {}
        for peer, call in {"ours": entropy_sums, **_peers(_plain_entropy, compiled)}.items():

            def start(i: int, x: Any = logits, call: Any = call, loss: Any = loss) -> Any:
                leaf = x[i % SETS].detach().requires_grad_()
                return loss(call(leaf)), leaf

            def finish(given: Any) -> Tensor:
                return torch.autograd.grad(*given)[0]

            if peer != "ours":
                backward[peer], prepare[peer] = finish, start
            full[peer] = _after(start, finish)
        yield Case(f"entropy backward {name}", 2 * size, backward, prepare, tolerance)
        yield Case(f"entropy full {name}", 3 * size, full, tolerance=tolerance)


def divergence(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Forward and backward through autograd, to both tensors."""
    shape = (2, 50, 128, 128) if quick else (4, 50, 256, 256)
    both = [torch.randn((2, *shape), device=device) for _ in range(SETS)]
    buffers = [torch.zeros_like(x) for x in both]
    weight = torch.randn(shape[1], device=device)

    def ours(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sums = divergence_sums(prediction, target)
        return sums.cross_entropy - 0.1 * sums.target_entropy, sums.target_marginal

    calls: dict[str, Call] = {"limit": lambda i: buffers[i % SETS].copy_(both[i % SETS])}
    for peer, call in {"ours": ours, **_peers(_plain_divergence, compiled)}.items():

        def run(i: int, call: Any = call) -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in both[i % SETS]]
            value, marginal = call(*leaves)
            return torch.autograd.grad(value + (marginal * weight).sum(), leaves)

        calls[peer] = run
    yield Case(f"divergence full 2 × {shape} float32", 3 * _gigabytes(both[0]), calls)


def patches(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Cut and put back into given buffers, targets, and the loss with its gradient."""
    shape = (1, 1, 64, 64, 64) if quick else (2, 1, 128, 128, 128)
    size: Any = shape[2:]
    p, patch = 8, (8, 8, 8)
    floats = [torch.randn(shape, device=device) for _ in range(SETS)]
    raw = [torch.randint(0, 255, shape, device=device).to(torch.uint8) for _ in range(SETS)]
    cut = [patchify(x, patch) for x in floats]
    to_cut, to_volume = [torch.zeros_like(x) for x in cut], [torch.zeros_like(x) for x in floats]
    gigabytes = _gigabytes(floats[0])

    def copy(i: int) -> Tensor:
        return to_volume[i % SETS].copy_(floats[i % SETS])

    for name, source, scale in (("float32", floats, 1.0), ("uint8 to float32", raw, 1 / 255)):

        def cut_up(i: int, source: Any = source, scale: float = scale) -> Tensor:
            return patchify(source[i % SETS], patch, scale=scale, out=to_cut[i % SETS])

        calls: dict[str, Call] = {"ours": cut_up, "limit": copy}

        def plain_patchify(volume: Tensor, scale: float = scale) -> Tensor:
            return _plain_patchify(volume, p) * scale if scale != 1 else _plain_patchify(volume, p)

        for peer, plain in _peers(plain_patchify, compiled).items():
            calls[peer] = _over(plain, source)
        moved = gigabytes + _gigabytes(source[0])
        yield Case(f"patchify {shape} p=8 {name}", moved, calls)

    calls = {
        "ours": lambda i: unpatchify(cut[i % SETS], patch, size, out=to_volume[i % SETS]),
        "limit": copy,
    }
    for peer, plain in _peers(lambda x: _plain_unpatchify(x, p, shape), compiled).items():
        calls[peer] = _over(plain, cut)
    yield Case(f"unpatchify {shape} p=8 float32", 2 * gigabytes, calls)

    calls = {"ours": _over(lambda x: patch_targets(x, patch).target, raw), "limit": copy}
    for peer, plain in _peers(lambda x: _plain_targets(x, p), compiled).items():
        calls[peer] = _over(plain, raw)
    yield Case(f"patch targets {shape} p=8 uint8", gigabytes + _gigabytes(raw[0]), calls)

    def ours(prediction: Tensor, volume: Tensor) -> Tensor:
        return reconstruction_sums(prediction, volume, patch).squared_error

    calls = {"limit": copy}
    peers = _peers(
        lambda prediction, volume: _plain_reconstruction(prediction, volume, p), compiled
    )
    for peer, call in {"ours": ours, **peers}.items():

        def run(i: int, call: Any = call) -> Tensor:
            leaf = cut[i % SETS].detach().requires_grad_()
            return torch.autograd.grad(call(leaf, raw[i % SETS]), leaf)[0]

        calls[peer] = run
    moved = 3 * gigabytes + 2 * _gigabytes(raw[0])
    yield Case(f"reconstruction full {shape} p=8 uint8", moved, calls)


def crops(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Crops of a resident block, in numpy on the CPU whatever the device."""
    generator = np.random.default_rng(0)
    side, count, crop = (96, 16, 32) if quick else (256, 64, 64)
    block = generator.integers(0, 255, (side, side, side), dtype=np.uint8)
    places = [generator.integers(0, side - crop + 1, (count, 3)) for _ in range(SETS)]
    outs = [np.zeros((count, crop, crop, crop), np.uint8) for _ in range(SETS)]
    sources = [np.ones_like(out) for out in outs]

    def eager(i: int) -> np.ndarray[Any, Any]:
        out = outs[i % SETS]
        for to, (z, y, x) in zip(out, places[i % SETS], strict=True):
            to[...] = block[z : z + crop, y : y + crop, x : x + crop]
        return out

    def limit(i: int) -> np.ndarray[Any, Any]:
        np.copyto(outs[i % SETS], sources[i % SETS])
        return outs[i % SETS]

    def ours(i: int) -> np.ndarray[Any, Any]:
        return gather_crops(
            block,
            places[i % SETS],
            (crop, crop, crop),
            out=outs[(i + 1) % SETS],
            threads=torch.get_num_threads(),
        )

    name = f"crops {count} × {crop}³ of {side}³ uint8"
    yield Case(name, 2 * outs[0].nbytes / 1e9, {"ours": ours, "eager": eager, "limit": limit})
