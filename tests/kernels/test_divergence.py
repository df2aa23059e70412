"""The divergence operator against a float64 formula with torch's own autograd."""

import math

import pytest
import torch
from em_kernels import build_info
from em_kernels.divergence import divergence_sums
from em_kernels.entropy import entropy_sums

OPERATORS = torch.ops.em_kernels
LEVELS = ("baseline", "avx2", "avx512")
AVAILABLE = LEVELS[: LEVELS.index(build_info()["isa_available"]) + 1]


@pytest.fixture(params=AVAILABLE)
def isa(request, monkeypatch):
    monkeypatch.setenv("EM_KERNELS_ISA", request.param)
    return request.param


def draw(shape, sigma=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * sigma).to(dtype)


def draw_mask(shape):
    return draw(shape, seed=5)[:, 0] > -0.5


def reference(prediction, target, *, target_is_logits, temperatures, mask, per_sample):
    prediction, target = (x.reshape(*x.shape[:2], -1) for x in (prediction, target))
    log_q = torch.log_softmax(prediction / temperatures[0], dim=1)  # (B, K, S)
    if target_is_logits:
        log_p = torch.log_softmax(target / temperatures[1], dim=1)
        p = log_p.exp()
        entropy_p = -(p * log_p)
    else:
        p = target
        entropy_p = torch.special.entr(p)
    keep = (
        torch.ones_like(log_q[:, :1]) if mask is None else mask.reshape(len(mask), 1, -1).to(log_q)
    )
    over = 2 if per_sample else (0, 2)
    q = log_q.exp()
    scalars = [(keep * x).sum() for x in (-(p * log_q), -(q * log_q), entropy_p)]
    marginals = [(keep * x).sum(over) for x in (q, p)]
    return scalars[0], scalars[1], marginals[0], scalars[2], marginals[1]


def weights_of(sums):
    return [draw(x.shape, seed=10 + i) for i, x in enumerate(sums[:5])]


