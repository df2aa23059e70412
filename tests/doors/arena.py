"""What cases are tried with: a sound volume with labels, and a finished run of each recipe."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from doors.sound import truth, write_image
from doors.trial import Bench

ENGINE = ("run.steps=2", "optim.warmup_steps=1", "run.device=cpu", "run.log_every=1")
ENGINE += ("run.checkpoint_every=1", "run.picture_every=1")
# The least that each recipe trains with.
SMALL = {
    "dense-ssl": (
        *("data.batch_size=1", "data.stack.size_vx=61", "model.encoder.pools=[]"),
        *("model.encoder.classes=6", "loss.classes_at_least=4", "model.predictor_width=8"),
    ),
    "segment": (
        *("data.batch_size=1", "data.patch_vx=32", "data.depth_vx=2", "data.samples_per_epoch=4"),
        *("model.unet.channels=[4,6,8]", "model.unet3d.channels=[3,4]"),
        *("model.unet3d.kernels_z=[1,3]", "model.unet3d.strides_z=[1]"),
    ),
    "mae": (
        *("data.batch_size=2", "data.cube.size_vx=[4,32,32]", "data.checked_cubes=1"),
        *("data.samples_per_epoch=4", "data.split.last_z=0.35", "model.encoder.width=24"),
        *("model.encoder.depth=1", "model.encoder.heads=2", "model.encoder.patch_vx=[2,8,8]"),
        *("model.decoder.width=12", "model.decoder.depth=1", "model.decoder.heads=2"),
    ),
    "restore": (
        *("data.batch_size=1", "data.patch_vx=32", "data.samples_per_epoch=4"),
        *("data.checked_crops=1", "model.unet.channels=[4,6,8]", "loss.adversary=.01"),
        *("model.discriminator.channels=4", "model.discriminator.layers=1"),
    ),
}
Z = ("--fit-z", "0:4", "--score-z", "6:8")
LABELS = ("--labels", "one=classes@1", "--labels", "two=classes@2")


def typed(text: str) -> tuple[str, ...]:
    """A command line without spaces in its words."""
    return tuple(text.split())


def settings(recipe: str) -> tuple[str, ...]:
    """The smallest training of a recipe, as options."""
    return tuple(part for one in (*SMALL[recipe], *ENGINE) for part in ("--set", one))


def learn(recipe: str, data: str, *more: str) -> tuple[str, ...]:
    return (recipe, f"--data={data}", *more, "--out", "run", *settings(recipe))


def build(folder: Path) -> Bench:
    """The sound volume and the three runs, made with the command itself."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    good = write_image(folder / "good.zarr", labels=truth())
    bench = Bench(folder, {"@good": str(good), "@classes": f"{good}/labels/classes"})
    for recipe in SMALL:
        run, at = folder / f"run-{recipe}", folder / f"making-{recipe}"
        for inside in ("here", "tmp"):
            (at / inside).mkdir(parents=True)
        labels = LABELS if recipe == "segment" else ()
        command = [recipe, "--data", str(good), *labels, "--out", str(run), *settings(recipe)]
        code, _ = bench.run(command, at)
        if code:
            raise RuntimeError(f"emtrain {' '.join(command)}: {(at / 'err').read_text()}")
        bench.fixed[f"@run_{recipe.partition('-')[0]}"] = str(run)
        if recipe == "dense-ssl":  # leaves proof.json; so short a run fails it
            bench.run(["prove", str(run), "--audit-steps", "0"], at)
        shutil.rmtree(at)
    return bench
