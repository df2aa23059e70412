import math

import pytest
import torch
from em_models.positions import interpolated, rotary, sincos, token_places, turned


def test_places_are_physical():
    near = token_places((2, 2, 4), (2, 8, 8), voxel_size_nm=(40, 8, 8), token_nm=64)
    # Twice the tokens of half the size lie at the same places, between them.
    fine = token_places((2, 2, 8), (2, 8, 8), voxel_size_nm=(40, 8, 4), token_nm=64)
    assert near[0].tolist() == [0.625, 0.5, 0.5]
    torch.testing.assert_close(fine.view(-1, 2, 3).mean(1), near)
    counted = token_places((2, 2, 4), (2, 8, 8), voxel_size_nm=(40, 8, 8))
    assert counted[-1].tolist() == [1.5, 1.5, 3.5]


def test_sincos_against_its_formula():
    places = torch.rand(5, 3) * 30
    found = sincos(places, 20)  # 3 frequencies an axis, 2 channels left over
    for token, place in enumerate(places.double().tolist()):
        for axis in range(3):
            for i in range(3):
                angle = place[axis] * 10_000 ** (-i / 3)
                assert found[token, 6 * axis + i] == pytest.approx(math.sin(angle), abs=1e-5)
                assert found[token, 6 * axis + 3 + i] == pytest.approx(math.cos(angle), abs=1e-5)
    assert not found[:, 18:].any()


def test_learned_positions_are_linear_between_entries_and_constant_beyond():
    tables = torch.randn(3, 4, 8, requires_grad=True)
    exact = interpolated(torch.tensor([[0.5, 1.5, 3.5]]), tables)
    torch.testing.assert_close(exact[0], tables[0, 0] + tables[1, 1] + tables[2, 3])
    between = interpolated(torch.tensor([[1.25, 0.0, 99.0]]), tables)
    wanted = 0.25 * tables[0, 0] + 0.75 * tables[0, 1] + tables[1, 0] + tables[2, 3]
    torch.testing.assert_close(between[0], wanted)
    between.sum().backward()
    assert tables.grad[0, 1].mean().item() == pytest.approx(0.75)


def test_rotary_attention_depends_on_distances_alone():
    torch.manual_seed(0)
    qkv = torch.randn(1, 7, 3, 2, 20, dtype=torch.float64)
    places = torch.rand(7, 3) * 9
    scores = []
    for shift in (torch.zeros(3), torch.tensor([3.0, 11.0, 0.5])):
        q, k, v = turned(qkv, rotary(places + shift, 20))
        scores.append(q @ k.mT)
        assert torch.equal(v, qkv[:, :, 2].transpose(1, 2))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    assert not torch.allclose(scores[0], q @ k.mT)
    turn = rotary(places, 20, registers=2)
    assert (turn[:2] == 1).all() and turn.shape == (9, 10)


@pytest.mark.parametrize("samples", [None, 2])
def test_the_way_back_of_a_turn(samples):
    places = torch.rand(5, 3) * 9
    turn = rotary(places, 12).to(torch.complex128)
    if samples:
        turn = torch.stack([turn, turn.roll(1, 0)])
    qkv = torch.randn(2, 5, 3, 2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: turned(x, turn), (qkv,))
    swapped = qkv.detach().transpose(1, 3).contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: turned(x.transpose(1, 3), turn), (swapped,))


def test_sixteen_bits_are_turned_like_thirty_two():
    qkv, turn = torch.randn(2, 5, 3, 2, 12).bfloat16(), rotary(torch.rand(5, 3) * 9, 12)
    for found, wanted in zip(turned(qkv, turn), turned(qkv.float(), turn), strict=True):
        assert torch.equal(found, wanted.bfloat16())
