"""The entropy operator against float64 formulas written out here, on every instruction set."""

import numpy as np
import pytest
import torch
from em_kernels import build_info
from em_kernels.entropy import (
    EntropySums,
    entropy_gradient,
    entropy_sums,
    entropy_sums_and_probabilities,
    entropy_sums_into,
    entropy_sums_overwriting,
)

OPERATORS = torch.ops.em_kernels
LEVELS = ("baseline", "avx2", "avx512")
AVAILABLE = LEVELS[: LEVELS.index(build_info()["isa_available"]) + 1]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=AVAILABLE)
def isa(request, monkeypatch):
    monkeypatch.setenv("EM_KERNELS_ISA", request.param)
    return request.param


def draw(shape, sigma=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * sigma).to(dtype)


def draw_mask(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape[:1] + shape[2:], generator=generator) > 0.3


def reference(logits, temperature=1.0, mask=None, per_sample=False):
    """Sums by float64 numpy, with the gradient of Σ w·(entropy, marginal) by hand."""
    x = np.asarray(logits.detach().to(torch.float64)) / temperature
    x = x.reshape(*x.shape[:2], -1)  # (B, K, S)
    x = x - x.max(axis=1, keepdims=True)
    log_z = np.log(np.exp(x).sum(axis=1, keepdims=True))
    log_p = x - log_z
    p = np.exp(log_p)
    keep = np.ones((x.shape[0], 1, x.shape[2]))
    if mask is not None:
        keep = np.asarray(mask, dtype=np.float64).reshape(keep.shape)
    entropy = -(keep * p * log_p).sum()
    marginal = (keep * p).sum(axis=2)
    count = keep.sum(axis=(1, 2))

    def gradient(weight_entropy, weight_marginal):
        u = np.asarray(weight_marginal, dtype=np.float64)
        u = (u if u.ndim == 2 else u[None])[:, :, None] - weight_entropy * log_p
        g = keep * p * (u - (p * u).sum(axis=1, keepdims=True)) / temperature
        return g.reshape(logits.shape)

    if not per_sample:
        marginal, count = marginal.sum(axis=0), count.sum()
    return entropy, marginal, count, gradient


def check(logits, *, temperature=1.0, mask=None, per_sample=False, scale=1.0):
    """Compare sums and gradient; `scale` widens the bounds that hold for float32."""
    leaf = logits.detach().requires_grad_()
    got = entropy_sums(leaf, temperature=temperature, mask=mask, per_sample=per_sample)
    entropy, marginal, count, gradient = reference(logits, temperature, mask, per_sample)
    pixels = max(np.sum(count), 1)
    classes = logits.shape[1]
    mean = entropy / pixels
    assert abs(got.entropy.item() - entropy) / pixels <= 2e-6 * max(mean, 1) * scale
    assert np.abs(got.marginal.detach().numpy() - marginal).max() / pixels <= 2e-7 * scale
    assert np.array_equal(got.pixels.numpy(), count)

    weight = draw((marginal.shape[0], classes) if per_sample else (classes,), seed=2)
    (0.7 * got.entropy + (weight * got.marginal).sum()).backward()
    wanted = gradient(0.7, weight)
    assert leaf.grad.dtype == logits.dtype
    error = np.abs(leaf.grad.to(torch.float64).numpy() - wanted).max()
    return error / np.abs(wanted).max()


