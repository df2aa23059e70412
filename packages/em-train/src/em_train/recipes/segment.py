"""Supervised segmentation: from a few labelled slices to a network that labels all of them.

    emtrain segment --data VOLUME --labels mitochondria=LABELS --out RUN
    emtrain segment --data images:FOLDER --labels particles=images:LABELS --out RUN

Random patches, some of them around labelled objects, augmented; slices at the end are held out, with
a gap, and say when to stop, which weights to keep, and from which probability a pixel is of a class.
Of a collection of images some are held out as a whole.

    patches -> augment -> U-Net -> logits -> cross-entropy + Dice over the global batch -> AdamW, EMA
    held-out slices -> tiles -> loss (best weights, early stop), scores, thresholds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from em_data import ImageLabels, Images, ImageSplit, Labels, Split, Volume, augment
from em_data.geometry import Int3
from em_data.loader import Batch, Loader
from em_models import count_parameters, save
from torch import Tensor, nn

from em_train.engine import checkpoint, distributed, optim, precision
from em_train.engine.best import Best
from em_train.engine.device import choose_device
from em_train.engine.distributed import reduce
from em_train.engine.ema import moving_average
from em_train.engine.finite import require_finite
from em_train.engine.optim import OptimConfig
from em_train.engine.progress import Watch, meter, say
from em_train.engine.rehearsal import Rehearsal, one_player
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update
from em_train.segment.data import (
    DataConfig,
    augmentation,
    crop_of,
    fingerprint,
    make_loader,
    open_data,
    planes_of,
    split_data,
)
from em_train.segment.labels import Classes, labelled
from em_train.segment.loss import LossConfig, sums_of, terms_of
from em_train.segment.networks import (
    ModelConfig,
    NetworkConfig,
    freeze,
    initialise,
    layers_of,
    make_networks,
    scale_of,
)
from em_train.segment.report import finish, preview
from em_train.segment.validation import (
    Window,
    check_classes,
    choose_image_windows,
    choose_windows,
    score_windows,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain segment`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    # No moving average: batch norm's statistics are not those of averaged weights, and the cosine ends
    # in weights that hardly move.
    run: RunConfig = field(
        default_factory=lambda: RunConfig(steps=4000, stale_after=10, ema_decay=0.0)
    )

    def __post_init__(self) -> None:
        stride, size = self.network.stride, self.data.patch_vx
        side = stride if isinstance(stride, int) else stride[1]
        if size % side:
            up = -(-size // side) * side
            raise ValueError(
                f"data.patch_vx is {size}; wanted a multiple of {side}, for instance {up}"
            )
        if not isinstance(stride, int) and self.data.depth_vx % stride[0]:
            raise ValueError(
                f"data.depth_vx is {self.data.depth_vx}; wanted a multiple of {stride[0]}"
            )
        if self.model.kind == "unet3d" and self.data.slices is not None:
            raise ValueError(
                "data.slices trains on single slices, which a 3D network cannot; leave one of them out"
            )

    @property
    def network(self) -> NetworkConfig:
        """The network that is trained, but for its number of classes."""
        return self.model.network

    @property
    def patch_vx(self) -> Int3:
        """What the network is shown: slices and their sides."""
        z = self.model.slices or self.data.depth_vx
        return z, self.data.patch_vx, self.data.patch_vx


def run(config: Config, folder: RunFolder, *, resume: bool = False) -> bool:
    """Train in `folder`; True when all steps are done, False when a signal asked to stop."""
    torch.manual_seed(config.run.seed)
    device = choose_device(config.run.device)
    precision.allow_tf32(config.run.tf32)

    # Data: patches of the labelled slices that are not held out, and windows of those that are.
    volumes, labels, classes = open_data(config.data)
    crop = crop_of(volumes, config.data, config.patch_vx)
    split = split_data(volumes, labels, config.data, crop)
    loader = make_loader(volumes, labels, classes, split, config.data, crop, seed=config.run.seed)
    windows = held_out(loader, volumes, labels, classes, split, config)
    data = fingerprint(loader, volumes, labels, split)

    # Model: the network and its moving average.
    networks = make_networks(config.model, config.loss, classes).to(device)
    if config.run.init and not resume:
        initialise(networks, config.model, Path(config.run.init))
    if config.model.freeze_guide:
        freeze(networks)
    average = moving_average(networks, config.run)
    averaged: Any = average.module
    if config.run.compile:
        for network in networks.children():
            network.compile()
    lose = distributed.parallel(losses, networks)

    # Optimiser.
    optimiser = optim.adamw(networks, config.optim, layers_of(networks))
    schedule = optim.Schedule(optimiser, config.optim, config.run.steps)
    scaler = precision.grad_scaler(config.run.precision, device)
    update = Update(networks, optimiser, scaler, clip_norm=config.optim.clip_norm, run=config.run)
    best = Best(higher=False, stale_after=config.run.stale_after)

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
        best=best,
    )
    start = states.begin(resume=resume)
    announce(config, folder, loader, classes, split, networks, device, start)

    # Loop.
    steps, every, words = config.run.steps, config.run.accumulate, ""
    per_epoch = max(1, config.data.samples_per_epoch // (config.data.batch_size * every))
    numbers = (config.loss, device, config.run.precision)
    with StopRequest() as stop, meter("segment", steps, start) as bar:
        watch = Watch(loader.batches(start * every, steps * every))
        for number, batch in enumerate(watch, start * every + 1):
            if best.stale:
                break  # resumed after it had stopped early
            step = math.ceil(number / every)
            with precision.autocast(config.run.precision, device):
                terms = lose(batch.to(device), classes, config)
            if not update(terms["loss"]):
                continue  # more batches belong to this step
            schedule.step()
            average.update_parameters(networks)

            examined = step % per_epoch == 0 or step == steps
            row: dict[str, float] = {}
            if step % config.run.log_every == 0 or step == steps:
                row |= distributed.means(terms) | update.row()
                row |= watch.row("patches_per_s", config.data.batch_size)
                row["lr"] = schedule.lr
                update.check(step, batch, folder.path)
            is_best = False
            if examined:
                found = score_windows(averaged["network"], windows, *numbers)
                row |= found.row(classes.names)
                is_best = best.improves(found.loss)
                schedule.measure(found.loss)
                words = f"validation {found.loss:.3f}  Dice {found.dice.mean():.3f}"
            if row:
                folder.record({"step": step, **row})
            bar.update(step, f"loss {row['loss']:.3f}  {words}" if "loss" in row else words)
            last = stop.agreed() or step == steps or (examined and best.stale)
            if folder.leads and step % config.run.picture_every == 0:
                preview(averaged["network"], windows[0], folder, step, *numbers)
            if step % config.run.checkpoint_every == 0 or last or is_best:
                states.save(step, best=is_best)
            if last and step < steps and not best.stale:
                folder.log(f"{stop.name}: saved at step {step}")
                return False
            if last:
                break

    # Result: the best weights, thresholds, scores, pictures, report.
    if not folder.leads:
        return True
    kept = folder.checkpoints / "best"
    if not kept.exists():
        raise FloatingPointError(
            "the loss of the held-out slices was never finite; look at the values of their voxels, or "
            "start again with a lower optim.lr"
        )
    state = checkpoint.read(kept)
    average.load_state_dict(state["average"])
    require_finite(averaged, [])  # the best step, whatever came after it
    save(averaged["network"], folder.weights / "network")
    found = score_windows(averaged["network"], windows, *numbers, alone=True)
    summary = finish(
        averaged["network"], windows, classes, found, folder, config, device, state["step"]
    )
    for name, value in summary.items():
        say(f"{name}: {value}")
    folder.log(f"finished; the best weights are those of step {state['step']}")
    return True


def losses(
    networks: nn.ModuleDict, batch: Batch, classes: Classes, config: Config
) -> dict[str, Tensor]:
    """The loss of one batch and the numbers that are logged beside it."""
    image, labels, valid = augment.apply(
        batch.image(),
        batch.labels,
        batch.valid,
        batch.keys,
        augmentation(config.data),
        seed=config.run.seed,
        size_vx=config.patch_vx,
        voxel_size_nm=batch.voxel_size_nm[0],
    )
    assert labels is not None and valid is not None
    if config.model.slices:
        middle = config.model.slices // 2
        labels, valid = labels[:, :, middle], valid[:, :, middle]  # (B, V, Y, X)
        outputs = networks["network"](image)
    else:
        outputs = networks["network"](image[:, None])
    truth, known = classes.target(labels, valid)  # (B, C, …) bool
    levels = outputs if isinstance(outputs, list) else [outputs]
    # With deep supervision, every coarser level counts half of the one before it.
    shares = [2.0**-level for level in range(len(levels))]
    loss, parts = torch.zeros((), device=image.device), []
    for level, (share, logits) in enumerate(zip(shares, levels, strict=True)):
        every: Any = (..., *[slice(None, None, 2**level)] * 2)
        sums = sums_of(logits, truth[every], known[every], config.loss)
        parts.append(terms_of(sums, config.loss, reduce))
        loss = loss + share / sum(shares) * (parts[-1]["cross_entropy"] + parts[-1]["dice_loss"])
    return {"loss": loss, **parts[0], "labelled": known.float().mean()}


def rehearse(config: Config, device: torch.device) -> Rehearsal:
    """One training step and its batches: what `emtrain bench-train` measures."""
    volumes, labels, classes = open_data(config.data)
    crop = crop_of(volumes, config.data, config.patch_vx)
    split = split_data(volumes, labels, config.data, crop)
    loader = make_loader(volumes, labels, classes, split, config.data, crop, seed=config.run.seed)
    networks = make_networks(config.model, config.loss, classes).to(device)
    if config.run.init:
        initialise(networks, config.model, Path(config.run.init))
    if config.model.freeze_guide:
        freeze(networks)
    optimiser = optim.adamw(networks, config.optim, layers_of(networks))
    return one_player(
        networks,
        loader,
        lambda n, batch: losses(n, batch, classes, config)["loss"],
        optimiser,
        clip_norm=config.optim.clip_norm,
        run=config.run,
        device=device,
    )


def check(config: Config) -> None:
    """Refuse what cannot run before anything is written."""
    choose_device(config.run.device)
    volumes, labels, classes = open_data(config.data, hold=False)
    crop = crop_of(volumes, config.data, config.patch_vx)
    split = split_data(volumes, labels, config.data, crop)
    make_networks(config.model, config.loss, classes)
    loader = make_loader(volumes, labels, classes, split, config.data, crop, seed=config.run.seed)
    held_out(loader, volumes, labels, classes, split, config)


def held_out(
    loader: Loader,
    volumes: Sequence[Volume],
    labels: Sequence[Labels],
    classes: Classes,
    split: Split | ImageSplit,
    config: Config,
) -> list[Window]:
    """What is looked at of the held-out slices or images."""
    count = config.data.checked_slices
    if isinstance(split, ImageSplit):
        assert isinstance(volumes, Images) and isinstance(labels, ImageLabels)
        held = volumes.take(split.held), labels.take(split.held)
        windows = choose_image_windows(*held, classes, count)
    else:
        windows = choose_windows(volumes, loader.ranges, labels, classes, split, count)
    check_classes(windows, classes)
    return windows


def announce(
    config: Config,
    folder: RunFolder,
    loader: Loader,
    classes: Classes,
    split: Split | ImageSplit,
    networks: nn.ModuleDict,
    device: torch.device,
    start: int,
) -> None:
    """Say what is going to happen, on the terminal and in the log."""
    if isinstance(split, ImageSplit):
        assert isinstance(loader.volumes, Images)
        counts = f"{len(split.training)} images for training, {len(split.held)} held out"
        say("; ".join((f"data    {loader.volumes.folder}: {counts}", *loader.volumes.notes)))
    for volume, training, held in (
        zip(loader.volumes, split.training, split.validation, strict=True)
        if isinstance(split, Split)
        else ()
    ):
        own = planes_of(training, volume, crop_of(loader.volumes, config.data, config.patch_vx))
        other = sorted({box.origin_vx[0] for box in labelled(held.centres or ())})
        say(
            f"data    {volume}; labelled slices: {len(own)} for training (z {own[0]} to {own[-1]}), "
            f"{len(other)} held out" + (f" (z {other[0]} to {other[-1]})" if other else "")
        )
    network: Any = networks["network"]
    say(
        f"model   {count_parameters(networks):,} parameters, reaches {network.config.reach} px, classes "
        f"{', '.join(classes.names)}, on {device}"
    )
    if config.run.init and not start:
        sizes = loader.volumes if isinstance(loader.volumes, Images) else loader.volumes[0]
        if note := scale_of(Path(config.run.init), sizes.voxel_size_nm):
            say(f"init    {note}")
    say(f"run     {folder.path}" + (f", going on at step {start}" if start else ""))
    folder.log(f"{'resumed' if start else 'started'} at step {start} on {device}")
