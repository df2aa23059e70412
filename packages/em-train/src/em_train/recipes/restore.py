"""Restoration: a network learns to repair images, with or without a discriminator as its adversary.

    emtrain restore --data VOLUME --out RUN

Crops are damaged as a microscope would, or paired with a better scan, or noisy alone; the network
answers with the middle slice repaired. The discriminator, where `loss.adversary` asks for one, tells
repaired from true, seeing the damaged slices beside them (Isola et al. 2017, Pix2Pix; for electron
microscopy Kazimi et al. 2024, arXiv 2402.18286).

    crops -> turns -> damage -> network -> Charbonnier + adversary × verdict -> AdamW, EMA
    truth, repaired -> noise -> discriminator -> least squares or hinge, R1 -> AdamW
    held-out crops -> the same damage at every step -> error, PSNR (best weights)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from em_data import Images
from em_data.loader import Batch, Loader
from em_models import count_parameters, save
from torch import Tensor, nn

from em_train.engine import checkpoint, distributed, optim, precision
from em_train.engine.best import Best
from em_train.engine.device import choose_device
from em_train.engine.ema import moving_average
from em_train.engine.finite import require_finite
from em_train.engine.optim import OptimConfig
from em_train.engine.progress import Watch, meter, say
from em_train.engine.reading import fingerprint_data
from em_train.engine.rehearsal import Rehearsal
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update
from em_train.restore.data import (
    DataConfig,
    Pair,
    held_out,
    make_loader,
    make_pair,
    open_data,
    split_data,
)
from em_train.restore.loss import LossConfig, judge_loss, repair_loss, with_noise
from em_train.restore.networks import (
    ModelConfig,
    initialise,
    is_residual,
    make_judges,
    make_networks,
    restored,
)
from em_train.restore.report import finish, preview
from em_train.restore.validation import look_at


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain restore`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-3, clip_norm=1.0))
    judge_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=4e-4, betas=(0.5, 0.99), clip_norm=10.0)
    )
    # No moving average: the cosine ends in weights that hardly move.
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=2000, ema_decay=0.0))

    def __post_init__(self) -> None:
        stride, side = self.model.network.stride, self.data.patch_vx
        if side % stride:
            raise ValueError(
                f"data.patch_vx is {side}; wanted a multiple of {stride}, for instance "
                f"{-(-side // stride) * stride}"
            )
        if self.data.learn_from in ("noise", "neighbours") and (
            self.loss.adversary or self.loss.structure
        ):
            raise ValueError(
                f"data.learn_from={self.data.learn_from} has no clean truth to show a discriminator or "
                "to compare structures with; set loss.adversary and loss.structure to 0"
            )


def run(config: Config, folder: RunFolder, *, resume: bool = False) -> bool:
    """Train in `folder`; True when all steps are done, False when a signal asked to stop."""
    torch.manual_seed(config.run.seed)
    device = choose_device(config.run.device)
    precision.allow_tf32(config.run.tf32)

    # Data: crops of the slices that are not held out, and damaged ones of those that are.
    parts = split_data(open_data(config.data), config.data)
    loader = make_loader(parts.training, config.data, seed=config.run.seed)
    checked = held_out(parts.held, config.data, seed=config.run.seed)
    data = fingerprint_data(loader, parts.training.regions)

    # Model: the network that repairs with its moving average, and its adversary.
    networks = make_networks(config.model, config.data).to(device)
    if config.run.init and not resume:
        initialise(networks, config.model, config.data, Path(config.run.init))
    average = moving_average(networks, config.run)
    averaged: Any = average.module
    judges = make_judges(config.model, config.data, config.loss).to(device)
    if config.run.compile:
        for network in (*networks.children(), *judges.children()):
            network.compile()
    repair = distributed.parallel(repairing, networks)
    judge = distributed.parallel(judging, judges) if len(judges) else None

    # Optimiser: one for each player.
    optimiser = optim.adamw(networks, config.optim)
    schedule = optim.Schedule(optimiser, config.optim, config.run.steps)
    scaler = precision.grad_scaler(config.run.precision, device)
    update = Update(networks, optimiser, scaler, clip_norm=config.optim.clip_norm, run=config.run)
    best = Best(higher=False, stale_after=config.run.stale_after)
    players: dict[str, Any] = {"networks": networks, "average": average, "optimiser": optimiser}
    players |= {"schedule": schedule, "update": update, "best": best}
    if judge:
        judge_optimiser = optim.adamw(judges, config.judge_optim)
        judge_schedule = optim.Schedule(judge_optimiser, config.judge_optim, config.run.steps)
        judge_update = Update(
            judges,
            judge_optimiser,
            precision.grad_scaler(config.run.precision, device),
            clip_norm=config.judge_optim.clip_norm,
            run=config.run,
        )
        players |= {"judges": judges, "judge_optimiser": judge_optimiser}
        players |= {"judge_schedule": judge_schedule, "judge_update": judge_update}

    # Resume.
    states = States(folder, config.run, data, **players)
    start = states.begin(resume=resume)
    announce(config, folder, loader, networks, judges, device, start)

    # Loop.
    steps, every, words = config.run.steps, config.run.accumulate, ""
    per_epoch = max(1, config.data.samples_per_epoch // (config.data.batch_size * every))
    with StopRequest() as stop, meter("restore", steps, start) as bar:
        watch = Watch(loader.batches(start * every, steps * every))
        for number, batch in enumerate(watch, start * every + 1):
            if best.stale:
                break  # resumed after it had stopped early
            step = math.ceil(number / every)
            pair = pair_of(batch.to(device), config)
            with precision.autocast(config.run.precision, device):
                terms, found = repair(judges, pair, batch, config)
            done = update(terms["loss"])
            if judge:
                with precision.autocast(config.run.precision, device):
                    verdict = judge(pair, found.detach(), batch, config, step)
                judge_update(verdict["judge_loss"])
                terms |= verdict
            if not done:
                continue  # more batches belong to this step
            schedule.step()
            if judge:
                judge_schedule.step()
            average.update_parameters(networks)

            examined = step % per_epoch == 0 or step == steps
            row: dict[str, float] = {}
            if step % config.run.log_every == 0 or step == steps:
                row |= distributed.means(terms) | update.row()
                row |= watch.row("crops_per_s", config.data.batch_size)
                row["lr"] = schedule.lr
                update.check(step, batch, folder.path)
                if judge:
                    row |= {f"judge_{name}": v for name, v in judge_update.row().items()}
                    judge_update.check(step, batch, folder.path)
            is_best = False
            if examined:
                seen = look_at(averaged["network"], checked, config, device)
                row |= seen.row()
                is_best = best.improves(seen.error)
                schedule.measure(seen.error)
                words = str(seen)
            if row:
                folder.record({"step": step, **row})
            bar.update(step, f"loss {row['loss']:.4f}  {words}" if "loss" in row else words)
            last = stop.agreed() or step == steps or (examined and best.stale)
            if folder.leads and step % config.run.picture_every == 0:
                preview(averaged["network"], checked[0], folder, step, config, device)
            if step % config.run.checkpoint_every == 0 or last or is_best:
                states.save(step, best=is_best)
            if last and step < steps and not best.stale:
                folder.log(f"{stop.name}: saved at step {step}")
                return False
            if last:
                break

    # Result: the best weights, figures, pictures, report.
    if not folder.leads:
        return True
    kept = folder.checkpoints / "best"
    if not kept.exists():
        raise FloatingPointError(
            "the error of the held-out crops was never finite; look at the values of their voxels, or "
            "start again with a lower optim.lr"
        )
    state = checkpoint.read(kept)
    average.load_state_dict(state["average"])
    require_finite(averaged, [])  # the best step, whatever came after it
    save(averaged["network"], folder.weights / "network")
    if judge:
        save(judges["discriminator"], folder.weights / "discriminator")
    size_nm = next(iter(loader.volumes)).voxel_size_nm
    summary = finish(averaged["network"], checked, size_nm, folder, config, device, state["step"])
    for name, value in summary.items():
        say(f"{name}: {value}")
    folder.log(f"finished; the best weights are those of step {state['step']}")
    return True


def pair_of(batch: Batch, config: Config) -> Pair:
    """What a batch asks of the network."""
    return make_pair(batch, config.data, seed=config.run.seed)


def repairing(
    networks: nn.ModuleDict, judges: nn.ModuleDict, pair: Pair, batch: Batch, config: Config
) -> tuple[dict[str, Tensor], Tensor]:
    """The loss of the network that repairs, with the numbers that are logged beside it; its answer."""
    found = restored(
        networks["network"], pair.shown, is_residual(config.model, config.data)
    ).float()
    verdict = None
    if len(judges):
        # It judges and does not learn: its weights and their norms stay as they are.
        discriminator = judges["discriminator"].requires_grad_(False).eval()
        noise = config.loss.instance_noise
        seen = with_noise(found, batch.keys, noise, seed=config.run.seed, draw=0)
        verdict = discriminator(seen, pair.shown if config.loss.conditional else None)
    return repair_loss(found, pair, verdict, config.loss), found


def judging(
    judges: nn.ModuleDict, pair: Pair, found: Tensor, batch: Batch, config: Config, step: int
) -> dict[str, Tensor]:
    """The loss of the discriminator, with the numbers that are logged beside it."""
    discriminator = judges["discriminator"].requires_grad_(True).train()
    return judge_loss(
        discriminator, pair, found, batch.keys, config.loss, seed=config.run.seed, step=step
    )


def rehearse(config: Config, device: torch.device) -> Rehearsal:
    """One training step and its batches: what `emtrain bench-train` measures."""
    training, _ = split_data(open_data(config.data), config.data)
    loader = make_loader(training, config.data, seed=config.run.seed)
    networks = make_networks(config.model, config.data).to(device)
    judges = make_judges(config.model, config.data, config.loss).to(device)
    if config.run.init:
        initialise(networks, config.model, config.data, Path(config.run.init))
    average = moving_average(networks, config.run)
    if config.run.compile:
        for network in (*networks.children(), *judges.children()):
            network.compile()
    updates = [
        Update(
            players,
            optim.adamw(players, own),
            precision.grad_scaler(config.run.precision, device),
            clip_norm=own.clip_norm,
            run=config.run,
        )
        for players, own in ((networks, config.optim), (judges, config.judge_optim))
        if len(players)
    ]
    repair = distributed.parallel(repairing, networks)
    judge = distributed.parallel(judging, judges) if len(judges) else None
    made = 0

    def step(batch: Batch) -> None:
        nonlocal made
        made += 1
        pair = pair_of(batch.to(device), config)
        with precision.autocast(config.run.precision, device):
            terms, found = repair(judges, pair, batch, config)
        done = updates[0](terms["loss"])
        if judge:
            with precision.autocast(config.run.precision, device):
                verdict = judge(pair, found.detach(), batch, config, made)
            updates[1](verdict["judge_loss"])
        if done:
            average.update_parameters(networks)

    def loss(players: Any, batch: Batch) -> Tensor:
        return repairing(players, nn.ModuleDict(), pair_of(batch, config), batch, config)[0]["loss"]

    return Rehearsal(networks, loader, step, loss)


def check(config: Config) -> None:
    """Refuse what cannot run before anything is written."""
    choose_device(config.run.device)
    parts = split_data(open_data(config.data, hold=False), config.data)
    with torch.device("meta"):
        make_networks(config.model, config.data)
    make_loader(parts.training, config.data, seed=config.run.seed)
    held_out(parts.held, config.data, seed=config.run.seed)


def announce(
    config: Config,
    folder: RunFolder,
    loader: Loader,
    networks: nn.ModuleDict,
    judges: nn.ModuleDict,
    device: torch.device,
    start: int,
) -> None:
    """Say what is going to happen, on the terminal and in the log."""
    if isinstance(loader.volumes, Images):
        say(f"data    {loader.volumes}")
    else:
        for volume in loader.volumes:
            say(f"data    {volume}")
    network: Any = networks["network"]
    say(
        f"model   {count_parameters(networks):,} parameters, looks {network.config.halo} px around, "
        f"{f'against {count_parameters(judges):,}' if len(judges) else 'no adversary'}, on {device}"
    )
    say(f"task    {config.data.task}, from {config.data.learn_from}")
    say(f"run     {folder.path}" + (f", going on at step {start}" if start else ""))
    folder.log(f"{'resumed' if start else 'started'} at step {start} on {device}")
