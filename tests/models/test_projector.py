import pytest
import torch
from em_models import Projector, ProjectorConfig


def test_every_place_is_projected_by_itself():
    projector = Projector(ProjectorConfig(inputs=6, hidden=8, outputs=3))
    embedding = torch.randn(2, 6, 5, 4)
    projector(embedding)
    projector.eval()
    whole = projector(embedding)
    assert whole.shape == (2, 3, 5, 4)
    torch.testing.assert_close(projector(embedding[..., 2:3, 1:2]), whole[..., 2:3, 1:2])


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ProjectorConfig(hidden=0)
