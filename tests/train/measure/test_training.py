import math
from types import SimpleNamespace

import torch
from em_train.engine import optim
from em_train.engine.optim import OptimConfig
from em_train.engine.rehearsal import one_player
from em_train.engine.run_config import RunConfig
from em_train.measure import training
from torch import nn


class Slow:
    """A loader whose every batch is waited for."""

    def __init__(self, seconds):
        self.seconds = seconds

    def batches(self, start, stop):
        import time

        for _ in range(start, stop):
            time.sleep(self.seconds)
            yield Some(torch.ones(4, 64))


class Some:
    def __init__(self, raw):
        self.raw = raw

    def to(self, device):
        return self


def recipe(seconds):
    def rehearse(config, device):
        network = nn.Linear(64, 64, bias=False)
        return one_player(
            network,
            Slow(seconds),
            lambda n, b: n(b.raw).square().mean(),
            optim.adamw(network, OptimConfig()),
            clip_norm=5.0,
            run=config.run,
            device=device,
        )

    return SimpleNamespace(rehearse=rehearse)


def test_waiting_and_arithmetic_are_told_apart():
    config = SimpleNamespace(run=RunConfig(device="cpu", precision="fp32"))
    figures = training.training_speed(recipe(0.03), config, steps=3, rounds=2)
    found = {row["case"]: row["ours"] for row in figures["rows"]}
    assert found["samples/s with reading"] < 4 / 0.03
    assert found["samples/s without reading"] > found["samples/s with reading"]
    assert 0.5 < found["share of time waiting for data"] <= 1
    # Forward, and the gradient of the weights; the input has none: 2 products of 2·B·I·O.
    assert math.isclose(found["FLOP of a step"], 2 * 2 * 4 * 64 * 64 / 1e9, rel_tol=1e-3)
    assert 0 < found["model FLOP utilisation"] < 0.1
    assert figures["conditions"]["batch"] == 4 and figures["conditions"]["type"] == "float32"
    training.show("some", figures)


def test_the_share_of_products_is_what_takes_the_time():
    cpu, a, b = torch.device("cpu"), torch.randn(600, 600), torch.randn(600, 600)
    assert training.product_share(lambda: a @ b, cpu) > 0.7
    assert training.product_share(lambda: a.sin(), cpu) == 0
    layers = nn.Sequential(nn.Conv2d(1, 32, 9), nn.Linear(64, 64))
    image = torch.randn(4, 1, 72, 72)
    share = training.product_share(lambda: layers(image).sum().backward(), cpu)
    assert 0.5 < share < 1
