"""The table of recipes: whatever starts, measures, predicts or judges a run asks here.

A new recipe is its own file, its folder, presets and one entry in `RECIPES`. Modules are named and
not imported, so that `emtrain --help` answers at once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from em_train.engine.rehearsal import Rehearsal
    from em_train.engine.run_folder import RunFolder


class Recipe(Protocol):
    """How something is learned: a module, or whatever has these four names."""

    Config: Any
    """Frozen dataclass of its configuration, with a group `run`."""

    def check(self, config: Any) -> None:
        """Refuse what cannot run before anything is written."""

    def run(self, config: Any, folder: RunFolder, *, resume: bool = False) -> bool:
        """Train in a folder; True when all steps are done, False when a signal asked to stop."""

    def rehearse(self, config: Any, device: torch.device) -> Rehearsal:
        """One training step and its batches, as `run` makes them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One recipe. Its presets lie in `presets/<command>/`."""

    command: str
    """Of `emtrain`; also the name that its run folders carry."""
    recipe: str
    """Module of the `Recipe`."""
    help: str
    """Text of `emtrain COMMAND --help`."""
    options: str | None = None
    """Module of a command with options of its own; without it, those of every recipe."""
    predict: str | None = None
    """Module whose `plan` says what a run predicts."""
    outputs: tuple[str, ...] = ()
    """What it can predict; the first is the default."""
    evaluate: str | None = None
    """Module whose `evaluate` compares a run with the truth; its `OPTIONS` are the ones it knows."""
    features: str | None = None
    """Module whose `open_run` gives a `FrozenRun`."""
    prove: str | None = None
    """Module whose `prove_stored_run` shows that what was learned is no shortcut."""

    def load(self) -> Recipe:
        """The recipe itself."""
        return importlib.import_module(self.recipe)


RECIPES = {
    entry.command: entry
    for entry in (
        Entry(
            command="dense-ssl",
            recipe="em_train.recipes.dense_ssl",
            help="""Learn classes of content for every pixel, without labels.

            An encoder gives every pixel one of K classes, a predictor guesses the classes of a slice
            from its neighbours. The run folder holds pictures, weights, metrics and `report.html`.

            For instance: `emtrain dense-ssl --data raw.zarr --out runs/first --set run.steps=2000`
            """,
            predict="em_train.dense.predict",
            outputs=("classes", "probabilities", "embedding"),
            evaluate="em_train.dense.evaluate",
            features="em_train.dense.run",
            prove="em_train.dense.proof_report",
        ),
        Entry(
            command="segment",
            recipe="em_train.recipes.segment",
            help="""Learn to label every pixel, from a few labelled slices.

            The run folder holds the weights that did best on the held-out slices, thresholds, scores
            with intervals, pictures of the best and the worst, and `report.html`. With --init and a
            dense-ssl run, the encoder of that run guides the network; of a restore run the whole
            network is taken over, with a new head.

            Of a collection, `images:FOLDER`, some images are held out as a whole.

            For instance: `emtrain segment --data raw.zarr --labels mitochondria=mito.zarr --val-z 880:900`
            """,
            options="em_train.commands.segment",
            predict="em_train.segment.predict",
            outputs=("classes", "probabilities", "instances"),
            evaluate="em_train.segment.evaluate",
        ),
        Entry(
            command="mae",
            recipe="em_train.recipes.mae",
            help="""Learn the structure of volumes by filling in what was hidden: a masked autoencoder.

            The run folder holds the encoder, pictures of what was hidden, filled in and true, the
            error on held-out cubes beside that of in-painting, and `report.html`.

            For instance: `emtrain mae --data raw.zarr --preset laptop`
            """,
            predict="em_train.mae.predict",
            outputs=("embedding",),
            features="em_train.mae.run",
        ),
        Entry(
            command="restore",
            recipe="em_train.recipes.restore",
            help="""Learn to repair images: noise, coarse pixels, uneven background, or all of it.

            Damaged copies of the volumes are made and repaired; or --target names better scans; or the
            noisy volume is all there is (--learn-from noise). The run folder holds the network,
            pictures of damaged, repaired and true crops, the gain in dB on held-out slices, and
            `report.html`. A run is a start for `emtrain segment --init RUN` too.

            For instance: `emtrain restore --data raw.zarr --task denoise --out runs/denoise`
            """,
            options="em_train.commands.restore",
            predict="em_train.restore.predict",
            outputs=("restored",),
            evaluate="em_train.restore.evaluate",
            features="em_train.restore.features",
        ),
    )
}


def entry_of(run: Path) -> Entry:
    """The recipe of a run folder."""
    from em_train.engine.stored import read_config

    command = read_config(run)["command"]
    if command not in RECIPES:
        raise ValueError(
            f"{run} is a run of {command}, which this version does not know; it knows "
            f"{', '.join(RECIPES)}: put back its config.json, or take the version that made it"
        )
    return RECIPES[command]


def module_for(run: Path, use: str) -> Any:
    """The module that does something for the recipe of a run: predict, evaluate, features or prove."""
    entry = entry_of(run)
    name = getattr(entry, use)
    if name is None:
        able = [other.command for other in RECIPES.values() if getattr(other, use)]
        raise ValueError(f"{run} is a run of {entry.command}; this works for {', '.join(able)}")
    return importlib.import_module(name)