@pytest.mark.parametrize("shape", [(2, 50, 37, 11), (3, 7, 65), (300, 11), (2, 130, 9)], ids=str)
@pytest.mark.parametrize("sigma", [1, 4, 30])
@pytest.mark.parametrize("target_is_logits", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_sums_and_gradients_match_float64(isa, shape, sigma, target_is_logits, masked):
    prediction, target = draw(shape, sigma), draw(shape, sigma, seed=1)
    if not target_is_logits:
        target = torch.softmax(target, dim=1)
    mask = draw_mask(shape) if masked else None
    temperatures = (0.7, 0.4) if target_is_logits else (0.7, 1.0)
    leaves = [prediction.requires_grad_(), target.requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    for per_sample in (False, True):
        got = divergence_sums(
            *leaves,
            target_is_logits=target_is_logits,
            temperature=temperatures[0],
            target_temperature=temperatures[1],
            mask=mask,
            per_sample=per_sample,
        )
        wanted = reference(
            *exact,
            target_is_logits=target_is_logits,
            temperatures=temperatures,
            mask=mask,
            per_sample=per_sample,
        )
        pixels = float(got.pixels.sum())
        assert pixels == (mask.sum() if masked else math.prod(shape) / shape[1])
        for a, b in zip(got[:5], wanted, strict=True):
            a, b = a.detach(), b.detach()
            mean = float((b / pixels).abs().max())
            bound = 2e-6 * max(mean, 1) if b.dim() == 0 else 2e-7 * max(mean, 1)
            assert float((a - b).abs().max()) / pixels <= bound
        weights = weights_of(got)
        sum((w * x).sum() for w, x in zip(weights, got[:5], strict=True)).backward()
        sum((w * x).sum() for w, x in zip(weights, wanted, strict=True)).backward()
        for a, b in zip(leaves, exact, strict=True):
            finite = b.grad.isfinite()  # log 0 of a given probability that underflowed
            error = (a.grad - b.grad)[finite].abs().max()
            assert error <= 1e-5 * b.grad[finite].abs().max()
            a.grad = b.grad = None


def test_agrees_with_the_entropy_operator(isa):
    a, b = draw((2, 50, 21, 9), 3), draw((2, 50, 21, 9), 3, seed=1)
    sums = divergence_sums(a, b, temperature=0.5)
    for mine, theirs in (
        (sums[1:3], entropy_sums(a, temperature=0.5)),
        (sums[3:5], entropy_sums(b)),
    ):
        torch.testing.assert_close(mine, tuple(theirs[:2]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target_is_logits", [True, False])
def test_gradcheck(target_is_logits):
    shape = (2, 4, 3, 2)
    a, b = draw(shape, 1, torch.float64), draw(shape, 1, torch.float64, seed=1)
    b = b if target_is_logits else torch.softmax(b, dim=1)

    def sums(x, y):
        options = {"temperature": 0.7, "target_temperature": 0.6, "mask": draw_mask(shape)}
        return divergence_sums(x, y, target_is_logits=target_is_logits, **options)[:5]

    assert torch.autograd.gradcheck(sums, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_needed_gradient_is_made(which):
    leaves = [draw((2, 5, 7)), draw((2, 5, 7), seed=1)]
    leaves[which].requires_grad_()
    divergence_sums(*leaves).cross_entropy.backward()
    both = [x.detach().requires_grad_() for x in leaves]
    divergence_sums(*both).cross_entropy.backward()
    assert torch.equal(leaves[which].grad, both[which].grad)
    assert leaves[1 - which].grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_layouts(isa, dtype):
    a, b = draw((2, 50, 13, 7), 2, dtype), draw((2, 50, 13, 7), 2, dtype, seed=1)
    a = a.to(memory_format=torch.channels_last).requires_grad_()
    b = b.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    exact = [x.detach().float().contiguous().requires_grad_() for x in (a, b)]
    divergence_sums(a, b).cross_entropy.backward()
    divergence_sums(*exact).cross_entropy.backward()
    for x, y in zip((a, b), exact, strict=True):
        torch.testing.assert_close(x.grad.float(), y.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("target_is_logits", [True, False])
def test_opcheck(target_is_logits):
    a, b = draw((2, 5, 6)).requires_grad_(), torch.softmax(draw((2, 5, 6)), 1).requires_grad_()
    for mask in (None, draw_mask((2, 5, 6))):
        for per_sample in (False, True):
            arguments = (
                a,
                b.detach().requires_grad_(),
                target_is_logits,
                mask,
                0.5,
                0.5,
                per_sample,
            )
            torch.library.opcheck(OPERATORS.divergence_forward.default, arguments)


def test_compiles_without_a_graph_break():
    def loss(a, b):
        sums = divergence_sums(a * 2, b)
        return (sums.cross_entropy + sums.target_marginal.square().sum()) / sums.pixels

    leaves = [draw((2, 5, 8)).requires_grad_(), draw((2, 5, 8), seed=1).requires_grad_()]
    plain = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    again = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_same_bits_for_any_number_of_threads(isa):
    leaves = [draw((3, 20, 111, 97)).requires_grad_(), draw((3, 20, 111, 97), seed=1)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums = divergence_sums(*leaves)
            results.append((*sums, *torch.autograd.grad(sums.cross_entropy, leaves[:1])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_double_backward_is_refused_by_name():
    a, b = draw((1, 3, 4)).requires_grad_(), draw((1, 3, 4), seed=1)
    (grad,) = torch.autograd.grad(divergence_sums(a, b).cross_entropy, a, create_graph=True)
    with pytest.raises(NotImplementedError, match="divergence_backward has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(2, 4, 0), (2, 4, 3, 0)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_nothing_to_sum(shape, per_sample):
    leaf = torch.zeros(shape, requires_grad=True)
    sums = divergence_sums(leaf, torch.zeros(shape), per_sample=per_sample)
    assert not any(x.any() for x in sums)
    sums.cross_entropy.backward()
    assert leaf.grad.shape == shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prediction": torch.zeros(2, 1, 3)}, ValueError, "prediction must have at least 2"),
        ({"target": torch.zeros(2, 5, 4)}, ValueError, r"target must have shape \(2, 5, 3\)"),
        ({"target": torch.zeros(2, 5, 3).double()}, TypeError, "target must be torch.float32"),
        ({"target": torch.zeros(2, 5, 3, device="meta")}, ValueError, "target must be on cpu"),
        ({"target_temperature": -2}, ValueError, "target_temperature must be positive"),
        ({"mask": torch.ones(3, 3).bool()}, ValueError, "mask must be"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"prediction": torch.zeros(2, 5, 3), "target": torch.zeros(2, 5, 3)} | change
    with pytest.raises(error, match=message):
        divergence_sums(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("target_is_logits", [True, False])
@pytest.mark.parametrize("per_sample", [False, True])
def test_cuda_matches_the_cpu(target_is_logits, per_sample):
    shape = (3, 50, 37, 21)
    tensors = [draw(shape, 3), draw(shape, 3, seed=1)]
    if not target_is_logits:
        tensors[1] = torch.softmax(tensors[1], dim=1)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.detach().to(device).requires_grad_() for x in tensors]
        options = {"mask": draw_mask(shape).to(device), "per_sample": per_sample}
        sums = divergence_sums(*leaves, target_is_logits=target_is_logits, **options)
        weights = [w.to(device) for w in weights_of(sums)]
        sum((w * x).sum() for w, x in zip(weights, sums[:5], strict=True)).backward()
        results.append([x.detach().cpu() for x in (*sums, *(leaf.grad for leaf in leaves))])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=2e-5, atol=1e-5 * float(cpu.abs().max()))
