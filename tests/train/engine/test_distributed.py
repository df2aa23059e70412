"""Several processes against one that holds the whole batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from em_models import BatchNorm
from em_train.engine import distributed
from torch import nn

pytestmark = pytest.mark.processes

WORLD = 2
SETTINGS = {
    "data": {"batch_size": 4, "stack": {"size_vx": 61}, "photometry": 0.1},
    "model": {"encoder": {"classes": 6, "pools": []}, "predictor_width": 8},
    "loss": {"classes_at_least": 5.9},  # above what an untrained network reaches: the floor is felt
}

# The terms that the default leaves out.
ATTEMPTS = SETTINGS | {
    "loss": {"spread": "sigreg", "variance_weight": 1.0, "equivariance_weight": 1.0},
}
OTHERS = {
    "segment": {
        "data": {
            "volumes": ["synthetic:shape=10x80x80,seed=1"],
            "labels": ["membrane=classes@1", "mitochondria=classes@2"],
            "batch_size": 4,
            "patch_vx": 32,
        },
        "model": {"unet": {"channels": [4, 6, 8]}},
    },
    "mae": {
        "data": {
            "volumes": ["synthetic:shape=24x64x64,seed=1"],
            "batch_size": 4,
            "cube": {"size_vx": [8, 32, 32]},
        },
        "model": {
            "encoder": {
                "width": 48,
                "depth": 2,
                "heads": 2,
                "patch_vx": [2, 8, 8],
                "drop_path": 0.0,
            },
            "decoder": {"width": 24, "depth": 1, "heads": 2},
        },
    },
    "restore": {
        "data": {
            "volumes": ["synthetic:shape=10x80x80,seed=1"],
            "batch_size": 4,
            "patch_vx": 32,
            # Asks for some pixels only; damage is fp32 whatever is asked.
            "task": "denoise",
            "learn_from": "noise",
        },
        "model": {"unet": {"channels": [4, 6, 8]}},
    },
}

# What every rank computes, and the reference with the whole batch: the same code.
COMPUTE = """
import importlib, json, sys
from contextlib import contextmanager
import torch
from em_data import Key
from em_data.loader import Batch
from em_models import BatchNorm
from em_train.engine import distributed
from em_train.engine.config import Layer, resolve
from em_train.recipes import dense_ssl
from torch import nn


@contextmanager
def computed_in(kind):
    "Recipes compute losses in fp32; here all of it in float64, where that is asked for."
    keep = torch.Tensor.float, Batch.image
    if kind == torch.float64:
        torch.Tensor.float = lambda tensor: tensor.double()
        Batch.image = lambda batch, **how: keep[1](batch, **how).double()
    try:
        yield
    finally:
        torch.Tensor.float, Batch.image = keep


def norm_loss(networks, x):
    return networks(x).square().mul(torch.arange(1.0, 4.0).to(x).view(1, 3, 1, 1)).sigmoid().mean()


def gradients(settings, kind, part=slice(None)):
    "Gradients of the dense-ssl loss and of a batch norm, of samples `part`, in type `kind`."
    config = resolve(dense_ssl.Config, [Layer("test", settings)])
    torch.manual_seed(0)
    stack = config.data.stack
    side = stack.size_vx + 2 * dense_ssl.rim(config)
    raw = torch.randint(0, 255, (4, len(stack.offsets_z), side, side), dtype=torch.uint8)
    names = [field for field in Batch.__dataclass_fields__]
    fields = dict.fromkeys(names) | {
        "raw": raw[part],
        "scale": torch.full((4,), 1 / 255)[part],
        "shift": torch.zeros(4)[part],
        "keys": [Key(0, n) for n in range(4)][part],
    }
    networks = dense_ssl.make_networks(config).to(kind)
    norms = nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm(3)).to(kind)
    image = (50 + torch.randn(4, 1, 9, 9, dtype=torch.float64)).to(kind)
    batch = Batch(**fields)
    with computed_in(kind):
        measure = distributed.parallel(dense_ssl.losses, networks)
        terms = measure(None, batch, config)
        terms["loss"].backward()
        measure_norms = distributed.parallel(norm_loss, norms)
        measure_norms(image[part]).backward()
    found = {f"dense-ssl {k}": p.grad for k, p in networks.named_parameters()}
    found |= {f"norm {k}": p.grad for k, p in norms.named_parameters()}
    found |= {f"buffer {k}": b for k, b in networks.named_buffers()}
    found |= {f"norm buffer {k}": b for k, b in norms.named_buffers()}
    # Means over all samples; the loss itself is in part a mean over those of one process.
    reduced = ("pred", "view", "contrast_view", "contrast_context", "information", "cond", "reg",
               "var", "equivariance")
    return found | {f"value {k}": terms[k].detach() for k in reduced if k in terms}


