"""Dense self-supervised learning: classes of content for every pixel, without labels.

    emtrain dense-ssl --data VOLUME --out RUN

A position-free encoder gives every pixel a softmax over K classes. A small predictor guesses the
codes of the middle slice of a stack from the codes of its neighbours. The cross-entropy between the
two says how well content continues through the volume; a floor under the entropy of the mean code
keeps the classes from collapsing into one. The target slice is turned and mirrored by itself, so
that its codes cannot say where or which way up a pixel lies.

    stacks -> encoder -> codes -> predictor -> CE(target, prediction) + floor(H̄) -> AdamW, EMA
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from em_data import (
    BlockSampler,
    GreyRange,
    StackConfig,
    Stream,
    Volume,
    augment,
    choose_sampler,
    open_volume,
)
from em_data.loader import Batch, Loader
from em_losses import (
    cross_entropy,
    entropy_floor,
    entropy_of_mean,
    entropy_sums_and_probabilities,
    kernels_in_use,
    mean_entropy,
)
from em_models import (
    DenseEncoder,
    DenseEncoderConfig,
    SlicePredictor,
    SlicePredictorConfig,
    count_parameters,
    save,
)
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from em_train import checkpoint, optim
from em_train.dense_report import agreement, preview, write_report
from em_train.device import Device, Precision, autocast, choose_device
from em_train.errors import CheckpointError
from em_train.metrics import effective_classes
from em_train.optim import OptimConfig
from em_train.progress import meter, say
from em_train.run_folder import RunFolder
from em_train.stop import StopRequest

SAME_SCALE = 1.1  # largest ratio of the voxel sizes of volumes that are learned together


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    volumes: tuple[str, ...] = ("synthetic:",)
    """Addresses of raw volumes; `synthetic:` is generated on the fly."""
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume. Without it, the finest."""
    stack: StackConfig = field(default_factory=StackConfig)
    batch_size: PositiveInt = 8
    """Stacks per step."""
    samples_per_epoch: PositiveInt = 2000
    """Stacks after which an epoch is counted."""
    memory_gib: PositiveFloat = 2.0
    """Memory for voxels in GiB. Volumes that fit are held; larger ones are read block by block."""
    threads: PositiveInt = 2
    """Reading threads."""
    photometry: NonNegativeFloat = 0.3
    """Strength of the changes of contrast, brightness and gamma of every slice."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained."""

    encoder: DenseEncoderConfig = field(default_factory=DenseEncoderConfig)
    predictor_width: PositiveInt = 64
    """Channels of the predictor's hidden layers."""
    predictor_layers: PositiveInt = 2
    """3 × 3 convolutions of the predictor."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked for."""

    target: Literal["online", "ema"] = "online"
    """Who gives the target codes: the encoder itself, with gradient, or its moving average."""
    classes_at_least: Annotated[float, Field(ge=1)] = 30.0
    """Floor under exp(H̄), the number of classes that the mean code is spread over."""
    floor_weight: NonNegativeFloat = 5.0
    """Weight of that floor."""
    sharpen_weight: NonNegativeFloat = 0.1
    """Weight of the mean entropy of the pixels' codes: higher makes them more decided."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How it is run. Keys other than the seed may change when a run is resumed."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the samples and the augmentation."""
    device: Device = "auto"
    """auto, cuda, mps or cpu."""
    precision: Precision = "auto"
    """auto (bf16 on CUDA, fp32 elsewhere), fp32 or bf16."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    picture_every: PositiveInt = 100
    """Steps between pictures of the classes."""
    checkpoint_every: PositiveInt = 200
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `emtrain dense-ssl`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        encoder, size = self.model.encoder, self.data.stack.size_vx
        least = encoder.crop_size(2 * self.model.predictor_layers + 1)
        if size < least or (size - least) % encoder.pitch:
            fits = max(least, size - (size - least) % encoder.pitch)
            raise ValueError(
                f"data.stack.size_vx is {size}; the codes must lie evenly in the window, so take "
                f"{fits} or {fits + encoder.pitch} (at least {least})"
            )
        if self.loss.classes_at_least > self.model.encoder.classes:
            raise ValueError(
                f"loss.classes_at_least is {self.loss.classes_at_least}, above the "
                f"{self.model.encoder.classes} classes of model.encoder.classes; lower it"
            )


def run(config: Config, folder: RunFolder, *, resume: bool = False) -> bool:
    """Train in `folder`; True when all steps are done, False when a signal asked to stop."""
    torch.manual_seed(config.run.seed)
    device = choose_device(config.run.device)

    # Data: slices as stored, in stacks around a target slice.
    volumes = open_volumes(config.data)
    loader = make_loader(volumes, config)
    data = fingerprint(loader)

    # Model: the encoder, the predictor, and the moving average of both.
    networks = make_networks(config).to(device)
    average = AveragedModel(
        networks, multi_avg_fn=get_ema_multi_avg_fn(config.optim.ema_decay), use_buffers=True
    ).eval()
    averaged: Any = average.module

    # Optimiser.
    optimiser = optim.adamw(networks, config.optim)
    schedule = optim.cosine(optimiser, config.optim)

    # Resume.
    parts: dict[str, Any] = {
        "networks": networks,
        "average": average,
        "optimiser": optimiser,
        "schedule": schedule,
    }

    def snapshot(step: int) -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpoint.save(folder.checkpoints, step, state | {"data": data})

    start = 0
    if resume and checkpoint.exists(folder.checkpoints):
        state = checkpoint.load(folder.checkpoints)
        if state["data"] != data:
            raise CheckpointError(
                f"{folder.path} was trained on other data: then {state['data']}, now {data}; give it "
                "the same volumes, or start a new run with another --out"
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start = state["step"]
    else:
        snapshot(0)  # a run that is killed early can be resumed too
    folder.rewind(start)
    announce(config, folder, loader, networks, device, start)

    # Loop.
    steps, since, clock, words = config.optim.steps, start, time.perf_counter(), ""
    picture = partial(preview, averaged["encoder"], volumes[0], loader.ranges[0], folder)
    with StopRequest() as stop, meter("dense-ssl", steps, start) as bar:
        for step, batch in enumerate(loader.batches(start, steps), start + 1):
            with autocast(config.run.precision, device):
                teacher = averaged["encoder"] if config.loss.target == "ema" and step > 1 else None
                terms = losses(networks, teacher, batch.to(device), config)
            optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()
            norm = nn.utils.clip_grad_norm_(networks.parameters(), config.optim.clip_norm)
            if not (terms["loss"].isfinite() and norm.isfinite()):
                raise FloatingPointError(
                    f"step {step}: loss {terms['loss'].item():g}, gradient norm {norm.item():g}; "
                    "nothing of this step was kept. Look at the data of samples "
                    f"{batch.keys[0].number} to {batch.keys[-1].number} of epoch "
                    f"{batch.keys[0].epoch}, or start again with a lower optim.lr"
                )
            optimiser.step()
            schedule.step()
            average.update_parameters(networks)

            if step % config.run.log_every == 0 or step == steps:
                speed = (
                    (step - since) * batch.raw[:, :, 0, 0].numel() / (time.perf_counter() - clock)
                )
                since, clock = step, time.perf_counter()
                row: dict[str, float] = {name: value.item() for name, value in terms.items()}
                row |= {"lr": float(schedule.get_last_lr()[0]), "slices_per_s": round(speed, 1)}
                folder.record({"step": step, **row})
                words = note(row)
            bar.update(step, words)
            last = step == steps or stop.name is not None
            if step % config.run.picture_every == 0 or step == steps:
                picture(f"step-{step:06d}")
            if step % config.run.checkpoint_every == 0 or last:
                snapshot(step)
            if last and step < steps:
                folder.log(f"{stop.name}: saved at step {step}")
                return False

    # Result: weights for use elsewhere, pictures, report.
    save(averaged["encoder"], folder.weights / "encoder")
    save(averaged["predictor"], folder.weights / "predictor")
    picture("classes")
    summary = summarise(averaged["encoder"], volumes[0], loader.ranges[0], folder)
    write_report(folder, config, summary)
    for name, value in summary.items():
        say(f"{name}: {value}")
    folder.log(f"finished at step {steps}")
    return True


def losses(
    networks: nn.ModuleDict, teacher: nn.Module | None, batch: Batch, config: Config
) -> dict[str, Tensor]:
    """The loss of one batch and the numbers that are logged beside it."""
    image = batch.image()  # (B, Z, Y, X)
    b, z = image.shape[:2]
    middle = config.data.stack.offsets_z.index(0)
    context = [i for i in range(z) if i != middle]
    seed, keys, device = config.run.seed, batch.keys, image.device

    # The whole stack is turned at random, and the target once more by itself.
    photometry = augment.draw(seed, Stream.PHOTOMETRY, keys, (z, 3), device)
    image = augment.photometry(image, photometry, config.data.photometry)
    turn_stack = augment.symmetries(augment.draw(seed, Stream.SYMMETRY, keys, (1,), "cpu"))
    turn_target = augment.symmetries(augment.draw(seed, Stream.TARGET_SYMMETRY, keys, (1,), "cpu"))
    image = augment.transform(image, turn_stack)
    target = augment.transform(image[:, middle], turn_target)  # (B, Y, X)
    image = torch.cat([image[:, context], target[:, None]], 1)  # target last

    # Codes of all slices; those of the target are turned back to lie on its neighbours.
    codes = networks["encoder"](image.flatten(0, 1)[:, None]).logits.float()  # (B·Z, K, y, x)
    sums, probabilities = entropy_sums_and_probabilities(codes)
    stacked = probabilities.unflatten(0, (b, z))  # (B, Z, K, y, x)
    predictor: Any = networks["predictor"]
    prediction = predictor(stacked[:, :-1]).float()  # (B, K, y − 2m, x − 2m)
    if teacher is None:
        target_codes = stacked[:, -1]
    else:
        with torch.no_grad():
            target_codes = teacher(target[:, None]).logits.float().softmax(1)
    m = predictor.margin
    target_codes = augment.transform_back(target_codes, turn_target)[..., m:-m, m:-m]

    # Predict the target, keep the mean code spread over classes, decide every pixel.
    spread, undecided = entropy_of_mean(sums), mean_entropy(sums)
    pred = cross_entropy(target_codes, prediction)
    floor = entropy_floor(spread, floor=math.log(config.loss.classes_at_least))
    loss = pred + config.loss.floor_weight * floor + config.loss.sharpen_weight * undecided
    with torch.no_grad():
        most, hard = probabilities.max(1)
        active = torch.tensor(effective_classes(hard))
    return {
        "loss": loss,
        "pred": pred,
        "information": spread - pred,
        "mean_classes": spread.exp(),
        "entropy": undecided,
        "max_probability": most.mean(),
        "active_classes": active,
    }


def check(config: Config) -> None:
    """Refuse what cannot run before anything is written."""
    choose_device(config.run.device)
    kernels_in_use()
    make_networks(config)
    make_loader(open_volumes(config.data, hold=False), config)


def open_volumes(config: DataConfig, *, hold: bool = True) -> list[Volume]:
    """The raw volumes, held in memory where all of them fit."""
    volumes = [open_volume(address, at_nm=config.at_nm) for address in config.volumes]
    if not volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    sizes = [volume.voxel_size_nm for volume in volumes if volume.voxel_size_nm is not None]
    for axis, values in zip("zyx", zip(*sizes, strict=True), strict=False):
        if max(values) > SAME_SCALE * min(values):
            raise ValueError(
                f"the volumes have voxels of {min(values):g} to {max(values):g} nm along {axis}; one "
                "encoder sees one scale: choose levels that match, with data.at_nm"
            )
    if hold and sum(volume.nbytes for volume in volumes) <= config.memory_gib * 2**30:
        volumes = [volume.held_in_memory() for volume in volumes]
    return volumes


def make_loader(volumes: list[Volume], config: Config) -> Loader:
    """Stacks of independent places, or by block shuffle where the memory is too small for all."""
    data = config.data
    sampler = choose_sampler(
        volumes,
        data.stack,
        seed=config.run.seed,
        samples_per_epoch=data.samples_per_epoch,
        slots=data.batch_size,
        budget_bytes=int(data.memory_gib * 2**30),
    )
    return Loader(
        volumes,
        sampler,
        batch_size=data.batch_size,
        samples_per_epoch=data.samples_per_epoch,
        threads=data.threads,
    )


def make_networks(config: Config) -> nn.ModuleDict:
    """The encoder, and the predictor that fits it."""
    predictor = SlicePredictorConfig(
        classes=config.model.encoder.classes,
        context=len(config.data.stack.offsets_z) - 1,
        width=config.model.predictor_width,
        layers=config.model.predictor_layers,
    )
    return nn.ModuleDict(
        {"encoder": DenseEncoder(config.model.encoder), "predictor": SlicePredictor(predictor)}
    )


def fingerprint(loader: Loader) -> str:
    """What the samples depend on besides the configuration: a resumed run must find it unchanged."""
    volumes = [f"{volume.dtype} {volume.shape}" for volume in loader.volumes]
    sampler = loader.sampler
    plan = f", blocks {sampler.plan}" if isinstance(sampler, BlockSampler) else ""
    return ", ".join(volumes) + plan


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
    say(
        f"model   {count_parameters(networks):,} parameters, receptive field "
        f"{encoder.config.receptive_field} px, {encoder.config.classes} classes, on {device}, "
        f"{'compiled' if kernels_in_use() else 'plain torch'} losses"
    )
    say(f"run     {folder.path}" + (f", going on at step {start}" if start else ""))
    folder.log(f"{'resumed' if start else 'started'} at step {start} on {device}")


def note(row: dict[str, float]) -> str:
    """What the progress bar says."""
    return (
        f"loss {row['loss']:.3f}  information {row['information']:.2f} nat  "
        f"{row['active_classes']:.0f} classes  {row['slices_per_s']:.0f} slices/s"
    )


def summarise(
    encoder: DenseEncoder, volume: Volume, grey: GreyRange, folder: RunFolder
) -> dict[str, str]:
    """What came out, in words for a person."""
    rows = folder.rows()
    last = rows[-max(1, len(rows) // 10) :]  # one batch says little
    information, classes = (
        sum(row[key] for row in last) / len(last) for key in ("information", "active_classes")
    )
    summary = {
        "steps": f"{rows[-1]['step']}",
        "information": f"about {information:.2f} nats that a code shares with its neighbours",
        "classes": f"{classes:.1f} of {encoder.config.classes} effectively in use",
    }
    found = agreement(encoder, volume, grey)
    if found is not None:
        summary["agreement with truth"] = (
            f"NMI {found['learned']:.3f}; k-means on smoothed grey {found['grey']:.3f} "
            "(the truth was never used for training)"
        )
    return summary
