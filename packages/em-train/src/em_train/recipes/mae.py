"""A masked autoencoder: learn the structure of raw volumes by filling in what was hidden.

    emtrain mae --data VOLUME --out RUN

Three quarters of the patches of a cube are hidden. An encoder sees the others; a small decoder, thrown
away afterwards, predicts the voxels of the hidden ones, each patch in units of its own contrast. What
the encoder says about a patch can then be used where labels are few: `emtrain probe RUN` measures it.

    cubes (bytes) -> masks -> visible patches -> encoder -> decoder -> error of hidden ones -> AdamW

He et al. 2022, Masked Autoencoders Are Scalable Vision Learners.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
from em_data import Volume, describe
from em_data.loader import Batch, Loader
from em_losses import gradient_error
from em_models import DecoderConfig, Mae, MaeConfig, save, vit3d_size
from em_models.masks import count_hidden
from em_models.patches import grid_of
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from em_train.engine import checkpoint, distributed, optim, precision
from em_train.engine.device import choose_device, recompute
from em_train.engine.ema import moving_average
from em_train.engine.finite import require_finite
from em_train.engine.optim import OptimConfig
from em_train.engine.progress import Watch, meter, say
from em_train.engine.reading import fingerprint_data, open_volumes
from em_train.engine.rehearsal import Rehearsal, one_player
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update
from em_train.mae import validation as mae_check
from em_train.mae.data import (
    DataConfig,
    held_out,
    make_loader,
    split_data,
    token_pitch,
    voxels_of,
)
from em_train.mae.estimate import Estimate, estimate
from em_train.mae.report import preview, save_spectrum, write_report
from em_train.mae.validation import HeldOutErrors
from em_train.measure.training import peak_speed

SETTLED = 5  # steps after which the time of an epoch is foretold


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MaeConfig):
    """What is trained."""

    recompute: bool = False
    """Forget activations and compute them again on the way back: less memory, a third more time."""

    @property
    def network(self) -> MaeConfig:
        """The configuration of the network itself."""
        own = {name: getattr(self, name) for name in MaeConfig.__dataclass_fields__}
        return MaeConfig(**own)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked for."""

    gradient_weight: NonNegativeFloat = 0.0
    """Weight of the error of differences between neighbouring voxels: details count more."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain mae`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            encoder=vit3d_size("tiny"), decoder=DecoderConfig(width=128, depth=2, heads=4)
        )
    )
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3,
            betas=(
                0.9,
                0.95,
            ),  # hidden patches differ from step to step: squares are forgotten soon
            warmup_steps=100,
            weight_decay=0.05,
            clip_norm=1.0,
        )
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=2000))

    def __post_init__(self) -> None:
        grid = grid_of(self.data.cube.size_vx, self.model.encoder.patch_vx)
        count_hidden(grid, self.model.hidden_share, self.model.mask)


def run(config: Config, folder: RunFolder, *, resume: bool = False) -> bool:
    """Train in `folder`; True when all steps are done, False when a signal asked to stop."""
    torch.manual_seed(config.run.seed)
    device = choose_device(config.run.device)
    precision.allow_tf32(config.run.tf32)

    # Data: cubes as stored, and some that are never learned from.
    volumes = open_volumes(config.data)
    split = split_data(volumes, config.data)
    loader = make_loader(volumes, split, config.data, seed=config.run.seed)
    checked = held_out(loader, split, config.data, seed=config.run.seed) if folder.leads else []
    data = fingerprint_data(loader, split.training)

    # Model: the autoencoder and its moving average.
    networks = make_networks(config, volumes).to(device)
    if config.run.init and not resume:
        checkpoint.initialise(networks, config.run.init)
    average = moving_average(networks, config.run)
    averaged: Any = average.module
    costs = cost_of(config, networks, device)
    model: Any = networks["mae"]
    if config.model.recompute:
        recompute([*model.encoder.blocks, *model.blocks])
    if config.run.compile:
        for network in networks.children():
            network.compile()
    measure = distributed.parallel(losses, networks)

    # Optimiser.
    optimiser = optim.adamw(networks, config.optim)
    schedule = optim.Schedule(optimiser, config.optim, config.run.steps)
    scaler = precision.grad_scaler(config.run.precision, device)
    update = Update(networks, optimiser, scaler, clip_norm=config.optim.clip_norm, run=config.run)

    # Resume.
    states = States(
        folder,
        config.run,
        data,
        networks=networks,
        average=average,
        optimiser=optimiser,
        schedule=schedule,
        update=update,
    )
    start = states.begin(resume=resume)
    announce(config, folder, loader, costs, device, start)

    # Loop.
    steps, every, words = config.run.steps, config.run.accumulate, ""
    cubes = config.data.batch_size * every  # per step
    per_epoch = max(1, config.data.samples_per_epoch // cubes)
    numbers: dict[str, Any] = {
        "device": device,
        "kind": config.run.precision,
        "seed": config.run.seed,
    }
    fastest = peak_speed(device, precision.choose_type(config.run.precision, device))
    began, held = time.perf_counter(), float("nan")
    with StopRequest() as stop, meter("mae", steps, start) as bar:
        watch = Watch(loader.batches(start * every, steps * every))
        for number, batch in enumerate(watch, start * every + 1):
            step = math.ceil(number / every)
            with precision.autocast(config.run.precision, device):
                terms = measure(batch.to(device), config)
            if not update(terms["loss"]):
                continue  # more batches belong to this step
            schedule.step()
            average.update_parameters(networks)

            row: dict[str, float] = {}
            if step % config.run.log_every == 0 or step == steps:
                row = distributed.means(terms) | update.row()
                row |= watch.row("cubes_per_s", config.data.batch_size) | {"lr": schedule.lr}
                row["tokens_per_s"] = round(row["cubes_per_s"] * costs.tokens)
                row["gflop_per_s"] = round(row["cubes_per_s"] * costs.flops / 1e9, 1)
                update.check(step, batch, folder.path)
                schedule.measure(row["loss"])
            if folder.leads and (step % per_epoch == 0 or step == steps):
                held = mae_check.model_error(averaged["mae"], checked, config.data, **numbers)
                row["held_out"] = held
            if row:
                folder.record({"step": step, **row})
                words = note(row, held, fastest) if "loss" in row else words
            bar.update(step, words)
            if step == start + SETTLED:
                foretell(per_epoch * (time.perf_counter() - began) / SETTLED, steps - step, began)
            last = stop.agreed() or step == steps
            if folder.leads and step % config.run.picture_every == 0:
                path = folder.images / f"step-{step:06d}.png"
                preview(averaged["mae"], checked[0], config.data, path, **numbers)
            if step % config.run.checkpoint_every == 0 or last:
                states.save(step)
            if last and step < steps:
                folder.log(f"{stop.name}: saved at step {step}")
                return False

    # Result: weights for use elsewhere, pictures, figures, report.
    if not folder.leads:
        return True
    require_finite(averaged, folder.rows())
    save(averaged["mae"].encoder, folder.weights / "encoder")
    save(averaged["mae"], folder.weights / "mae")
    summary = finish(averaged["mae"], checked, config, folder, numbers, fastest)
    for name, value in summary.items():
        say(f"{name}: {value}")
    folder.log(f"finished at step {steps}")
    return True


def losses(networks: nn.ModuleDict, batch: Batch, config: Config) -> dict[str, Tensor]:
    """The loss of one batch and the numbers that are logged beside it."""
    model: Any = networks["mae"]
    # Stochastic depth draws from torch's own generator: here too nothing depends on the steps before.
    torch.manual_seed(hash((config.run.seed, *batch.keys[0])) % 2**63)
    voxels = voxels_of(batch, config.data)
    masks = model.draw(voxels, batch.keys, seed=config.run.seed)
    prediction = model(voxels, masks)  # (B, H, D)
    patch = config.model.encoder.patch_vx
    terms = {"error": mae_check.error_of(prediction, voxels, masks, patch)}
    loss = terms["error"]
    if config.loss.gradient_weight:
        terms["gradient"] = gradient_error(
            prediction,
            voxels.stored,
            patch,
            tokens=masks.hidden,
            scale=mae_check.unit_of(voxels),
            eps=mae_check.EPS,
        )
        loss = loss + config.loss.gradient_weight * terms["gradient"]
    return {"loss": loss, **terms}


def rehearse(config: Config, device: torch.device) -> Rehearsal:
    """One training step and its batches: what `emtrain bench-train` measures."""
    volumes = open_volumes(config.data)
    loader = make_loader(
        volumes, split_data(volumes, config.data), config.data, seed=config.run.seed
    )
    networks = make_networks(config, volumes)
    model: Any = networks["mae"]
    if config.model.recompute:
        recompute([*model.encoder.blocks, *model.blocks])
    optimiser = optim.adamw(networks.to(device), config.optim)
    return one_player(
        networks,
        loader,
        lambda n, batch: losses(n, batch, config)["loss"],
        optimiser,
        clip_norm=config.optim.clip_norm,
        run=config.run,
        device=device,
    )


def check(config: Config) -> None:
    """Refuse what cannot run before anything is written."""
    choose_device(config.run.device)
    volumes = open_volumes(config.data, hold=False)
    split = split_data(volumes, config.data)
    loader = make_loader(volumes, split, config.data, seed=config.run.seed)
    held_out(loader, split, config.data, seed=config.run.seed)
    with torch.device("meta"):
        make_networks(config, volumes)


def make_networks(config: Config, volumes: list[Volume]) -> nn.ModuleDict:
    """The autoencoder, with positions in the unit that fits the volumes."""
    network = config.model.network
    if network.encoder.token_nm is None:
        unit = token_pitch(volumes, network.encoder.patch_vx)
        network = replace(network, encoder=replace(network.encoder, token_nm=unit))
    return nn.ModuleDict({"mae": Mae(network)})


def cost_of(config: Config, networks: nn.ModuleDict, device: torch.device) -> Estimate:
    """What a step will cost."""
    model: Any = networks["mae"]
    return estimate(
        model.config,
        config.data.cube.size_vx,
        distributed.share(config.data.batch_size, "data.batch_size"),
        kind=precision.choose_type(config.run.precision, device),
        recomputed=config.model.recompute,
    )


def announce(
    config: Config,
    folder: RunFolder,
    loader: Loader,
    costs: Estimate,
    device: torch.device,
    start: int,
) -> None:
    """Say what is going to happen, on the terminal and in the log."""
    for volume in loader.volumes:
        say(f"data    {volume}")
    say(
        f"        {describe(loader.sampler, loader.volumes, samples=config.data.samples_per_epoch)}"
    )
    say(f"model   {costs}, on {device}")
    say(f"run     {folder.path}" + (f", going on at step {start}" if start else ""))
    folder.log(f"{'resumed' if start else 'started'} at step {start} on {device}: {costs}")


def foretell(epoch_s: float, left: int, began: float) -> None:
    """Say how long it will take."""
    step_s = (time.perf_counter() - began) / SETTLED
    say(f"speed   {step_s:.2f} s a step: {_span(epoch_s)} an epoch, {_span(left * step_s)} to go")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def note(row: dict[str, float], held: float, fastest: float) -> str:
    """What the progress bar says."""
    used = row["gflop_per_s"] * 1e9 / (fastest * distributed.size())
    checked = "" if math.isnan(held) else f"  held out {held:.3f}"
    return (
        f"error {row['error']:.3f}{checked}  {row['tokens_per_s']:.0f} tokens/s  "
        f"{used:.0%} of a matrix product's speed"
    )


def finish(
    model: Mae,
    checked: list[Batch],
    config: Config,
    folder: RunFolder,
    numbers: dict[str, Any],
    fastest: float,
) -> dict[str, str]:
    """Figures, pictures and the report; what came out, in words for a person."""
    held = mae_check.model_error(model, checked, config.data, **numbers)
    plain, fitted = mae_check.inpainting_errors(model, checked, config.data, seed=config.run.seed)
    figures = HeldOutErrors(error=held, trilinear=plain, trilinear_fitted=fitted)
    points = mae_check.spectrum(model, checked, config.data, **numbers)
    (folder.path / "figures.json").write_text(
        json.dumps(asdict(figures) | {"spectrum": points}, indent=2) + "\n"
    )
    preview(model, checked[0], config.data, folder.images / "filled-in.png", **numbers)
    save_spectrum(points, folder.images / "spectrum.png")
    summary = {
        "steps": f"{config.run.steps}",
        "held-out error": f"{held:.3f} of the variance of a hidden patch; 1 is a flat patch",
        "trilinear in-painting": f"{plain:.3f}: the model has {held / plain:.2f} of its error",
        "in-painting, helped": f"{fitted:.3f} with the mean and contrast that suit it best: the "
        f"model has {held / fitted:.2f} of its error",
        "missed details": ", ".join(f"{share:.0%} at {f:.2f}" for f, share in points)
        + " cycles per voxel",
    }
    rows = [row for row in folder.rows() if "tokens_per_s" in row]
    if later := rows[len(rows) // 2 :]:  # the first ones warm up; none where rows were lost
        speed = {key: median(row[key] for row in later) for key in ("tokens_per_s", "gflop_per_s")}
        used = speed["gflop_per_s"] * 1e9 / (fastest * distributed.size())
        summary["speed"] = (
            f"{speed['tokens_per_s']:,.0f} tokens/s, {speed['gflop_per_s']:,.0f} GFLOP/s: "
            f"{used:.0%} of the speed of a matrix product on this device"
        )
    write_report(folder, config, summary)
    return summary
