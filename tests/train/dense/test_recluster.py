"""Clusters of an embedding as classes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from em_models.head import read_codes
from em_train.dense.recluster import recluster, stretching
from em_train.judge.codes import effective_classes

K, E = 6, 8


class Pixels(torch.nn.Module):
    """An encoder whose embedding of a place is the row of a table that its grey value names."""

    def __init__(self, table, prototypes):
        super().__init__()
        self.table = table
        self.prototypes = torch.nn.Parameter(prototypes)
        self.register_buffer("offset", torch.zeros(len(prototypes)))
        self.config = SimpleNamespace(sharpness=8.0)

    def stretch(self, by):
        self.table = self.table @ by

    def forward(self, image):
        raw = self.table[image[:, 0].long()].movedim(-1, 1)
        return read_codes(raw, self.prototypes, sharpness=8.0, offset=self.offset)


@pytest.fixture
def separated():
    """K directions far from each other, each with some spread, and images of places of all of them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(E)[:K]
    table = (centres[:, None] + 0.05 * torch.randn(K, 40, E, generator=generator)).flatten(0, 1)
    images = torch.randint(len(table), (20, 1, 30, 30), generator=generator)
    return centres, table, images


def codes(encoder, images):
    with torch.no_grad():
        return encoder(images).logits.argmax(1)


def test_clusters_are_found_and_keep_the_numbers_of_the_old_codes(separated):
    centres, table, images = separated
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    vague = F.normalize(centres[order] + 0.4 * centres[order].roll(1, 0), dim=1)
    encoder = Pixels(table, vague)
    before = codes(encoder, images)
    recluster(encoder, [images], frequency=0.5, seed=0)
    torch.testing.assert_close(codes(encoder, images), before)
    cosines = F.cosine_similarity(encoder.prototypes, centres[order], dim=1)
    assert cosines.min() > 0.999
    torch.testing.assert_close(
        encoder.offset.exp().square(), torch.full((K,), 1 / K), atol=0.02, rtol=0
    )


def test_frequency_leaves_rare_classes_less_room():
    generator = torch.Generator().manual_seed(0)
    table = F.normalize(torch.randn(400, E, generator=generator), dim=1)
    images = torch.randint(400, (20, 1, 30, 30), generator=generator)
    used = []
    for frequency in (0.0, 1.0, 3.0):
        encoder = Pixels(table, torch.randn(K * 4, E, generator=generator))
        recluster(encoder, [images], frequency=frequency, seed=0)
        used.append(effective_classes(codes(encoder, images)))
    assert used[0] > used[1] > used[2]
    assert used[0] > 0.8 * K * 4


def test_no_more_images_are_taken_than_are_needed(separated):
    _, table, images = separated
    taken = []

    def stream():
        for _ in range(100):
            taken.append(1)
            yield images

    encoder, again = (Pixels(table, torch.eye(E)[:K]) for _ in range(2))
    recluster(encoder, stream(), frequency=0.5, seed=0)
    assert len(taken) < 5
    recluster(again, [images] * len(taken), frequency=0.5, seed=0)
    assert torch.equal(encoder.prototypes, again.prototypes)


def test_an_embedding_without_differences_is_left_alone():
    encoder = Pixels(torch.ones(4, E), torch.eye(E)[:K])
    images = torch.randint(4, (2, 1, 20, 20))
    assert not recluster(encoder, [images], frequency=0.5, seed=0)
    assert torch.equal(encoder.prototypes, torch.eye(E)[:K])


def test_texture_decides_which_places_are_alike():
    """Two properties of a place: a loud one, and a faint one that is its texture."""
    generator = torch.Generator().manual_seed(0)
    loud, faint = torch.randint(2, (2, 400), generator=generator)
    table = torch.zeros(400, E)
    table[:, 0], table[:, 1], table[:, 2] = 0.5 * (2 * loud - 1), 0.1 * (2 * faint - 1), 5
    table += 0.01 * torch.randn(400, E, generator=generator)
    images = torch.randint(400, (20, 1, 30, 30), generator=generator)
    describe = torch.zeros(1, E)
    describe[0, 1] = 1
    found = {}
    for share in (0.0, 0.9):
        encoder = Pixels(table.clone(), torch.randn(2, E, generator=generator))
        recluster(encoder, [images], frequency=0, seed=0, describe=describe, texture=share)
        code = codes(encoder, torch.arange(400).view(1, 1, 20, 20)).flatten()
        found[share] = [bool(((code == code[0]) == (one == one[0])).all()) for one in (loud, faint)]
    assert found == {0.0: [True, False], 0.9: [False, True]}


def test_the_share_of_texture():
    generator = torch.Generator().manual_seed(0)
    points, describe = (
        torch.randn(500, E, generator=generator),
        torch.randn(3, E, generator=generator),
    )
    by = stretching(points, describe, 0.3)
    stretched = (points @ by).var(0).sum()
    torch.testing.assert_close(by, by.T)
    torch.testing.assert_close(stretched, points.var(0).sum() / 0.7)
    still = torch.linalg.qr(describe.T, mode="complete").Q[:, 3:]  # which no feature is read from
    torch.testing.assert_close(by @ still, still, rtol=1e-4, atol=1e-5)
