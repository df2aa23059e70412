"""Dense self-supervised learning: classes of content for every pixel, without labels.

    emtrain dense-ssl --data VOLUME --out RUN

A position-free encoder gives every pixel an embedding and a softmax over K classes. Three things are
asked of them (dense/loss.py). What continues through the volume: a small predictor guesses the codes
and embeddings of a slice from its neighbours. What stays the same: two views of that slice, turned,
mirrored and changed in contrast by themselves, must agree. What is there: the embedding describes the
texture around its pixel, as a filter bank measures it. A floor under the entropy of the mean code
keeps the classes from collapsing into one.

    stacks -> views -> encoder -> predictor -> CE, InfoNCE, features + floor(H̄) -> AdamW, EMA
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from em_data import BlockSampler
from em_data.loader import Batch, Loader
from em_losses import kernels_in_use
from em_models import (
    FilterBankConfig,
    Geometry,
    SlicePredictorConfig,
    count_parameters,
    save,
)
from torch import Tensor, nn

from em_train.dense.data import DataConfig, make_loader
from em_train.dense.loss import Chance, LossConfig, terms_of
from em_train.dense.networks import (
    ModelConfig,
    bank_of,
    geometry_of,
    networks_of,
    predictor_config,
)
from em_train.dense.proof_report import prove_run
from em_train.dense.recluster import recluster
from em_train.dense.report import preview, summarise, write_report
from em_train.dense.texture import standardise
from em_train.dense.views import clean_targets, look
from em_train.engine import checkpoint, distributed, optim, precision
from em_train.engine.device import choose_device
from em_train.engine.ema import moving_average
from em_train.engine.optim import OptimConfig
from em_train.engine.progress import Watch, meter, say
from em_train.engine.reading import fingerprint_data, open_volumes
from em_train.engine.rehearsal import Rehearsal, one_player
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain dense-ssl`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=1800))

    def __post_init__(self) -> None:
        classes, floor = self.model.chosen.classes, self.loss.classes_at_least
        if self.model.recluster and self.model.chosen.head == "linear":
            raise ValueError(
                "a linear head has no prototypes to recluster; set model.recluster=false"
            )
        if self.loss.spread == "floor" and floor > classes:
            raise ValueError(
                f"loss.classes_at_least is {floor}, above the {classes} classes of the encoder; lower it"
            )
        if self.model.kind == "dense":  # a timm encoder must be built first
            check_window(self, self.model.encoder.geometry)


def check_window(config: Config, geometry: Geometry) -> None:
    """Refuse a window in which the codes do not lie evenly: turned, they would miss each other."""
    size, margin = config.data.stack.size_vx, predictor_of(config).margin
    least = geometry.crop_size(2 * margin + 1)
    if size < least or (size - least) % geometry.pitch:
        fits = max(least, size - (size - least) % geometry.pitch)
        raise ValueError(
            f"data.stack.size_vx is {size}; the codes must lie evenly in the window, so take "
            f"{fits} or {fits + geometry.pitch} (at least {least})"
        )


def run(config: Config, folder: RunFolder, *, resume: bool = False) -> bool:
    """Train in `folder`; True when all steps are done, False when a signal asked to stop."""
    device = choose_device(config.run.device)
    precision.allow_tf32(config.run.tf32)

    # Data: slices as stored, in stacks around a target slice.
    volumes = open_volumes(config.data)
    loader = make_loader(volumes, config.data, rim=rim(config), seed=config.run.seed)
    data = fingerprint_data(loader)

    # Model: the encoder, the predictor, and the moving average of both.
    torch.manual_seed(config.run.seed)  # here, because what was loaded before may have drawn
    networks = make_networks(config)
    if config.loss.asks_bank:
        standardise(bank_of(networks), loader, config.data)
    networks.to(device)
    if config.run.init and not resume:
        checkpoint.initialise(networks, config.run.init)
    average = moving_average(networks, config.run)
    averaged: Any = average.module
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
    announce(config, folder, loader, networks, device, start)

    # Loop.
    steps, every, words = config.run.steps, config.run.accumulate, ""
    picture = partial(preview, averaged["encoder"], volumes[0], loader.ranges[0], folder)
    slices = config.data.batch_size * every * len(config.data.stack.offsets_z)  # per step
    with StopRequest() as stop, meter("dense-ssl", steps, start) as bar:
        watch = Watch(loader.batches(start * every, steps * every))
        for number, batch in enumerate(watch, start * every + 1):
            step = math.ceil(number / every)
            with precision.autocast(config.run.precision, device):
                teacher = averaged["encoder"] if config.loss.asks_average and step > 1 else None
                terms = measure(teacher, batch.to(device), config)
            if not update(terms["loss"]):
                continue  # more batches belong to this step
            schedule.step()
            average.update_parameters(networks)

            if step % config.run.log_every == 0 or step == steps:
                row: dict[str, float] = distributed.means(terms)
                row |= (
                    update.row() | watch.row("slices_per_s", slices / every) | {"lr": schedule.lr}
                )
                folder.record({"step": step, **row})
                update.check(step, batch, folder.path)
                schedule.measure(row["loss"])
                words = note(row)
            bar.update(step, words)
            last = stop.agreed() or step == steps
            if folder.leads and (step % config.run.picture_every == 0 or step == steps):
                picture(f"step-{step:06d}")
            if step % config.run.checkpoint_every == 0 or last:
                states.save(step)
            if last and step < steps:
                folder.log(f"{stop.name}: saved at step {step}")
                return False

    # Result: weights for use elsewhere, pictures, report.
    if not folder.leads:
        return True
    save(averaged["predictor"], folder.weights / "predictor")
    if config.model.recluster:
        save(averaged["encoder"], folder.weights / "trained")  # what the predictor guesses
        middle, edge = config.data.stack.offsets_z.index(0), rim(config)
        reclustered = recluster(
            averaged["encoder"],
            (
                clean_targets(batch.to(device), middle=middle, rim=edge)
                for batch in loader.batches(0, steps)
            ),
            describe=averaged["describe"].weight[:, :, 0, 0] if config.loss.asks_bank else None,
            texture=config.model.recluster_texture,
            frequency=config.model.recluster_frequency,
            seed=config.run.seed,
        )
        if not reclustered:
            say(
                "the embedding has fewer distinct places than classes; the trained classes are kept"
            )
    save(averaged["encoder"], folder.weights / "encoder")
    picture("classes")
    proof = None
    if not config.data.shuffle_context:
        proof = prove_run(
            averaged["encoder"],
            volumes[0],
            loader.ranges[0],
            folder.path,
            crop_vx=config.data.stack.size_vx,
            seed=config.run.seed,
        )
        say(f"proof: {proof.sentence}")
    summary = summarise(averaged["encoder"], volumes[0], loader.ranges[0], folder, proof)
    write_report(folder, config, summary, proof)
    for name, value in summary.items():
        say(f"{name}: {value}")
    folder.log(f"finished at step {steps}")
    return True


def losses(
    networks: nn.ModuleDict, teacher: nn.Module | None, batch: Batch, config: Config
) -> dict[str, Tensor]:
    """The loss of one batch and the numbers that are logged beside it."""
    data, seed = config.data, config.run.seed
    views = look(
        batch,
        middle=data.stack.offsets_z.index(0),
        count=config.loss.views,
        rim=rim(config),
        seed=seed,
        photometry=data.photometry,
        turn=data.turn_target,
        shuffle=data.shuffle_context,
    )
    chance = Chance(batch.keys, seed, data.batch_size, data.samples_per_epoch)
    return terms_of(networks, teacher, views, config.loss, chance)


def rim(config: Config) -> int:
    """Pixels that the filter bank sees and the encoder does not, at each border."""
    if not config.loss.asks_bank:
        return 0
    geometry, pools = geometry_of(config.model), config.loss.feature_pools
    return max(0, FilterBankConfig().margin + max(pools) // 2 * geometry.pitch - geometry.margin)


def predictor_of(config: Config) -> SlicePredictorConfig:
    """The predictor that fits the encoder and the stack."""
    return predictor_config(config.model, neighbours=len(config.data.stack.offsets_z) - 1)


def make_networks(config: Config) -> nn.ModuleDict:
    """Everything that is trained, and the filter bank."""
    loss = config.loss
    return networks_of(
        config.model,
        predictor_of(config),
        contrasts=bool(loss.contrast_weight),
        textures=len(loss.feature_pools) if loss.asks_bank else 0,
        learned=loss.feature_weight > 0 and not loss.asks_bank,
    )


def rehearse(config: Config, device: torch.device) -> Rehearsal:
    """One training step and its batches: what `emtrain bench-train` measures."""
    volumes = open_volumes(config.data)
    loader = make_loader(volumes, config.data, rim=rim(config), seed=config.run.seed)
    networks = make_networks(config)
    if config.loss.asks_bank:
        standardise(bank_of(networks), loader, config.data)
    networks.to(device)
    averaged: Any = moving_average(networks, config.run).module
    teacher = averaged["encoder"] if config.loss.asks_average else None
    optimiser = optim.adamw(networks, config.optim)
    return one_player(
        networks,
        loader,
        lambda n, batch: losses(n, teacher, batch, config)["loss"],
        optimiser,
        clip_norm=config.optim.clip_norm,
        run=config.run,
        device=device,
    )


def check(config: Config) -> None:
    """Refuse what cannot run before anything is written."""
    choose_device(config.run.device)
    kernels_in_use()
    check_window(config, geometry_of(config.model))
    make_networks(config)
    make_loader(
        open_volumes(config.data, hold=False), config.data, rim=rim(config), seed=config.run.seed
    )


def announce(
    config: Config,
    folder: RunFolder,
    loader: Loader,
    networks: nn.ModuleDict,
    device: torch.device,
    start: int,
) -> None:
    """Say what is going to happen, on the terminal and in the log."""
    for volume, grey in zip(loader.volumes, loader.ranges, strict=True):
        size = " × ".join(map(str, volume.shape))
        unit = volume.voxel_size_nm
        nm = " × ".join(f"{s:g}" for s in unit) + " nm" if unit else "unknown voxel size"
        values = f"{volume.dtype} from {grey.low:.4g} to {grey.high:.4g}"
        say(f"data    {volume.source}: {size} voxels of {nm}, {values}")
    if isinstance(loader.sampler, BlockSampler):
        plan = loader.sampler.plan
        say(
            f"        more than {config.data.memory_gib:g} GiB: {plan.slots * plan.positions} blocks in "
            f"memory at once, each serves {plan.crops} stacks"
        )
    encoder: Any = networks["encoder"]
    field = encoder.geometry.receptive_field
    kind = str(precision.choose_type(config.run.precision, device)).removeprefix("torch.")
    say(
        f"model   {count_parameters(networks):,} parameters, receptive field "
        f"{f'{field} px' if field else 'without end'}, {encoder.config.classes} classes, on {device} "
        f"in {kind}, {'compiled' if kernels_in_use() else 'plain torch'} losses"
    )
    say(f"run     {folder.path}" + (f", going on at step {start}" if start else ""))
    folder.log(f"{'resumed' if start else 'started'} at step {start} on {device}")


def note(row: dict[str, float]) -> str:
    """What the progress bar says."""
    return (
        f"loss {row['loss']:.3f}  information {row['information']:.2f} nat  "
        f"{row['active_classes']:.0f} classes  {row['slices_per_s']:.0f} slices/s"
    )
