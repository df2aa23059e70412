import pytest
import torch
from em_losses import discriminator_loss, generator_loss, gradient_penalty
from torch import nn

KINDS = ("least-squares", "hinge")


def scores(samples=5, seed=0):
    return torch.randn(2, samples, 1, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2


def slowly(real, fake, kind):
    """Both losses, score by score in Python's float64."""
    real, fake = real.flatten().tolist(), fake.flatten().tolist()
    if kind == "hinge":
        judged = sum(max(0, 1 - r) for r in real) / len(real)
        judged += sum(max(0, 1 + f) for f in fake) / len(fake)
        return judged, -sum(fake) / len(fake)
    judged = sum((r - 1) ** 2 for r in real) / len(real) / 2
    judged += sum(f**2 for f in fake) / len(fake) / 2
    return judged, sum((f - 1) ** 2 for f in fake) / len(fake)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_are_what_the_formulas_say(kind, dtype):
    real, fake = scores().to(dtype)
    judged, made = slowly(real, fake[:3], kind)  # numbers of samples may differ
    for got, want in (
        (discriminator_loss(real, fake[:3], kind=kind), judged),
        (generator_loss(fake[:3], kind=kind), made),
    ):
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(got.item(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_losses(kind):
    real, fake = (one.double().requires_grad_() for one in scores(2, seed=1))
    torch.autograd.gradcheck(lambda r, f: discriminator_loss(r, f, kind=kind), (real, fake))
    torch.autograd.gradcheck(lambda f: generator_loss(f, kind=kind), (fake,))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_are_one_batch(two_ranks, kind):
    real, fake = scores(8).double()
    got = two_ranks(
        lambda r, f, reduce: discriminator_loss(r, f, kind=kind, reduce=reduce), real, fake
    )
    torch.testing.assert_close(got, discriminator_loss(real, fake, kind=kind))
    got = two_ranks(lambda f, reduce: generator_loss(f, kind=kind, reduce=reduce), fake)
    torch.testing.assert_close(got, generator_loss(fake, kind=kind))


def judge(seed=0):
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 3, 4, 2), nn.Softplus(), nn.Conv2d(3, 1, 2))
    return nn.Sequential(*layers).double()


def slopes(network, image, step=1e-5):
    """∇ of the sum of the scores of one image (1, Y, X), pixel by pixel, by central differences."""
    slope = torch.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            sides = []
            for sign in (1, -1):
                moved = image.clone()
                moved[0, y, x] += sign * step
                sides.append(network(moved[None]).sum())
            slope[0, y, x] = (sides[0] - sides[1]) / (2 * step)
    return slope


def test_the_penalty_is_the_squared_slope_of_each_image():
    network, images = judge(), torch.rand(3, 1, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        want = sum(float(slopes(network, image).square().sum()) for image in images) / 3
    images.requires_grad_()
    got = gradient_penalty(network(images), images)
    torch.testing.assert_close(got.item(), want, rtol=1e-6, atol=1e-9)


def test_the_penalty_teaches_the_discriminator():
    """Its gradient by a weight is the difference of two penalties."""
    network, images = judge(), torch.rand(2, 1, 8, 8, dtype=torch.float64).requires_grad_()
    weight = network[0].weight
    (slope,) = torch.autograd.grad(gradient_penalty(network(images), images), weight)
    sides = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 0, 2, 3] += step
        sides.append(gradient_penalty(network(images), images).item())
    assert abs(float(slope[1, 0, 2, 3])) > 1e-6
    torch.testing.assert_close(
        float(slope[1, 0, 2, 3]), (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-9
    )


def test_the_penalty_of_two_ranks_is_that_of_one_batch(two_ranks):
    network = judge()
    images = torch.rand(8, 1, 8, 8, dtype=torch.float64).requires_grad_()

    def penalty(images, reduce=lambda sums: sums):
        return gradient_penalty(network(images), images, reduce=reduce)

    torch.testing.assert_close(two_ranks(penalty, images), penalty(images))


def test_the_penalty_is_computed_in_float32_under_autocast():
    network, images = judge().float(), torch.rand(2, 1, 8, 8).requires_grad_()
    exact = gradient_penalty(network(images), images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradient_penalty(network(images), images)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0)
    rough.backward()
    assert all(p.grad.isfinite().all() for p in (network[0].weight, network[2].weight))


def test_bad_input_is_named():
    real, fake = scores()
    for call in (
        lambda: discriminator_loss(real, fake, kind="log"),
        lambda: generator_loss(fake, kind="log"),
    ):
        with pytest.raises(ValueError, match="kind is 'log'; wanted least-squares or hinge"):
            call()
    images = torch.rand(5, 1, 4, 4)
    with pytest.raises(ValueError, match="requires_grad_"):
        gradient_penalty(real, images)
    with pytest.raises(ValueError, match="do not depend on these images"):
        gradient_penalty(real.clone().requires_grad_(), images.requires_grad_())
    with pytest.raises(ValueError, match="3 scores for 5 images"):
        gradient_penalty(real[:3], images)
