import json
from dataclasses import dataclass, field

import pytest
from em_train.engine import config as configuration
from em_train.engine.config import Layer, resolve, set_layer
from em_train.engine.errors import ConfigError
from pydantic import PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Inner group."""

    lr: PositiveFloat = 1e-3
    """Learning
    rate."""
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self):
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must ascend")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A configuration."""

    optim: Optim = field(default_factory=Optim)
    name: str = "run"
    """What it is called."""


def test_later_layers_win():
    layers = [Layer("a", {"optim": {"lr": 0.1}, "name": "x"}), Layer("b", {"optim": {"lr": 0.2}})]
    assert resolve(Tree, layers) == Tree(optim=Optim(lr=0.2), name="x")
    assert resolve(Tree, []) == Tree()


@dataclass(frozen=True, kw_only=True)
class Slow:
    """A recipe that gives a part a default of its own."""

    optim: Optim = field(default_factory=lambda: Optim(lr=1e-5))


def test_the_defaults_of_a_recipe_stay_where_nothing_else_is_given():
    changed = resolve(Slow, [Layer("a", {"optim": {"betas": [0.5, 0.6]}})])
    assert changed == Slow(optim=Optim(lr=1e-5, betas=(0.5, 0.6)))
    assert {key.name: key.default for key in configuration.keys(Slow)}["optim.lr"] == 1e-5


def test_every_error_is_named_at_once_with_the_nearest_right_key():
    layer = set_layer(
        ["optim.lrr=1", "optim.lr=-1", "betas=[1]", "nam=a", "name=[1]", "optim.betas=[2, 1]"]
    )
    with pytest.raises(ConfigError) as caught:
        resolve(Tree, [layer])
    message = str(caught.value)
    assert "did you mean" in message
    assert "optim.lrr (--set): unknown key; did you mean optim.lr?" in message
    assert "nam (--set): unknown key; did you mean name?" in message
    assert "betas (--set): unknown key; did you mean optim.betas?" in message
    assert "optim.lr (--set): Input should be greater than 0, got -1" in message
    assert "name (--set): Input should be a valid string" in message
    with pytest.raises(ConfigError, match="optim .--set.: betas must ascend"):
        resolve(Tree, [set_layer(["optim.betas=[2, 1]"])])


def test_values_that_are_numbers_only_in_name_are_refused():
    for assignment, message in [
        ("optim.lr=inf", "optim.lr: wanted a finite number, got inf"),
        ("optim.lr=true", "optim.lr .--set.: wanted a number, got True"),
    ]:
        with pytest.raises(ConfigError, match=message):
            resolve(Tree, [set_layer([assignment])])


@dataclass(frozen=True, kw_only=True)
class Widths:
    """A group of a network."""

    channels: tuple[int, ...] = (4, 8)
    depth: PositiveInt = 1


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A configuration with a network."""

    model: Widths = field(default_factory=Widths)
    seed: int = 0


@pytest.mark.parametrize("value", ["model.depth=1e18", f"model.channels=[4, {10**30}]"])
def test_networks_without_end_are_refused_by_their_key(value):
    assert resolve(Networks, [set_layer(["seed=99999999999", "model.depth=9"])]).model.depth == 9
    with pytest.raises(ConfigError, match=f"{value.partition('=')[0]} .*no network is so large"):
        resolve(Networks, [set_layer([value])])


def test_a_group_set_at_once_keeps_the_keys_that_it_does_not_name():
    layer = set_layer(["optim.lr=0.5", "optim={betas=[0.1, 0.2]}"])
    assert resolve(Tree, [layer]).optim == Optim(lr=0.5, betas=(0.1, 0.2))


def test_an_unknown_group_is_refused():
    with pytest.raises(ConfigError, match="optimizer.lr"):
        resolve(Tree, [Layer("run.toml", {"optimizer": {"lr": 1}})])
    with pytest.raises(ConfigError, match="optim"):
        resolve(Tree, [set_layer(["optim=5"])])
    with pytest.raises(ConfigError, match="name"):
        resolve(Tree, [set_layer(["name.first=5"])])


def test_values_of_set_are_toml_or_text():
    tree = set_layer(["a=1", "b=x/y.zarr", "c.d=[1, 2]", "e=true", "f=synthetic:seed=1"]).values
    assert tree == {"a": 1, "b": "x/y.zarr", "c": {"d": [1, 2]}, "e": True, "f": "synthetic:seed=1"}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        set_layer(["optim.lr"])


def test_saved_configuration_is_loaded_again(tmp_path):
    config = Tree(optim=Optim(lr=0.5), name="mine")
    path = tmp_path / "config.json"
    configuration.save(config, "tree", path)
    assert resolve(Tree, [configuration.file_layer(path, "tree")]) == config
    assert json.loads(path.read_text())["command"] == "tree"
    with pytest.raises(ConfigError, match="'emtrain tree', not 'emtrain bush'"):
        configuration.file_layer(path, "bush")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no configuration at"):
        configuration.file_layer(tmp_path / "none.toml", "tree")
    (tmp_path / "bad.toml").write_text("lr = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        configuration.file_layer(tmp_path / "bad.toml", "tree")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"list\.json is damaged: .*got \[1\]"):
        configuration.file_layer(tmp_path / "list.json", "tree")
    (tmp_path / "other.toml").write_text('command = "bush"')
    with pytest.raises(ConfigError, match="'emtrain bush', not 'emtrain tree'"):
        configuration.file_layer(tmp_path / "other.toml", "tree")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        set_layer(["=1"])
    with pytest.raises(ConfigError, match="there are: "):
        configuration.preset_layer("nothing", "dense-ssl")


def test_keys_carry_types_defaults_and_meanings():
    keys = {key.name: key for key in configuration.keys(Tree)}
    assert list(keys) == ["optim.lr", "optim.betas", "name"]
    assert keys["optim.lr"].meaning == "Learning rate."
    assert keys["optim.lr"].default == 1e-3 and keys["name"].default == "run"


def test_differences_name_both_values():
    assert configuration.differences(Tree(), Tree(name="b")) == ["name: 'run' ≠ 'b'"]
