"""Patches against reshape, permute and float64 formulas of torch."""

import pytest
import torch
from em_kernels import build_info
from em_kernels.patches import patch_targets, patchify, reconstruction_sums, unpatchify

OPERATORS = torch.ops.em_kernels
LEVELS = ("baseline", "avx2", "avx512")
AVAILABLE = LEVELS[: LEVELS.index(build_info()["isa_available"]) + 1]
CASES = [  # (B, C, Z, Y, X), patch
    ((2, 1, 16, 16, 32), (8, 8, 8)),
    ((1, 3, 4, 6, 10), (2, 3, 5)),
    ((2, 2, 3, 32, 48), (1, 16, 16)),
    ((1, 1, 16, 16, 16), (16, 16, 16)),
    ((3, 1, 2, 2, 140), (2, 2, 2)),
]


@pytest.fixture(params=AVAILABLE)
def isa(request, monkeypatch):
    monkeypatch.setenv("EM_KERNELS_ISA", request.param)
    return request.param


def draw(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype in (torch.uint8, torch.uint16):
        return torch.randint(0, torch.iinfo(dtype).max, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def choose(shape, patch, seed=3):
    """Half of the tokens of each sample, in random order."""
    generator = torch.Generator().manual_seed(seed)
    count = (shape[2] // patch[0]) * (shape[3] // patch[1]) * (shape[4] // patch[2])
    return torch.stack(
        [torch.randperm(count, generator=generator)[: (count + 1) // 2] for _ in range(shape[0])]
    )


def cut(volume, patch, tokens=None, channels_last=False):
    batch, channels, *size = volume.shape
    grid = [n // p for n, p in zip(size, patch, strict=True)]
    x = volume.reshape(batch, channels, grid[0], patch[0], grid[1], patch[1], grid[2], patch[2])
    order = (0, 2, 4, 6, 3, 5, 7, 1) if channels_last else (0, 2, 4, 6, 1, 3, 5, 7)
    x = x.permute(order).reshape(batch, grid[0] * grid[1] * grid[2], -1)  # (B, N, D)
    return x if tokens is None else torch.stack([x[b, tokens[b]] for b in range(batch)])


def normalized(patches, eps=1e-6):
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt(), mean[..., 0], variance[..., 0]


@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_cut_and_put_back(isa, shape, patch, chosen, channels_last):
    tokens = choose(shape, patch) if chosen else None
    options = {"tokens": tokens, "channels_last": channels_last}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        volume = draw(shape, dtype)
        wanted = cut(volume, patch, tokens, channels_last)
        got = patchify(volume, patch, **options)
        assert torch.equal(got, wanted)
        back = unpatchify(got, patch, shape[2:], **options)
        assert torch.equal(patchify(back, patch, **options), wanted)
        if chosen:
            others = torch.ones_like(volume, dtype=torch.float32)
            keep = patchify(others, patch, **options)
            assert torch.equal(
                back, volume * unpatchify(keep, patch, shape[2:], **options).to(dtype)
            )
        else:
            assert torch.equal(back, volume)


@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
@pytest.mark.parametrize("raw", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stored_integers_are_scaled(isa, shape, patch, raw, dtype):
    volume = draw(shape, raw)
    got = patchify(volume, patch, scale=1 / 128, shift=-1.0, dtype=dtype)
    wanted = cut(volume.to(torch.int32).double() / 128 - 1, patch)
    torch.testing.assert_close(got, wanted.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_as_by_torch(isa, dtype):
    """Every value of the half type, every middle between two, and the neighbours of each middle."""
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    ordered = halves[halves.isfinite()].unique()
    middles = (ordered[1:].double() + ordered[:-1]).div(2).float()
    up, down = (middles.nextafter(torch.tensor(x)) for x in (torch.inf, -torch.inf))
    largest = torch.finfo(torch.float32).max
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan, largest, -largest, 65519.0, 65520.0])
    values = torch.cat([halves, middles, up, down, ends])
    values = torch.cat([values, values.new_zeros(-len(values) % 64)])
    volume = values.view(1, 1, 1, -1, 64)
    got = patchify(volume, (1, 1, 64), dtype=dtype).flatten()
    assert torch.equal(got.isnan(), values.isnan())
    assert torch.equal(got.nan_to_num(nan=0), values.to(dtype).nan_to_num(nan=0))
    again = patchify(got.view(volume.shape), (1, 1, 64), dtype=torch.float32).flatten()
    assert torch.equal(again.nan_to_num(nan=0), got.float().nan_to_num(nan=0))


def test_views_are_read_in_place(isa):
    volume = draw((2, 3, 12, 20, 24))
    for view in (
        volume[:, 1:, 2:10, 4:12, 8:],
        volume.transpose(2, 3)[:, :, :8, :8, :8],
        volume.transpose(2, 4)[:, :, :8, :8, :8],
        volume[:, :1].expand(2, 3, 12, 20, 24)[:, :, :8, :16, :16],
    ):
        assert torch.equal(patchify(view, (4, 4, 8)), cut(view, (4, 4, 8)))


def test_large_volumes_are_written_past_the_cache(isa):
    volume = draw((1, 1, 64, 128, 256), torch.uint8)
    patches = patchify(volume, (8, 8, 8))
    assert torch.equal(patches, cut(volume.float(), (8, 8, 8)))
    assert torch.equal(unpatchify(patches, (8, 8, 8), (64, 128, 256)), volume.float())


@pytest.mark.parametrize("chosen", [False, True])
def test_gradients_are_the_adjoint(chosen):
    shape, patch = (2, 2, 4, 4, 6), (2, 2, 3)
    tokens = choose(shape, patch) if chosen else None
    volume = draw(shape, torch.float64).requires_grad_()
    options = {"tokens": tokens, "channels_last": True}
    assert torch.autograd.gradcheck(
        lambda x: patchify(x, patch, scale=0.5, shift=2.0, **options), volume
    )
    patches = patchify(volume.detach(), patch, **options).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unpatchify(x, patch, shape[2:], **options), patches)


@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
@pytest.mark.parametrize("raw", [torch.float32, torch.uint8, torch.uint16])
@pytest.mark.parametrize("chosen", [False, True])
def test_targets_match_float64(isa, shape, patch, raw, chosen):
    tokens = choose(shape, patch) if chosen else None
    volume = draw(shape, raw)
    got = patch_targets(volume, patch, tokens=tokens, scale=1 / 255, shift=-0.3)
    exact = volume.to(torch.int32) if raw == torch.uint16 else volume
    wanted = normalized(cut(exact.double() / 255 - 0.3, patch, tokens))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
@pytest.mark.parametrize("raw", [torch.float32, torch.uint8])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_reconstruction_matches_float64(isa, shape, patch, raw, chosen, normalize):
    tokens = choose(shape, patch) if chosen else None
    volume = draw(shape, raw)
    target = cut(volume.double() / 100 - 0.3, patch, tokens)
    target = normalized(target)[0] if normalize else target
    options = {"tokens": tokens, "scale": 0.01, "shift": -0.3, "normalize": normalize}
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8)):
        prediction = draw(target.shape, dtype, seed=1).requires_grad_()
        sums = reconstruction_sums(prediction, volume, patch, **options)
        difference = prediction.detach().double() - target
        assert sums.values == target.numel()
        assert abs(sums.squared_error.item() / difference.square().sum().item() - 1) <= 1e-6
        (sums.squared_error / sums.values).backward()
        wanted = 2 * difference / sums.values
        assert (prediction.grad - wanted).abs().max() <= bound * wanted.abs().max()


def test_reconstruction_gradcheck_and_double_backward():
    volume = draw((2, 1, 4, 4, 4), torch.float64)
    prediction = draw((2, 8, 8), torch.float64, seed=1).requires_grad_()

    def error(x):
        return reconstruction_sums(x, volume, (2, 2, 2)).squared_error

    assert torch.autograd.gradcheck(error, prediction)
    (grad,) = torch.autograd.grad(error(prediction), prediction, create_graph=True)
    with pytest.raises(NotImplementedError, match="reconstruction_backward has no second"):
        grad.sum().backward()


def test_same_bits_for_any_number_of_threads(isa):
    volume = draw((2, 1, 32, 32, 64), torch.uint8)
    prediction = draw((2, 128, 512))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            error = reconstruction_sums(prediction, volume, (8, 8, 8)).squared_error
            results.append((error, *patch_targets(volume, (8, 8, 8))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# opcheck itself reads .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("chosen", [False, True])
def test_opcheck(chosen):
    shape, patch = (2, 2, 4, 4, 6), [2, 2, 3]
    tokens = choose(shape, patch) if chosen else None
    volume = draw(shape)
    patches = cut(volume, patch, tokens)
    check = torch.library.opcheck
    leaf = volume.clone().requires_grad_()
    check(OPERATORS.patchify.default, (leaf, tokens, patch, 0.5, 1.0, False, torch.float32))
    leaf = patches.clone().requires_grad_()
    check(OPERATORS.unpatchify.default, (leaf, tokens, patch, list(shape[1:]), False))
    check(
        OPERATORS.patch_targets.default,
        (volume, tokens, patch, 0.5, 1.0, False, 1e-6, torch.float32),
    )
    leaf = patches.clone().requires_grad_()
    check(
        OPERATORS.reconstruction_forward.default,
        (leaf, volume, tokens, patch, 0.5, 1.0, False, True, 1e-6),
    )


def test_compiles_without_a_graph_break():
    volume, tokens = draw((2, 1, 8, 8, 8), torch.uint8), choose((2, 1, 8, 8, 8), (4, 4, 4))
    weight = draw((64, 64)).requires_grad_()

    def loss(w):
        prediction = patchify(volume, (4, 4, 4), tokens=tokens, scale=1 / 255) @ w
        sums = reconstruction_sums(prediction, volume, (4, 4, 4), tokens=tokens)
        return sums.squared_error / sums.values

    (plain,) = torch.autograd.grad(loss(weight), weight)
    (again,) = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(weight), weight
    )
    assert torch.equal(plain, again)


def test_nothing_to_cut():
    assert patchify(torch.zeros(0, 1, 4, 4, 4), (2, 2, 2)).shape == (0, 8, 8)
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert patchify(torch.zeros(2, 1, 4, 4, 4), (2, 2, 2), tokens=none).shape == (2, 0, 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"patch": (3, 4, 4)}, ValueError, r"patch \(3, 4, 4\) does not divide .* on z; crop or"),
        ({"patch": (4, 0, 4)}, ValueError, "patch must be three positive sizes"),
        ({"volume": torch.zeros(8, 8, 8)}, ValueError, r"volume must be \(B, C, Z, Y, X\)"),
        ({"volume": torch.zeros(1, 1, 8, 8, 8).int()}, TypeError, "volume must be uint8.*int32"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating-point type"),
        ({"dtype": torch.float64}, TypeError, "torch.float32 cannot be read as torch.float64"),
        ({"tokens": torch.zeros(1, 2)}, TypeError, "tokens must be an int64 tensor"),
        ({"tokens": torch.zeros(2, 2).long()}, ValueError, r"tokens must be \(B, V\) with B = 1"),
        ({"tokens": torch.tensor([[8]])}, RuntimeError, r"tokens must lie in \[0, 8\).* got 8"),
        ({"tokens": torch.tensor([[-1]])}, RuntimeError, r"tokens must lie in \[0, 8\).* got -1"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"volume": torch.zeros(1, 1, 8, 8, 8), "patch": (4, 4, 4)} | change
    with pytest.raises(error, match=message):
        patchify(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": torch.zeros(1, 8, 63)}, r"patches must have C · 64 values .* got 63"),
        ({"patches": torch.zeros(1, 7, 64)}, "patches must have 8 tokens .* got 7"),
        ({"patches": torch.zeros(8, 64)}, r"patches must be floating-point \(B, V, D\)"),
        ({"size": (8, 8, 9)}, "does not divide volume"),
        ({"patch": (0, 2, 2)}, "patch must be three positive sizes"),
    ],
)
def test_bad_patches_are_named(change, message):
    arguments = {"patches": torch.zeros(1, 8, 64), "patch": (4, 4, 4), "size": (8, 8, 8)} | change
    with pytest.raises(ValueError, match=message):
        unpatchify(**arguments)


def test_bad_prediction_is_named():
    volume = torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"prediction must be .* = \(1, 8, 64\), got \(1, 8, 32\)"):
        reconstruction_sums(torch.zeros(1, 8, 32), volume, (4, 4, 4))
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        patch_targets(volume, (1, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("shape", "patch"), CASES, ids=str)
@pytest.mark.parametrize("raw", [torch.float32, torch.bfloat16, torch.uint8, torch.uint16])
@pytest.mark.parametrize("chosen", [False, True])
def test_cuda_matches_the_cpu(shape, patch, raw, chosen):
    tokens = choose(shape, patch) if chosen else None
    volume = draw(shape, raw)
    results = []
    for device in ("cpu", "cuda"):
        at = {"tokens": None if tokens is None else tokens.to(device)}
        moved = volume.to(device)
        cut_up = patchify(moved, patch, dtype=torch.float32, **at)
        back = unpatchify(cut_up, patch, shape[2:], **at)
        leaf = torch.ones_like(cut_up).requires_grad_()
        error = reconstruction_sums(leaf, moved, patch, scale=0.01, **at).squared_error
        error.backward()
        targets = patch_targets(moved, patch, scale=0.01, dtype=torch.float32, **at)
        results.append([x.detach().cpu() for x in (cut_up, back, error, leaf.grad, *targets)])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=2e-5, atol=2e-5 * float(cpu.abs().max()))
