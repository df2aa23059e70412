"""The proof passes what is honest and, above all, fails what is not."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from em_data import GreyRange, open_volume
from em_models import DenseEncoder, DenseEncoderConfig
from em_models.geometry import Geometry
from em_models.head import DenseCodes
from em_train.dense.position import (
    crops_of_one_place,
    overlapping_boxes,
    position_leak,
    position_leak_of_places,
    random_boxes,
    read_crops,
)
from em_train.dense.proof import (
    GATES,
    Proof,
    ProofFigures,
    grey_shares,
    in_words,
    judge,
    proof_figures,
)
from em_train.judge.baselines import grey_centres, grey_codes

GREY = GreyRange(0, 255)


class Labeller(torch.nn.Module):
    """An encoder with one code in every pixel that a function of the crop gives: (N, Y, X) -> same."""

    def __init__(self, codes, k=50, pitch=4, margin=0):
        super().__init__()
        self.codes, self.k, self.margin = codes, k, margin
        self.config = SimpleNamespace(classes=k)
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.geometry = Geometry(
            pitch=pitch,
            receptive_field=2 * margin + 1,
            trimmed=2 * margin,
            position_free=True,
            reason="",
        )

    def forward(self, image, dense=False):
        step, m = 1 if dense else self.geometry.pitch, self.margin
        height, width = image.shape[-2:]
        codes = self.codes(image[:, 0])[:, m : height - m : step, m : width - m : step]
        logits = F.one_hot(codes, self.k).permute(0, 3, 1, 2).float()
        return DenseCodes(logits, logits, logits)


def of_position(images):
    n, height, width = images.shape
    rows, columns = (torch.arange(size) * 7 // size for size in (height, width))
    return (rows[:, None] * 7 + columns).expand(n, -1, -1)


def of_grey(images):
    return (images * 49.99).long()


def of_texture(images):
    """The signs of six differences in the neighbourhood: up to 64 codes that no grey level tells."""
    shifts = [(0, 3), (3, 0), (3, 3), (3, -3), (0, 6), (6, 0)]
    bits = [images > images.roll(shift, (-2, -1)) for shift in shifts]
    return sum(bit.long() << i for i, bit in enumerate(bits)) % 50


def noise_volume(shape=(6, 300, 300), sigma=2.0, seed=0):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, sigma, sigma))
    flat = noise.argsort(axis=None).argsort() / noise.size  # every grey value is as frequent
    return open_volume((flat.reshape(shape) * 255.99).astype(np.uint8))


VOLUME = noise_volume()


@pytest.fixture(scope="module")
def honest():
    return proof_figures(Labeller(of_texture, margin=6), VOLUME, GREY, crop_vx=65, crops=200)


@pytest.fixture(scope="module")
def positional():
    return proof_figures(Labeller(of_position), VOLUME, GREY, crop_vx=65, crops=200)


@pytest.fixture(scope="module")
def quantised():
    return proof_figures(Labeller(of_grey), VOLUME, GREY, crop_vx=65, crops=200)


def missed(figures):
    return {verdict.title for verdict in judge(figures) if verdict.passed is False}


def test_a_code_of_content_passes(honest):
    assert missed(honest) == set()
    assert honest.shift_kappa == pytest.approx(1) and honest.dense_shift_kappa == pytest.approx(1)
    assert abs(honest.position_leak) < 0.01 and honest.null.startswith("every map rolled")
    assert honest.effective_classes > 20 and honest.grey_share < 0.3


def test_a_code_of_position_fails_though_it_is_the_same_in_all_slices(positional):
    assert positional.position_leak > 0.7
    assert positional.z_kappa == pytest.approx(1) and positional.photo_kappa == pytest.approx(1)
    assert {"position leak", "shift κ", "shift κ, every pixel"} <= missed(positional)
    assert positional.shift_kappa < 0.5


def test_a_quantised_grey_fails_by_its_grey_share_alone(quantised):
    assert missed(quantised) == {"grey share"}
    assert quantised.grey_share > 0.9 and quantised.grey_sigma == 0


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_quantised_averages_of_grey_fail_at_every_scale(sigma):
    """Also k-means on grey averaged over a scale between those that are looked at."""
    boxes = random_boxes(VOLUME, 65, 60, 0, 4)
    images = read_crops(VOLUME, GREY, boxes)[:, 0]
    codes = grey_codes(images, grey_centres(images, 50, sigma=sigma), sigma=sigma)
    shares = grey_shares(codes[:, 8:57:4, 8:57:4], images, first=8, step=4)
    assert max(shares.values()) > 0.5
    texture = of_texture(images)[:, 8:57:4, 8:57:4]
    assert max(grey_shares(texture, images, first=8, step=4).values()) < 0.3


def test_position_leak_is_the_share_of_information():
    rng = torch.Generator().manual_seed(0)
    rows = (torch.arange(12) // 2).expand(400, 12, 12).mT
    assert position_leak(rows) == pytest.approx(1, abs=0.05)
    content = torch.randint(6, (400, 12, 12), generator=rng)
    assert position_leak(content) == pytest.approx(0, abs=0.005)
    mixed = torch.where(torch.rand(400, 12, 12, generator=rng) < 0.5, rows, content)
    # I of a code that is the row with probability ½, over H = log 6.
    p = torch.full((6, 6), 1 / 12 / 6) + torch.eye(6) / 12
    expected = (p * (p * 36).log()).sum().item() / math.log(6)
    assert position_leak(mixed) == pytest.approx(expected, abs=0.01)
    assert position_leak(torch.zeros(10, 12, 12, dtype=torch.long)) == 0


def test_small_volumes_tie_place_to_position_and_are_not_blamed_for_it():
    """A bright corner of a volume of two crops lies in the corner of the crops as well."""
    y, x = np.mgrid[:140, :140]
    voxels = np.broadcast_to(((y // 20) * 7 + x // 20) * 5, (3, 140, 140)).astype(np.uint8)
    volume, encoder = open_volume(voxels.copy()), Labeller(lambda images: (images * 49.99).long())
    boxes = overlapping_boxes(volume, 65, 200, 0, 4)
    codes = encoder(read_crops(volume, GREY, boxes)).logits.argmax(1)
    assert position_leak(codes) > 0.1  # place in the volume, not position in the crop
    assert position_leak_of_places(codes, boxes, 4) == pytest.approx(0, abs=1e-9)
    figures = proof_figures(encoder, volume, GREY, crop_vx=65, crops=200)
    assert figures.null == "codes of the same pixels in other crops"
    assert "position leak" not in missed(figures)
    cheat = proof_figures(Labeller(of_position), volume, GREY, crop_vx=65, crops=200)
    assert cheat.position_leak > 0.2 and "position leak" in missed(cheat)


def test_crops_without_room_say_nothing():
    volume = noise_volume((2, 66, 66))
    figures = proof_figures(Labeller(of_texture, margin=6), volume, GREY, crop_vx=65, crops=40)
    assert math.isnan(figures.position_leak) and math.isnan(figures.shift_kappa)
    verdict = {v.title: v for v in judge(figures)}["position leak"]
    assert verdict.passed is False and "no room to move" in verdict.reason
    with pytest.raises(ValueError, match="exceeds volume"):
        proof_figures(Labeller(of_texture), volume, GREY, crop_vx=67, crops=40)
    with pytest.raises(ValueError, match="no room"):
        crops_of_one_place(Labeller(of_texture), noise_volume((2, 65, 80)), GREY, crop_vx=65)


def test_crops_that_the_widest_blur_does_not_fit_into_are_measured():
    figures = proof_figures(Labeller(of_grey), VOLUME, GREY, crop_vx=29, crops=40)
    assert figures.grey_share > 0.8 and figures.grey_sigma == 0
    images = read_crops(VOLUME, GREY, random_boxes(VOLUME, 29, 10, 0, 4))[:, 0]
    shares = grey_shares(of_grey(images)[:, ::4, ::4], images, first=0, step=4)
    assert max(shares) == 5.7


def test_crops_with_few_codes_are_compared_where_they_overlap():
    figures = proof_figures(Labeller(of_texture, margin=26), VOLUME, GREY, crop_vx=65, crops=40)
    assert figures.shift_kappa == pytest.approx(1) and figures.dense_shift_kappa == pytest.approx(1)
    alone = proof_figures(Labeller(of_texture, margin=32), VOLUME, GREY, crop_vx=65, crops=40)
    assert math.isnan(alone.shift_kappa) and "shift κ" in missed(alone)


def test_a_single_slice_has_no_neighbour():
    figures = proof_figures(
        Labeller(of_texture, margin=6), noise_volume((1, 200, 200)), GREY, crop_vx=49
    )
    assert math.isnan(figures.z_kappa) and missed(figures) <= {"position leak"}


def test_one_class_everywhere_fails():
    figures = proof_figures(
        Labeller(lambda images: torch.zeros(images.shape, dtype=torch.long)),
        VOLUME,
        GREY,
        crop_vx=65,
        crops=40,
    )
    assert {"effective classes", "largest class", "shift κ"} <= missed(figures)


def test_few_classes_need_not_be_twelve(honest):
    for used, passed in ((6.1, True), (5.9, False)):
        few = ProofFigures(**{**vars(honest), "classes": 10, "effective_classes": used})
        verdict = {v.title: v for v in judge(few)}["effective classes"]
        assert verdict.passed is passed and verdict.bound == "≥ 6"


def test_every_gate_stands_at_its_bound_and_names_the_figure(honest):
    for gate in GATES:
        for beyond, passed in ((0, True), (1e-6, False)):
            value = gate.bound + (beyond if gate.sense == "≤" else -beyond)
            figures = ProofFigures(**{**vars(honest), "audit_information": 0.0, gate.figure: value})
            verdicts = {v.title: v for v in judge(figures)}
            assert verdicts[gate.title].passed is passed
            assert all(v.passed for title, v in verdicts.items() if title != gate.title)
            proof = Proof(figures=figures, verdicts=judge(figures))
            assert proof.passed is passed
            assert ("FAILED" in proof.sentence) is not passed
            assert passed or gate.missed in proof.sentence
            words = in_words(proof)
            assert next(iter(words)) == "verdict" and gate.title in words
            json.dumps(proof.as_json(), allow_nan=False)


def test_what_was_not_measured_is_open(honest):
    proof = Proof(figures=honest, verdicts=judge(honest))
    assert proof.passed is None and "not measured: shuffle audit" in proof.sentence


def test_one_place_looks_the_same_through_every_crop_of_an_honest_encoder():
    torch.manual_seed(0)
    for encoder in (
        Labeller(of_texture, margin=6),
        DenseEncoder(DenseEncoderConfig(classes=7)).eval(),
    ):
        raw, maps = crops_of_one_place(encoder, VOLUME, GREY, crop_vx=65)
        assert len(maps) == 4 and all(m.shape == raw.shape for m in maps)
        assert all(torch.equal(maps[0], m) for m in maps[1:])
    raw, maps = crops_of_one_place(Labeller(of_position), VOLUME, GREY, crop_vx=65)
    assert not torch.equal(maps[0], maps[1])
    raw, (first, *_) = crops_of_one_place(Labeller(of_grey), VOLUME, GREY, crop_vx=65)
    assert torch.equal(first, (raw * 49.99).long())  # the picture shows the place it says
