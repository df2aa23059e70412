import pytest
import torch
from em_models import SlicePredictor, SlicePredictorConfig


def test_without_network_it_predicts_the_mean_of_the_context():
    predictor = SlicePredictor(SlicePredictorConfig(classes=5, context=3)).eval()
    torch.nn.init.zeros_(predictor.network[-1].weight)
    torch.nn.init.zeros_(predictor.network[-1].bias)
    context = torch.randn(2, 3, 5, 9, 8).softmax(2)
    mean = context.mean(1)[..., 2:-2, 2:-2]
    torch.testing.assert_close(predictor(context).softmax(1), mean, atol=1e-3, rtol=0)


def test_a_prediction_sees_its_neighbourhood_alone():
    predictor = SlicePredictor(SlicePredictorConfig(classes=5, context=2, layers=1)).eval()
    context = torch.rand(1, 2, 5, 9, 9).requires_grad_()
    predictor(context)[0, :, 2, 3].sum().backward()
    rows, columns = context.grad.sum((0, 1, 2)).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 3, 5)


def test_wrong_context_is_named():
    predictor = SlicePredictor(SlicePredictorConfig(classes=5, context=2))
    with pytest.raises(ValueError, match="3 slices of 5 classes; wanted 2 of 5"):
        predictor(torch.rand(1, 3, 5, 9, 9))
    with pytest.raises(ValueError, match="at least 1"):
        SlicePredictorConfig(layers=0)
