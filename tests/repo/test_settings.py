"""Every line of --show-config can be understood alone."""

import pytest
from em_train.catalogue import RECIPES
from em_train.engine import config as configuration
from em_train.synth import CONFIGS as KINDS

RIDDLES = ("What", "Which", "Where", "Who", "Whose", "How", "Of", "That", "There")


CONFIGS = {command: entry.load().Config for command, entry in RECIPES.items()}
CONFIGS |= {f"synth --kind {kind}": config for kind, config in KINDS.items()}


@pytest.mark.parametrize(("command", "config"), list(CONFIGS.items()))
def test_every_key_has_a_meaning_that_stands_alone(command, config):
    keys = list(configuration.keys(config))
    assert len(keys) > 10
    for key in keys:
        assert len(key.meaning.split()) > 1 and key.meaning.endswith("."), (
            f"{key.name}: {key.meaning!r}"
        )
        assert key.meaning.partition(" ")[0] not in RIDDLES, f"{key.name}: {key.meaning!r}"
