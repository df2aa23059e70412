import pytest
import torch
from em_models import SlicePredictor, SlicePredictorConfig

# margins by hand: one per layer; 1 + 2; 1 + 2 + 4 down and 2 + 1 up; one per block
MARGINS = {"shallow": 2, "dilated": 3, "unet": 10, "jepa": 2}


def seen(predictor):
    """A predictor whose norms have seen data."""
    config = predictor.config
    predictor(torch.randn(4, config.context, config.classes, 25, 25).softmax(2))
    return predictor.eval()


@pytest.mark.parametrize("kind", MARGINS)
def test_without_network_it_predicts_the_mean_of_the_context(kind):
    predictor = SlicePredictor(
        SlicePredictorConfig(kind=kind, classes=5, context=3, width=8)
    ).eval()
    for parameter in predictor.network.parameters():
        torch.nn.init.zeros_(parameter)
    context = torch.randn(2, 3, 5, 25, 24).softmax(2)
    m = MARGINS[kind]
    mean = context.mean(1)[..., m:-m, m:-m]
    torch.testing.assert_close(predictor(context).softmax(1), mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(predictor.from_mean(context).softmax(1), mean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", MARGINS)
def test_a_prediction_sees_its_neighbourhood_alone(kind):
    torch.manual_seed(0)
    config = SlicePredictorConfig(kind=kind, classes=3, context=2, width=8)
    predictor, m = seen(SlicePredictor(config)).double(), MARGINS[kind]
    assert config.margin == predictor.margin == m
    context = torch.rand(1, 2, 3, 27, 28).double()
    before = predictor(context)
    assert before.shape == (1, 3, 27 - 2 * m, 28 - 2 * m)
    for row, column, inside in ((2, 3, True), (2 + 2 * m, 3 + 2 * m, True), (2, 4 + 2 * m, False)):
        changed = context.clone()
        changed[..., row, column] += 1
        difference = (predictor(changed) - before)[0, :, 2, 3].abs().max()
        assert bool(difference > 0) == inside


@pytest.mark.parametrize("kind", MARGINS)
def test_every_place_has_the_same_function(kind):
    predictor = seen(SlicePredictor(SlicePredictorConfig(kind=kind, classes=3, context=2, width=8)))
    context = torch.rand(1, 2, 3, 28, 28)
    whole, part = predictor(context), predictor(context[..., 3:, 1:])
    torch.testing.assert_close(part, whole[..., 3:, 1:])


@pytest.mark.parametrize("kind", MARGINS)
def test_everything_in_it_learns(kind):
    predictor = SlicePredictor(SlicePredictorConfig(kind=kind, classes=3, context=2, width=8))
    predictor(torch.rand(2, 2, 3, 25, 25)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())


def test_embeddings_are_predicted_from_their_mean():
    config = SlicePredictorConfig(given="embedding", classes=6, context=2, layers=1)
    predictor = SlicePredictor(config).eval()
    for parameter in predictor.network.parameters():
        torch.nn.init.zeros_(parameter)
    context = torch.randn(2, 2, 6, 9, 9)
    torch.testing.assert_close(predictor(context), context.mean(1)[..., 1:-1, 1:-1])


def test_what_cannot_be_meant_is_refused():
    predictor = SlicePredictor(SlicePredictorConfig(classes=5, context=2))
    with pytest.raises(ValueError, match="3 slices of 5 classes; wanted 2 of 5"):
        predictor(torch.rand(1, 3, 5, 9, 9))
    with pytest.raises(ValueError, match="at least 1"):
        SlicePredictorConfig(layers=0)
    with pytest.raises(
        ValueError, match="kind is 'deep'; wanted one of shallow, dilated, unet, jepa"
    ):
        SlicePredictorConfig(kind="deep")
    with pytest.raises(ValueError, match="given is 'logits'"):
        SlicePredictorConfig(given="logits")