SHAPES = [(2, 50, 37, 41), (3, 7, 65), (300, 11), (2, 8, 4, 5, 16), (1, 2, 129), (2, 130, 9, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [1, 4, 30])
def test_sums_and_gradient_match_float64(isa, shape, sigma):
    assert check(draw(shape, sigma)) <= 1e-5
    assert check(draw(shape, sigma), temperature=0.5, mask=draw_mask(shape)) <= 1e-5
    assert check(draw(shape, sigma), per_sample=True, mask=draw_mask(shape)) <= 1e-5


def test_float64_is_exact_to_its_own_precision(isa):
    logits = draw((2, 5, 9, 7), 3, torch.float64)
    assert check(logits, scale=1e-6) <= 1e-12


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_types_are_computed_in_float32(isa, dtype, epsilon):
    """Sums as precise as for float32; the gradient is rounded once, to its own type."""
    logits = draw((2, 50, 33, 31), 4, dtype)
    assert entropy_sums(logits).entropy.dtype == torch.float32
    assert check(logits) <= epsilon
    assert check(logits.to(memory_format=torch.channels_last)) <= epsilon


def test_probabilities_are_right_to_the_last_digits(isa):
    """A relative bound, which sums over many pixels and classes would hide."""
    logits = torch.stack([torch.zeros(4001), torch.linspace(-4, 4, 4001)])[None]  # (1, 2, 4001)
    _, p = entropy_sums_and_probabilities(logits)
    wanted = torch.softmax(logits.double(), dim=1)
    assert ((p - wanted) / wanted).abs().max() <= 6e-7


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck(per_sample):
    logits = draw((2, 4, 3, 2), 1, torch.float64).requires_grad_()
    mask = draw_mask((2, 4, 3, 2))

    def sums(x):
        return entropy_sums(x, temperature=0.7, mask=mask, per_sample=per_sample)[:2]

    assert torch.autograd.gradcheck(sums, logits)


def test_any_layout_gives_the_same_sums_and_gradient(isa):
    dense = draw((3, 50, 20, 22), 2)
    views = {
        "channels last": dense.to(memory_format=torch.channels_last),
        "transposed space": dense.transpose(2, 3).contiguous().transpose(2, 3),
        "valid border": torch.nn.functional.pad(dense, (3, 3, 2, 2))[:, :, 2:-2, 3:-3],
        "some classes": torch.cat([dense, dense], dim=1)[:, :50],
        "every other pixel": dense.repeat_interleave(2, dim=3)[..., ::2],
        "batch expanded": dense[:1].expand(3, -1, -1, -1),
    }
    for name, view in views.items():
        assert check(view) <= 1e-5, name
        assert check(view, per_sample=True, mask=draw_mask(view.shape)) <= 1e-5, name


def test_masked_pixels_do_not_count_whatever_they_hold(isa):
    logits = draw((2, 50, 11, 13))
    mask = draw_mask(logits.shape)
    spoilt = torch.where(mask[:, None], logits, torch.nan).requires_grad_()
    got = entropy_sums(spoilt, mask=mask)
    clean = logits.requires_grad_()
    wanted = entropy_sums(clean, mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    got.entropy.backward()
    wanted.entropy.backward()
    assert torch.equal(spoilt.grad, clean.grad)
    assert not spoilt.grad[~mask[:, None].expand_as(spoilt)].any()


@pytest.mark.parametrize("shape", [(2, 50, 37, 41), (3, 7, 65), (300, 11)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_probabilities_and_sums_share_one_backward(isa, shape, masked, per_sample):
    logits = draw(shape, 3).requires_grad_()
    mask = draw_mask(shape) if masked else None
    options = {"temperature": 0.5, "mask": mask, "per_sample": per_sample}
    sums, p = entropy_sums_and_probabilities(logits, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(sums, entropy_sums(logits, **options), strict=True)
    )

    exact = logits.detach().double().requires_grad_()
    wanted = torch.softmax(exact / 0.5, dim=1)
    assert (p - wanted).abs().max() <= 1e-6
    weight, given = draw(sums.marginal.shape, seed=2), draw(shape, seed=3)
    (0.7 * sums.entropy + (weight * sums.marginal).sum() + (given * p).sum()).backward()
    *_, gradient = reference(exact, **options)
    (wanted * given).sum().backward()
    total = exact.grad.numpy() + gradient(0.7, weight)
    assert np.abs(logits.grad.numpy() - total).max() <= 1e-5 * np.abs(total).max()


@pytest.mark.parametrize("layout", ["dense", "channels last", "irregular"])
def test_given_buffers_receive_what_is_returned_otherwise(isa, layout):
    logits = draw((2, 6, 40, 33), 2)
    if layout == "channels last":
        logits = logits.to(memory_format=torch.channels_last)
    elif layout == "irregular":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    wanted, p = entropy_sums_and_probabilities(logits)
    out = EntropySums(torch.empty(()), torch.empty(6), torch.empty(()))
    buffer = torch.empty_like(logits)
    assert entropy_sums_into(out, logits, probabilities=buffer) is out
    assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
    assert torch.equal(buffer, p)

    grads = (torch.tensor(0.3), draw((6,), seed=2))
    fresh = entropy_gradient(logits, *grads, grad_probabilities=p)
    assert entropy_gradient(logits, *grads, grad_probabilities=p, out=buffer) is buffer
    assert torch.equal(buffer, fresh)
    over = logits.clone(memory_format=torch.preserve_format)
    assert entropy_gradient(over, *grads, grad_probabilities=p, out=over) is over
    assert torch.equal(over, fresh)
    entropy_sums_into(out, logits, probabilities=logits)
    assert torch.equal(logits, p)


def test_gradient_over_the_logits():
    source = draw((2, 6, 31, 5)).requires_grad_()
    (entropy_sums(source * 2).entropy).backward()
    wanted, source.grad = source.grad, None
    logits = source * 2
    entropy_sums_overwriting(logits).entropy.backward()
    assert torch.equal(source.grad, wanted)
    assert torch.equal(logits, wanted / 2)


def test_gradient_over_logits_that_are_still_needed_is_refused():
    source = draw((2, 6, 31)).requires_grad_()
    logits = source.exp()  # exp keeps its result for its own gradient
    loss = entropy_sums_overwriting(logits).entropy
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grad_marginal": torch.ones(3)}, ValueError, r"grad_marginal .* \(5,\), got \(3,\)"),
        ({"grad_entropy": torch.ones((), dtype=torch.float64)}, TypeError, "grad_entropy must be"),
        ({"out": torch.ones(2, 5, 4)}, ValueError, r"out must have shape \(2, 5, 3\)"),
        ({"out": torch.ones(2, 5, 3, device="meta")}, ValueError, "out must be on cpu, got meta"),
        ({"grad_probabilities": 3}, TypeError, "grad_probabilities must be a tensor, got int"),
    ],
)
def test_bad_buffers_are_named(change, error, message):
    arguments = {
        "logits": torch.zeros(2, 5, 3),
        "grad_entropy": torch.ones(()),
        "grad_marginal": torch.ones(5),
    }
    with pytest.raises(error, match=message):
        entropy_gradient(**arguments | change)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """bfloat16, 4.5 GB and as much for the gradient; only the last pixels are not uniform."""
    shape = (1, 50, 1, 43_100_000)
    logits = torch.zeros(shape, dtype=torch.bfloat16)
    assert logits.numel() > 2**31
    tail = draw((1, 50, 1, 1000), 3, torch.bfloat16)
    logits[..., -1000:] = tail
    sums = entropy_sums(logits.requires_grad_())
    wanted = entropy_sums(tail)
    pixels = shape[-1]
    expected = float(wanted.entropy) + (pixels - 1000) * np.log(50)
    assert abs(float(sums.entropy.detach()) - expected) <= 2e-6 * pixels
    assert sums.pixels == pixels
    sums.entropy.backward()
    leaf = tail.clone().requires_grad_()
    entropy_sums(leaf).entropy.backward()
    assert torch.equal(logits.grad[..., -1000:], leaf.grad)
    assert not logits.grad[..., :-1000:9973].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_propagate_as_in_torch(isa, value):
    logits = draw((1, 5, 70))
    logits[0, 3, 66] = value
    got = entropy_sums(logits)
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    assert got.entropy.isnan() == (p * log_p).sum().isnan()
    assert torch.equal(got.marginal.isnan(), p.sum((0, 2)).isnan())


def test_same_bits_for_any_number_of_threads(isa):
    logits = draw((3, 50, 111, 97)).requires_grad_()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums = entropy_sums(logits)
            (grad,) = torch.autograd.grad(sums.entropy + sums.marginal[0], logits)
            results.append((*sums, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "shape", [(0, 4, 3), (2, 4, 0), (0, 4), (0, 4, 0, 5), (2, 4, 3, 0)], ids=str
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_empty_tensors_give_zero_sums(shape, per_sample):
    logits = torch.zeros(shape, requires_grad=True)
    sums = entropy_sums(logits, per_sample=per_sample)
    assert sums.marginal.shape == ((shape[0], 4) if per_sample else (4,))
    assert not sums.entropy.any() and not sums.marginal.any() and not sums.pixels.any()
    (sums.entropy + sums.marginal.sum()).backward()
    assert logits.grad.shape == shape
    assert entropy_sums_and_probabilities(logits, per_sample=per_sample)[1].shape == shape
    odd = torch.zeros(*shape, 2, 4)[..., ::2].transpose(-1, -2)  # at no one stride
    assert not entropy_sums(odd, per_sample=per_sample).entropy.any()


# opcheck itself reads .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck(per_sample):
    dense = draw((2, 5, 6, 7))
    last = dense.to(memory_format=torch.channels_last)
    for logits in (dense, dense.bfloat16(), last, draw((4, 3))):
        for mask in (None, draw_mask(logits.shape)):
            for with_probabilities in (False, True):
                leaf = logits.clone().requires_grad_()
                arguments = (leaf, mask, 0.5, per_sample, with_probabilities)
                torch.library.opcheck(OPERATORS.entropy_forward.default, arguments)


def test_opcheck_given_buffers():
    logits = draw((2, 5, 6, 7))
    ones = (torch.ones(()), torch.ones(5))
    arguments = (logits, None, 1.0, False, *ones, torch.ones(()), torch.empty_like(logits))
    torch.library.opcheck(OPERATORS.entropy_forward_out.default, arguments)
    arguments = (*ones, None, logits, None, 1.0, False, torch.empty_like(logits))
    torch.library.opcheck(OPERATORS.entropy_backward_out.default, arguments)


def test_compiles_without_a_graph_break():
    def loss(logits, mask):
        sums = entropy_sums(logits * 2, temperature=0.5, mask=mask)
        return sums.entropy / sums.pixels + (sums.marginal / sums.pixels).square().sum()

    logits, mask = draw((2, 5, 8, 9)), draw_mask((2, 5, 8, 9))
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(a, mask)
    plain = loss(b, mask)
    compiled.backward()
    plain.backward()
    assert torch.equal(compiled, plain) and torch.equal(a.grad, b.grad)


def test_autocast_leaves_sums_in_float32():
    logits = draw((1, 4, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.nn.functional.conv1d(logits, torch.eye(4)[:, :, None])
        sums = entropy_sums(half)
    assert half.dtype == torch.bfloat16 and sums.entropy.dtype == torch.float32


def test_double_backward_is_refused_by_name():
    logits = draw((1, 3, 4)).requires_grad_()
    (grad,) = torch.autograd.grad(entropy_sums(logits).entropy, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="entropy_backward has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 1, 3)}, ValueError, "at least 2 classes.* got 1"),
        ({"logits": torch.zeros(2, 0, 3)}, ValueError, "at least 2 classes.* got 0"),
        ({"logits": torch.zeros(4)}, ValueError, r"\(B, K, \*spatial\), got shape \(4,\)"),
        ({"logits": torch.zeros(2, 3, 3, dtype=torch.int32)}, TypeError, "logits .*torch.int32"),
        ({"logits": [[1.0]]}, TypeError, "logits must be a tensor.* got list"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive .* got -1.0"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
        ({"mask": torch.ones(2, 4).bool()}, ValueError, r"mask must be .*\(2, 3\).* got \(2, 4\)"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be a bool tensor, got torch.float32"),
        (
            {"mask": torch.ones(2, 3, device="meta").bool()},
            ValueError,
            "mask must be on the device of the logits, cpu, got meta",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"logits": torch.zeros(2, 5, 3)} | change
    with pytest.raises(error, match=message):
        entropy_sums(**arguments)


def test_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv("EM_KERNELS_ISA", "avx1024")
    with pytest.raises(RuntimeError, match=r"EM_KERNELS_ISA must be .* got 'avx1024'"):
        entropy_sums(torch.zeros(1, 2, 3))


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 16, 33, 50, 64, 100, 128, 200])
@pytest.mark.parametrize("per_sample", [False, True])
def test_cuda_matches_the_cpu(dtype, classes, per_sample):
    logits = draw((3, classes, 37, 21), 4, dtype)
    mask = draw_mask(logits.shape)
    weight = draw((3, classes) if per_sample else (classes,), seed=2)
    results = []
    for device in ("cpu", "cuda"):
        leaf = logits.detach().to(device).requires_grad_()
        sums = entropy_sums(leaf, temperature=0.5, mask=mask.to(device), per_sample=per_sample)
        (sums.entropy + (weight.to(device) * sums.marginal).sum()).backward()
        results.append([x.detach().cpu().double() for x in (*sums, leaf.grad)])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(
            gpu, cpu, rtol=2e-5 if dtype == torch.float32 else 1e-2, atol=1e-4
        )