def gradients_of_recipe(name, settings, kind):
    "Gradients of what a recipe trains with, of this process's part of its first batch."
    recipe = importlib.import_module(f"em_train.recipes.{name}")
    config = resolve(recipe.Config, [Layer("test", settings)])
    networks, loader, _, loss = recipe.rehearse(config, torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in networks.parameters():  # whatever was drawn before
        if parameter.requires_grad:
            wide = parameter.dim() > 1
            nn.init.normal_(parameter, 1 - wide, parameter[0].numel() ** -0.5 if wide else 0.1)
    for network in networks.to(kind).children():  # augmentation and damage are fp32 whatever is asked
        network.register_forward_pre_hook(
            lambda _, given: tuple(o.to(kind) if isinstance(o, torch.Tensor) else o for o in given)
        )
    measure = distributed.parallel(loss, networks)
    batch = next(iter(loader.batches(0, 1)))
    with computed_in(kind):
        measure(batch).backward()
    return {k: p.grad for k, p in networks.named_parameters() if p.requires_grad}
"""
RANK = """
with distributed.joined(cuda=False):
    rank = distributed.rank()
    part = slice(2 * rank, 2 * rank + 2)
    settings, attempts, recipes = json.loads(sys.argv[1])
    found = {str(k): gradients(settings, k, part) for k in (torch.float64, torch.float32)}
    found["attempts"] = gradients(attempts, torch.float64, part)
    found["recipes"] = {
        f"{name} {k}": gradients_of_recipe(name, s, k)
        for name, s in recipes.items() for k in (torch.float64, torch.float32)
    }
    sums = distributed.reduce(torch.tensor([1.0 + rank], requires_grad=True))
    told = {
        "largest": distributed.largest(10 * rank),
        "sum": float(sums),
        "share": distributed.share(4, "data.batch_size"),
        "leads": distributed.leads(),
        "means": distributed.means({"own": torch.tensor(1.0 + rank), "same": torch.tensor(2.0)}),
    }
    try:
        distributed.share(5, "data.batch_size")
    except ValueError as error:
        told["uneven"] = str(error)
    try:
        distributed.parallel(norm_loss, nn.Sequential(nn.BatchNorm2d(3)))
    except TypeError as error:
        told["refused"] = str(error)
    torch.save(found | {"told": told}, f"{sys.argv[2]}/rank-{rank}.pt")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes found."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    told = json.dumps([SETTINGS, ATTEMPTS, OTHERS])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPUTE + RANK, told, str(folder)],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(errors)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize(
    ("kind", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_two_ranks_have_the_gradients_of_the_global_batch(ranks, kind, within):
    space = {}
    exec(compile(COMPUTE, "compute", "exec"), space)
    whole = space["gradients"](SETTINGS, kind)
    for rank in ranks:
        found = rank[str(kind)]
        assert found.keys() == whole.keys()
        for what in ("dense-ssl", "norm ", "buffer", "norm buffer", "value"):
            keys = [key for key in whole if key.startswith(what)]
            assert keys
            scale = max(whole[key].double().abs().max() for key in keys)
            for key in keys:
                worst = (found[key].double() - whole[key].double()).abs().max()
                assert worst <= within * max(1.0, scale), f"{key}: {worst:.2e} of {scale:.2e}"
        assert max(whole[k].abs().max() for k in whole if k.startswith("dense-ssl")) > 1e-2
    for key, value in ranks[0][str(kind)].items():
        assert torch.equal(value, ranks[1][str(kind)][key]), f"{key} differs between ranks"


def test_terms_of_earlier_attempts_are_those_of_the_global_batch(ranks):
    space = {}
    exec(compile(COMPUTE, "compute", "exec"), space)
    whole = space["gradients"](ATTEMPTS, torch.float64)
    assert {"value var", "value equivariance", "value reg"} <= whole.keys()
    for rank in ranks:
        for key, value in whole.items():
            torch.testing.assert_close(rank["attempts"][key], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_every_recipe_has_the_gradients_of_the_global_batch(ranks, name, kind, within):
    space = {}
    exec(compile(COMPUTE, "compute", "exec"), space)
    whole = space["gradients_of_recipe"](name, OTHERS[name], kind)
    largest = max(gradient.abs().max() for gradient in whole.values())
    assert largest > 1e-3
    for rank in ranks:
        found = rank["recipes"][f"{name} {kind}"]
        assert found.keys() == whole.keys()
        for key, gradient in whole.items():
            worst = (found[key] - gradient).abs().max()
            assert worst <= within * largest, f"{key}: {worst:.2e} of {largest:.2e}"


def test_ranks_know_each_other(ranks):
    told = [rank["told"] for rank in ranks]
    assert [t["leads"] for t in told] == [True, False]
    assert all(t["largest"] == 10 and t["sum"] == 3.0 and t["share"] == 2 for t in told)
    assert all(t["means"] == {"own": 1.5, "same": 2.0} for t in told)
    assert "data.batch_size is 5, which 2 processes cannot divide" in told[0]["uneven"]
    assert (
        "0 is a BatchNorm2d" in told[1]["refused"] and "em_models.BatchNorm" in told[1]["refused"]
    )


def test_one_process_needs_nobody():
    x = torch.ones(2, requires_grad=True)
    assert distributed.reduce(x) is x
    assert (distributed.rank(), distributed.size(), distributed.leads()) == (0, 1, True)
    assert distributed.means({"loss": torch.tensor(0.1)}) == {"loss": torch.tensor(0.1).item()}
    assert distributed.largest(7) == 7 and distributed.share(5, "x") == 5
    model = nn.Sequential(BatchNorm(2))
    call = distributed.parallel(lambda networks, y: networks(y), model)
    assert torch.equal(call(torch.zeros(3, 2)), torch.zeros(3, 2)) and model[0].reduce is None
    with distributed.joined(cuda=False):
        assert distributed.size() == 1


def test_an_address_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = tmp_path / "run"
        result = subprocess.run(
            [
                *(sys.executable, "-m", "em_train.cli", "dense-ssl", "--out", str(run)),
                *("--data", "synthetic:shape=8x96x96", "--set", "data.stack.size_vx=61"),
                *("--set", "model.encoder.pools=[]"),
                *("--set", "run.device=cpu"),
            ],
            env=os.environ
            | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"cannot meet at 127.0.0.1:{port}: another program uses" in result.stderr
    assert not run.exists()
