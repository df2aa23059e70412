"""What a segmentation starts from: the parts of a restorer, or a refusal that names both networks."""

import json

import em_models
import pytest
import torch
from em_train.engine.config import Layer, resolve
from em_train.engine.errors import CheckpointError
from em_train.engine.run_folder import new_run
from em_train.recipes import restore, segment
from em_train.restore.networks import make_networks as make_restorer
from em_train.segment import networks

VOLUME = "synthetic:shape=10x80x80,seed=1"
SIZE = (40.0, 8.0, 8.0)
KINDS = {
    "unet": {"unet": {"channels": [4, 6, 8], "down": "stride", "up": "bilinear"}},
    "hrnet": {"hrnet": {"channels": [4, 6], "modules": 2}},
    "timm-hrnet": {"timm_hrnet": {"width": 8, "stem_stride": 4}},
}


def restored(path, kind="unet", size_nm=SIZE, done=True, **settings):
    """What `emtrain restore` leaves behind, with weights that were never trained."""
    groups = {
        "data": {"volumes": [VOLUME], "patch_vx": 64, "slices": 3},
        "model": {"kind": kind, **KINDS[kind], **settings},
    }
    config = resolve(restore.Config, [Layer("test", groups)])
    folder = new_run(path, config, "restore")
    network = make_restorer(config.model, config.data)["network"]
    with torch.no_grad():
        for one in network.state_dict().values():
            if one.is_floating_point():
                one.uniform_(0.1, 0.9)  # statistics of norms too
    em_models.save(network, folder.weights / "network")
    if done:
        (path / "restoration.json").write_text(json.dumps({"voxel_size_nm": size_nm}))
    folder.close()
    return network


def configured(init, *layers, **model):
    own = {"data": {"volumes": [VOLUME], "labels": ["a=classes@1", "b=classes@2"], "patch_vx": 64}}
    start = Layer("--init", networks.network_of(str(init)))
    return resolve(segment.Config, [start, Layer("own", own), Layer("--set", {"model": model})])


def made(config):
    return networks.make_networks(config.model, config.loss, segment.open_data(config.data)[2])


@pytest.mark.parametrize(
    ("kind", "take", "parts"),
    [
        ("unet", "whole", {"encoder", "downs", "bottleneck", "ups", "decoder"}),
        ("unet", "encoder", {"encoder", "downs", "bottleneck"}),
        ("unet", "decoder", {"ups", "decoder"}),
        ("hrnet", "whole", {"stem", "downs", "exchanges"}),
        ("timm-hrnet", "whole", {"backbone", "joins"}),
        ("timm-hrnet", "encoder", {"backbone"}),
    ],
)
def test_what_is_asked_for_is_taken_over_and_the_head_is_new(tmp_path, kind, take, parts):
    source = restored(tmp_path / "run", kind)
    config = configured(tmp_path / "run", take=take)
    assert (config.model.kind, config.model.slices) == (kind, 3)
    found = made(config)
    fresh = {key: value.clone() for key, value in found["network"].state_dict().items()}
    networks.initialise(found, config.model, tmp_path / "run")
    state, theirs = found["network"].state_dict(), source.state_dict()
    assert {key.partition(".")[0] for key in state} > parts
    for key, value in state.items():
        of_run = key.partition(".")[0] in parts
        assert torch.equal(value, (theirs if of_run else fresh)[key]), key
    assert found["network"].config.classes == 2


def test_the_head_and_what_is_dropped_are_free(tmp_path):
    restored(tmp_path / "run")
    config = configured(tmp_path / "run", unet={"deep_supervision": True, "dropout": 0.5})
    networks.initialise(made(config), config.model, tmp_path / "run")
    assert config.model.unet.up == "bilinear" and config.model.unet.dropout == 0.5


def test_another_network_is_refused_and_both_are_named(tmp_path):
    restored(tmp_path / "hr", "hrnet")
    with pytest.raises(CheckpointError, match=r"hr holds .* kind hrnet, and model\.kind is unet"):
        networks.check_start(configured(tmp_path / "hr", kind="unet").model, tmp_path / "hr")
    with pytest.raises(ValueError, match=r"take is encoder, and an hrnet has no encoder"):
        networks.check_start(configured(tmp_path / "hr", take="encoder").model, tmp_path / "hr")
    restored(tmp_path / "unet")
    other = configured(tmp_path / "unet", unet={"channels": [4, 6, 16]})
    with pytest.raises(CheckpointError, match=r"channels: \(4, 6, 8\) ≠ \(4, 6, 16\)") as told:
        networks.initialise(made(other), other.model, tmp_path / "unet")
    assert "\n" not in str(told.value)


def test_a_run_that_is_not_done_and_one_that_restores_nothing_are_refused(tmp_path):
    restored(tmp_path / "half", done=False)
    with pytest.raises(CheckpointError, match=r"not done; finish the run first"):
        networks.network_of(str(tmp_path / "half"))
    em_models.save(
        em_models.UNet3d(em_models.UNet3dConfig()), tmp_path / "half" / "weights" / "network"
    )
    (tmp_path / "half" / "restoration.json").write_text('{"voxel_size_nm": null}')
    assert networks.network_of(str(tmp_path)) == {}
    part = networks.ModelConfig(take="encoder")
    with pytest.raises(ValueError, match=r"take is encoder, and .* is no restore run"):
        networks.check_start(part, tmp_path)
    em_models.save(
        em_models.PatchDiscriminator(em_models.PatchDiscriminatorConfig()),
        tmp_path / "half" / "weights" / "network",
    )
    with pytest.raises(CheckpointError, match=r"holds a PatchDiscriminator; wanted the network"):
        networks.network_of(str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("learned", "shown", "said"),
    [
        (SIZE, (40.0, 8.5, 8.5), False),
        (SIZE, (40.0, 16.0, 16.0), True),
        (SIZE, (30.0, 4.0, 4.0), True),
        (None, (40.0, 8.0, 8.0), False),
        (SIZE, None, False),
    ],
)
def test_pixels_of_another_size_are_worth_a_word(tmp_path, learned, shown, said):
    restored(tmp_path / "run", size_nm=learned)
    found = networks.scale_of(tmp_path / "run", shown)
    assert bool(found) == said
    if said:
        assert f"pixels of 8 nm, and these are {shown[1]:g} nm; data.at_nm" in found


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "unet", "unet": {"down": "stride", "up": "bilinear"}},
        {
            "kind": "unet3d",
            "unet3d": {"channels": [3, 4, 5], "kernels_z": [1, 3, 3], "strides_z": [1, 2]},
        },
        {"kind": "hrnet", **KINDS["hrnet"]},
        {"kind": "timm-hrnet", **KINDS["timm-hrnet"]},
    ],
    ids=["unet", "unet3d", "hrnet", "timm-hrnet"],
)
def test_all_but_the_head_learns_slower_each_layer_once(tmp_path, model):
    found = made(configured(tmp_path, **model))
    layers = [{*layer.parameters()} for layer in networks.layers_of(found)]
    assert sum(map(len, layers)) == len(set().union(*layers)) and all(layers)
    named = dict(found["network"].named_parameters())
    heads = {p for name, p in named.items() if name.startswith(("head.", "heads."))}
    assert heads and set().union(*layers) == set(named.values()) - heads
    first = next(iter(named.values()))
    assert first in layers[0]
