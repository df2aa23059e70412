"""Dense self-supervised learning: classes of content for every pixel, without labels.

    emtrain dense-ssl --data VOLUME --out RUN

A position-free encoder gives every pixel an embedding and a softmax over K classes. Three things are
asked of them. What continues through the volume: a small predictor guesses the codes and embeddings of
a slice from its neighbours. What stays the same: two views of that slice, turned, mirrored and changed
in contrast by themselves, must agree. What is there: the embedding describes the texture around its
pixel, as a filter bank measures it. A floor under the entropy of the mean code keeps the classes from
collapsing into one.

    stacks -> views -> encoder -> predictor -> CE, InfoNCE, features + floor(H̄) -> AdamW, EMA
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from em_data import BlockSampler
from em_data.loader import Batch, Loader
from em_losses import (
    cross_entropy,
    cross_sample_variance,
    draw_directions,
    draw_places,
    entropy_floor,
    entropy_of_mean,
    entropy_sums_and_probabilities,
    equivariance,
    info_nce,
    kernels_in_use,
    mean_entropy,
    pick,
    sigreg,
)
from em_models import (
    FilterBankConfig,
    Geometry,
    SlicePredictorConfig,
    count_parameters,
    save,
)
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from em_train.dense.data import DataConfig, make_loader
from em_train.dense.features import features_of, standardise
from em_train.dense.networks import (
    ModelConfig,
    bank_of,
    geometry_of,
    networks_of,
    predictor_config,
)
from em_train.dense.report import preview, prove_run, summarise, write_report
from em_train.dense.settle import settle
from em_train.dense.views import clean_targets, look
from em_train.engine import checkpoint, distributed, optim, precision
from em_train.engine.device import choose_device
from em_train.engine.distributed import reduce
from em_train.engine.ema import moving_average
from em_train.engine.optim import OptimConfig
from em_train.engine.progress import Watch, meter, say
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update
from em_train.metrics import effective_classes
from em_train.reading import fingerprint, open_volumes

DIRECTIONS = 64  # of SIGReg, drawn anew every step


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked for. A weight of 0 leaves a term out."""

    target: Literal["online", "detached", "ema"] = "online"
    """Who gives the target codes: the encoder itself, with gradient or without, or its moving average."""
    context_weight: NonNegativeFloat = 0.5
    """Weight of the cross-entropy between the target's codes and those that its neighbours predict."""
    view_weight: NonNegativeFloat = 0.5
    """Weight of the cross-entropy between the codes of two views of the target."""
    spread: Literal["floor", "information", "sigreg"] = "floor"
    """What keeps the classes from falling together: a floor under the entropy H̄ of the mean code; as
    much H̄ as possible; or the distance of the images' mean codes from a normal distribution."""
    spread_weight: NonNegativeFloat = 5.0
    """Weight of that."""
    classes_at_least: Annotated[float, Field(ge=1)] = 30.0
    """The floor under exp(H̄), the number of classes that the mean code is spread over."""
    sharpen_weight: NonNegativeFloat = 0.1
    """Weight of the mean entropy of the pixels' codes: higher makes them more decided."""
    contrast_weight: NonNegativeFloat = 0.5
    """Weight of InfoNCE between two views of a place, and between what its neighbours predict and it."""
    contrast_pixels: PositiveInt = 1024
    """Places of a batch that are told apart."""
    contrast_temperature: PositiveFloat = 0.1
    """Temperature of InfoNCE: lower looks at the most similar places only."""
    feature_weight: NonNegativeFloat = 4.0
    """Weight of the regression of the filter bank's features from the embedding."""
    feature_pools: tuple[PositiveInt, ...] = (1,)
    """Sides of the windows of codes over which these features are averaged, odd: 1 is a place by
    itself, larger ones say what kind of texture it lies in."""
    variance_weight: NonNegativeFloat = 0.0
    """Weight of the variance over samples of the codes at one place, which is made large."""
    equivariance_weight: NonNegativeFloat = 0.0
    """Weight of the squared difference between codes of a turned image and turned codes."""

    @property
    def views(self) -> int:
        """How many times the target is seen."""
        return 2 if self.view_weight or self.contrast_weight or self.equivariance_weight else 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain dense-ssl`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        classes, floor = self.model.chosen.classes, self.loss.classes_at_least
        if self.model.settle and self.model.chosen.head == "linear":
            raise ValueError("a linear head has no prototypes to settle; set model.settle=false")
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
    data = fingerprint(loader)

    # Model: the encoder, the predictor, and the moving average of both.
    torch.manual_seed(config.run.seed)  # here, because what was loaded before may have drawn
    networks = make_networks(config)
    if config.loss.feature_weight:
        standardise(bank_of(networks), loader, config.data)
    networks.to(device)
    if config.run.init and not resume:
        checkpoint.initialise(networks, config.run.init)
    average = moving_average(networks, config.optim)
    averaged: Any = average.module
    if config.run.compile:
        for network in networks.children():
            network.compile()
    measure = distributed.parallel(losses, networks)

    # Optimiser.
    optimiser = optim.adamw(networks, config.optim)
    schedule = optim.Schedule(optimiser, config.optim)
    scaler = precision.grad_scaler(config.run.precision, device)
    update = Update(networks, optimiser, config.optim, scaler)

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
    steps, every, words = config.optim.steps, config.optim.accumulate, ""
    picture = partial(preview, averaged["encoder"], volumes[0], loader.ranges[0], folder)
    slices = config.data.batch_size * every * len(config.data.stack.offsets_z)  # per step
    with StopRequest() as stop, meter("dense-ssl", steps, start) as bar:
        watch = Watch(loader.batches(start * every, steps * every))
        for number, batch in enumerate(watch, start * every + 1):
            step = math.ceil(number / every)
            with precision.autocast(config.run.precision, device):
                teacher = averaged["encoder"] if config.loss.target == "ema" and step > 1 else None
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
    if config.model.settle:
        save(averaged["encoder"], folder.weights / "unsettled")  # what the predictor guesses
        middle, edge = config.data.stack.offsets_z.index(0), rim(config)
        settled = settle(
            averaged["encoder"],
            (
                clean_targets(batch.to(device), middle=middle, rim=edge)
                for batch in loader.batches(0, steps)
            ),
            describe=averaged["describe"].weight[:, :, 0, 0]
            if config.loss.feature_weight
            else None,
            texture=config.model.settle_texture,
            frequency=config.model.settle_frequency,
            seed=config.run.seed,
        )
        if not settled:
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
    weight, stack = config.loss, config.data.stack
    encoder: Any = networks["encoder"]
    predictor: Any = networks["predictor"]
    views = look(
        batch,
        middle=stack.offsets_z.index(0),
        count=weight.views,
        rim=rim(config),
        seed=config.run.seed,
        photometry=config.data.photometry,
        turn=config.data.turn_target,
        shuffle=config.data.shuffle_context,
    )
    b, n = views.context.shape[:2]
    v = views.targets.shape[1]

    # Codes and embeddings of all images; those of the views turned back to lie on the context.
    images = torch.cat([views.context, views.targets], 1).flatten(0, 1)[:, None]
    codes = encoder(images)
    logits, embedding = (maps.float().unflatten(0, (b, n + v)) for maps in codes[:2])
    sums, p = entropy_sums_and_probabilities(logits.flatten(0, 1))
    p = p.unflatten(0, (b, n + v))  # (B, N + V, K, Y, X)
    m = predictor.margin
    inner = (..., slice(m, -m), slice(m, -m))
    seen = views.back(embedding[:, n:])  # (B, V, E, Y, X)
    if teacher is None:
        target = views.back(p[:, n:])  # (B, V, K, Y, X)
        target = target.detach() if weight.target == "detached" else target
    else:
        with torch.no_grad():
            logits_ema = teacher(images).logits.float().unflatten(0, (b, n + v))
            target = views.back(logits_ema[:, n:].softmax(2))
    terms = {}

    # What continues through the volume, and what stays the same between views.
    prediction = predictor(p[:, :n]).float()  # (B, K, Y − 2m, X − 2m)
    terms["pred"] = cross_entropy(target[:, 0][inner], prediction, reduce=reduce)
    loss = weight.context_weight * terms["pred"]
    if weight.view_weight:
        first, second = views.back(logits[:, n:]).unbind(1)
        terms["view"] = 0.5 * (
            cross_entropy(target[:, 0], second, reduce=reduce)
            + cross_entropy(target[:, 1], first, reduce=reduce)
        )
        loss = loss + weight.view_weight * terms["view"]
    if weight.contrast_weight:
        project, foresee = networks["project"], networks["foresee"]
        keys = project(seen.flatten(0, 1)).unflatten(0, (b, v))
        foreseen = project(foresee(embedding[:, :n]))  # (B, D, Y − 2m, X − 2m)
        for name, one, other in (
            ("contrast_context", foreseen, keys[:, 0][inner]),
            ("contrast_view", keys[:, 0], keys[:, 1]),
        ):
            places = places_of(batch, one, config)
            terms[name] = info_nce(
                pick(one, places),
                pick(other, places),
                temperature=weight.contrast_temperature,
                gather=distributed.gather,
                reduce=reduce,
            )
            loss = loss + weight.contrast_weight * terms[name]

    # What is there: the features of the target as it was before any change.
    if weight.feature_weight:
        with torch.no_grad():
            features = features_of(bank_of(networks), views.clean, encoder, weight.feature_pools)
        described = networks["describe"](seen.flatten(0, 1)).float().unflatten(0, (b, v))
        terms["feature"] = F.smooth_l1_loss(described, features[:, None].expand_as(described))
        loss = loss + weight.feature_weight * terms["feature"]

    # Keep the codes spread over classes, decide every pixel.
    spread, undecided = entropy_of_mean(sums, reduce=reduce), mean_entropy(sums, reduce=reduce)
    if weight.spread == "sigreg":
        samples = p.mean((3, 4)).flatten(0, 1)  # (B·(N + V), K)
        epoch, number = batch.keys[0]
        step = (epoch * config.data.samples_per_epoch + number) // config.data.batch_size
        key = (config.run.seed, step)  # the same for all processes
        directions = draw_directions(DIRECTIONS, samples.shape[1], key=key).to(samples)
        terms["reg"] = sigreg(samples, directions, reduce=reduce)
    elif weight.spread == "information":
        terms["reg"] = -spread
    else:
        terms["reg"] = entropy_floor(spread, floor=math.log(weight.classes_at_least))
    loss = loss + weight.spread_weight * terms["reg"] + weight.sharpen_weight * undecided

    # Two penalties of earlier attempts, off by default.
    if weight.variance_weight:
        terms["var"] = cross_sample_variance(p[:, n], reduce=reduce)
        loss = loss - weight.variance_weight * terms["var"]
    if weight.equivariance_weight:
        still, turned = views.back(p[:, n:]).unbind(1)
        terms["equivariance"] = equivariance(still, turned, turn=lambda maps: maps, reduce=reduce)
        loss = loss + weight.equivariance_weight * terms["equivariance"]
    with torch.no_grad():
        most, hard = p.max(2)
        plain = predictor.from_mean(p[:, :n])
        beyond = cross_entropy(target[:, 0][inner], plain, reduce=reduce) - terms["pred"]
    return {
        "loss": loss,
        **terms,
        "information": spread - terms["pred"],
        "beyond_mean": beyond,
        "mean_classes": spread.exp(),
        "cond": undecided,
        "max_probability": most.mean(),
        "active_classes": torch.tensor(effective_classes(hard)),
        "unique_classes": torch.tensor(float(hard.unique().numel())),
    }


def places_of(batch: Batch, maps: Tensor, config: Config) -> Tensor:
    """Pixels of maps (B, C, Y, X) to be told apart, as many of each sample: (M,)."""
    pixels, count = maps[0, 0].numel(), config.loss.contrast_pixels // config.data.batch_size
    drawn = [draw_places(pixels, max(2, count), key=(config.run.seed, *key)) for key in batch.keys]
    return torch.cat([number * pixels + one for number, one in enumerate(drawn)])


def rim(config: Config) -> int:
    """Pixels that the filter bank sees and the encoder does not, at each border."""
    if not config.loss.feature_weight:
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
        textures=len(loss.feature_pools) if loss.feature_weight else 0,
    )


def rehearse(
    config: Config, device: torch.device
) -> tuple[nn.Module, Loader, Callable[[nn.ModuleDict, Batch], Tensor]]:
    """Networks, batches and the loss of a batch: what `emtrain bench-train` measures."""
    volumes = open_volumes(config.data)
    loader = make_loader(volumes, config.data, rim=rim(config), seed=config.run.seed)
    networks = make_networks(config)
    if config.loss.feature_weight:
        standardise(bank_of(networks), loader, config.data)
    return networks.to(device), loader, lambda n, batch: losses(n, None, batch, config)["loss"]


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
