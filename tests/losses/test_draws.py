import torch
from em_losses import draw_directions, draw_places, pick
from em_losses.draws import generator


def test_draws_depend_on_their_key_alone():
    state = torch.get_rng_state()
    first = draw_places(1000, 50, key=(3, 17))
    torch.rand(7)
    assert torch.equal(first, draw_places(1000, 50, key=(3, 17)))
    for other in ((3, 18), (4, 17), (17, 3)):
        assert not torch.equal(first, draw_places(1000, 50, key=other))
    torch.set_rng_state(state)
    draw_directions(3, 4, key=(0,))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.rand(1, generator=generator((1,))) != torch.rand(1, generator=generator((2,)))


def test_places_are_different_pixels_and_all_where_there_are_few():
    places = draw_places(60, 50, key=(0,))
    assert len(places) == 50 and len(places.unique()) == 50 and places.max() < 60
    assert sorted(draw_places(7, 50, key=(0,)).tolist()) == list(range(7))


def test_directions_are_of_unit_length_and_have_no_preference():
    directions = draw_directions(4000, 6, key=(0, 1))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4000))
    assert directions.mean(0).abs().max() < 0.03
    covariance = directions.T @ directions / 4000
    torch.testing.assert_close(covariance, torch.eye(6) / 6, atol=0.02, rtol=0)


def test_the_same_places_are_picked_with_their_gradient():
    maps = torch.randn(3, 5, 4, 6, requires_grad=True)
    places = torch.tensor([0, 23, 24, 71, 30])
    picked = pick(maps, places)
    expected = torch.stack([maps[p // 24, :, p % 24 // 6, p % 6] for p in places])
    assert torch.equal(picked, expected)
    picked.sum().backward()
    vectors = maps.detach()[..., 0, 0]  # a pixel of each sample
    assert torch.equal(pick(vectors, torch.tensor([2, 0])), vectors[[2, 0]])
    assert int(maps.grad.sum()) == 5 * 5 and int((maps.grad != 0).sum()) == 25
