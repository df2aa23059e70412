"""Our U-Net beside MONAI's BasicUNet and segmentation-models-pytorch's U-Net (ResNet-18), all from scratch.

    python tools/bench/train/peers.py [--quick] [--json PATH] [--minutes 8] [--seeds 3] [--steps N]
    python tools/bench/train/peers.py --profile

With --json, every training is written as soon as it is done, and a second call goes on where the first
one stopped; --steps 0 measures the speed alone.

Membranes and mitochondria of vnc_sstem (EM_REAL_DATA, or ../shared/data beside the repository): trained
on z 0–8, learning rate, weights and thresholds chosen on z 10–11, scored on z 12–15 once. All networks
see the same patches of 128² in the same order, with the same augmentation, loss, optimiser, precision
and number of steps; each has its best of three learning rates, by its Dice on z 10–11 with seed 0, and
is scored with every seed. The number of steps is what the slowest network makes in `--minutes`.

Speed is that of a training step on batches in memory, all networks in turns in this process, each with
its tensors in the order in memory (channels first or last) that serves it best.

The peers are no dependency of the project: pip install --no-deps monai segmentation-models-pytorch
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from em_data import Split, Volume, open_volume, place_labels
from em_data.loader import Batch
from em_data.sampler.places import whole
from em_models import UNet, UNetConfig, count_parameters
from em_train.engine import precision
from em_train.engine.config import Layer, resolve
from em_train.engine.optim import Schedule, adamw
from em_train.recipes import segment as recipe
from em_train.segment.labels import Classes
from em_train.segment.metrics import best_thresholds
from em_train.segment.report import examine
from em_train.segment.validation import Window, choose_windows, score_windows
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

FIT, CHOOSE, SCORE = (0, 9), (10, 12), (12, 16)
CLASSES = Classes(names=("membrane", "mitochondria"), exclusive=True)
RATES = (1e-3, 3e-3, 3e-4)
BALANCE = 0.01  # both classes are frequent: they need none
CPU = torch.device("cpu")
ORDERS = (torch.contiguous_format, torch.channels_last)
MULTIPLE = 32  # sides of what is predicted: the coarsest network's stride

Network = Callable[[], nn.Module]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of one rate and seed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--minutes", type=float, default=8, help="training of the slowest network")
    parser.add_argument(
        "--steps", type=int, help="instead of --minutes; 0: measure the speed alone"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", help="learning rates to choose from, separated by commas")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--profile", action="store_true", help="show where a step goes, and leave")
    parser.add_argument("--only", help="names of networks, separated by commas")
    options = parser.parse_args()
    networks = available()
    if options.only:
        networks = {name: networks[name] for name in options.only.split(",")}
    world = World(options.precision, slices=1 if options.quick else 16)
    if options.profile:
        world.profile(networks)
        return
    rates = RATES if options.rates is None else tuple(map(float, options.rates.split(",")))
    record = Record(options.json, world.conditions() | {"learning rates": sorted(rates)})
    if not set(networks) <= set(record.speeds):
        record.speeds = world.speeds(networks, turns=1 if options.quick else 7)
        record.write()
    slowest = min(record.speeds[name]["images_per_s"] for name in networks)
    steps, seeds = options.steps, range(options.seeds)
    if steps is None:
        steps = int(options.minutes * 60 * slowest / world.config.data.batch_size)
    if options.quick:
        steps, rates, seeds = options.steps or 6, RATES[1:2], range(1)
    wanted = [(name, rate, 0) for rate in rates for name in networks] if steps else []
    while wanted:
        for name, rate, seed in wanted:
            if record.find(name, rate, seed, steps) is None:
                last = record.speeds[name]["channels_last"]
                found = world.train(name, networks[name], rate, seed, steps, channels_last=last)
                record.add(found | {"network": name, "lr": rate, "seed": seed, "steps": steps})
        best = {name: record.best_rate(name, rates, steps) for name in networks}
        seeded = [(name, best[name], seed) for seed in seeds for name in networks]
        wanted = [one for one in seeded if record.find(*one, steps) is None]
    record.rows = []
    for name in networks if steps else ():
        runs = [record.find(name, best[name], seed, steps) for seed in seeds]
        record.rows += rows_of(name, best[name], steps, runs, record.speeds[name])
    record.write()
    show(record.rows) if steps else show_speeds(record.speeds)


class Record:
    """What was measured so far, in memory and in a file, if one is named."""

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self.path, self.conditions = path, conditions
        self.speeds: dict[str, dict[str, Any]] = {}
        self.trainings: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            if stored["conditions"] != conditions:
                raise SystemExit(
                    f"{path} was measured with {stored['conditions']}, now {conditions}; name another"
                )
            self.speeds, self.trainings = stored["speeds"], stored["trainings"]

    def find(self, network: str, lr: float, seed: int, steps: int) -> dict[str, Any] | None:
        """The training of this kind, if it is done."""
        wanted = {"network": network, "lr": lr, "seed": seed, "steps": steps}
        return next((one for one in self.trainings if wanted.items() <= one.items()), None)

    def best_rate(self, network: str, rates: tuple[float, ...], steps: int) -> float:
        """The learning rate of the highest Dice on the slices to choose on, with seed 0."""
        tried = {rate: self.find(network, rate, 0, steps) for rate in rates}
        return max(rates, key=lambda rate: (tried[rate] or {})["chosen"])

    def add(self, training: dict[str, Any]) -> None:
        """Keep a training."""
        self.trainings.append(training)
        self.write()

    def write(self) -> None:
        """Write everything, whole or not at all."""
        if self.path is not None:
            more = {"speeds": self.speeds, "trainings": self.trainings}
            write(self.path, self.conditions, self.rows, **more)


def available() -> dict[str, Network]:
    """The networks by name; peers that are not installed are left out."""
    found: dict[str, Network] = {"ours": lambda: UNet(UNetConfig(classes=2))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import segmentation_models_pytorch as smp
            from monai.networks.nets import BasicUNet
    except ImportError as error:
        print(
            f"{error}; only ours is measured: pip install --no-deps monai segmentation-models-pytorch"
        )
        return found
    found["BasicUNet"] = lambda: BasicUNet(spatial_dims=2, in_channels=1, out_channels=2)
    found["smp Unet ResNet-18"] = lambda: smp.Unet(
        "resnet18", encoder_weights=None, in_channels=1, classes=2
    )
    return found


class World:
    """The volume, its patches and its held-out slices, the same for every network."""

    def __init__(self, kind: str, slices: int) -> None:
        self.slices = slices  # of each part that are looked at
        settings: dict[str, Any] = {
            "data": {"patch_vx": 128, "batch_size": 8, "volumes": ["-"], "exclusive": True}
            | {"balance": BALANCE},
            "run": {"precision": kind, "device": "cpu"},
        }
        self.config = resolve(recipe.Config, [Layer("peers", settings)])
        beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
        store = Path(os.environ.get("EM_REAL_DATA", beside)) / "vnc_sstem.zarr"
        self.parts = {
            part: [self._cut(store / name, part) for name in ("raw", "membranes", "mitochondria")]
            for part in (FIT, CHOOSE, SCORE)
        }
        self.loaders: dict[int, Any] = {}
        self.windows = {part: self._windows(part) for part in (CHOOSE, SCORE)}

    def _cut(self, path: Path, part: tuple[int, int]) -> Volume:
        """Slices of a volume as one of its own, so that nothing else can be met."""
        volume = open_volume(path)
        return open_volume(volume[part[0] : part[1], :, :], voxel_size_nm=volume.voxel_size_nm)

    def _labels(self, part: tuple[int, int]) -> Any:
        raw, *labels = self.parts[part]
        return place_labels(raw, dict(zip(CLASSES.names, labels, strict=True)))

    def _windows(self, part: tuple[int, int]) -> list[Window]:
        raw, labels = self.parts[part][0], self._labels(part)
        everything = whole(raw.shape)._replace(centres=labels.covered)
        split = Split((everything,), (everything,), ((),))
        # All slices are shown in the grey range of those that were trained on.
        ranges = self.loader(0).ranges
        return choose_windows([raw], ranges, [labels], CLASSES, split, self.slices)

    def loader(self, seed: int) -> Any:
        """Patches of the slices that are trained on."""
        if seed not in self.loaders:
            raw, labels = self.parts[FIT][0], self._labels(FIT)
            region = whole(raw.shape)
            split = Split((region,), (region,), ((),))
            data = self.config.data
            crop = recipe.crop_of([raw], data, self.config.patch_vx)
            self.loaders[seed] = recipe.make_loader(
                [raw], [labels], CLASSES, split, data, crop, seed=seed
            )
        return self.loaders[seed]

    def train(
        self, name: str, make: Network, rate: float, seed: int, steps: int, *, channels_last: bool
    ) -> dict[str, Any]:
        """One training, with the scores of what did best on the slices to choose on."""
        torch.manual_seed(seed)
        more = {
            "optim": {"lr": rate, "warmup_steps": min(50, steps // 4)},
            "run": {"seed": seed, "steps": steps},
        }
        config = resolve(
            recipe.Config, [Layer("peers", dataclasses.asdict(self.config)), Layer("run", more)]
        )
        networks = nn.ModuleDict({"network": make()})
        networks.to(memory_format=ORDERS[channels_last])
        optimiser = adamw(networks, config.optim)
        schedule = Schedule(optimiser, config.optim, config.run.steps)
        best: tuple[float, dict[str, Tensor], Any] = (-1.0, {}, None)
        curve = {}
        clock = time.process_time()
        for step, batch in enumerate(self.loader(seed).batches(0, steps), 1):
            self._step(networks, batch, config).backward()
            nn.utils.clip_grad_norm_(networks.parameters(), config.optim.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
            if step % max(50, steps // 10) == 0 or step == steps:
                found = self.measure(networks, CHOOSE)
                if found.dice.mean() > best[0]:
                    state = {k: v.clone() for k, v in networks.state_dict().items()}
                    best = (float(found.dice.mean()), state, found.histograms)
                curve[step] = found.dice.round(4).tolist()
                words = f"{name}, lr {rate:g}, seed {seed}, step {step}"
                print(f"{words}: Dice {curve[step]}", flush=True)
        minutes = (time.process_time() - clock) / 60
        networks.load_state_dict(best[1])
        thresholds = best_thresholds(best[2]).tolist()
        with Evaluating(networks) as model:
            scores, *_ = examine(
                model, self.windows[SCORE], CLASSES.names, thresholds, config.loss, CPU, self.kind
            )
        return {
            "chosen": best[0],
            "curve": curve,
            "scores": [one.scores for one in scores],
            "cpu_minutes": minutes,
        }

    @property
    def kind(self) -> Any:
        """Precision of forward passes."""
        return self.config.run.precision

    def measure(self, networks: nn.ModuleDict, part: tuple[int, int]) -> Any:
        """Loss and histograms on the slices of a part."""
        with Evaluating(networks) as model:
            return score_windows(
                model, self.windows[part], self.config.loss, CPU, self.kind, alone=True
            )

    def _step(self, networks: nn.ModuleDict, batch: Batch, config: Any) -> Tensor:
        with precision.autocast(self.kind, CPU):
            return recipe.losses(networks, batch, CLASSES, config)["loss"]

    def speeds(self, networks: dict[str, Network], turns: int) -> dict[str, dict[str, Any]]:
        """Images per second of training steps, networks and orders of memory in turns."""
        batches = list(self.loader(0).batches(0, 2))
        taken: dict[tuple[str, Any], list[float]] = {(n, o): [] for n in networks for o in ORDERS}
        made = {name: nn.ModuleDict({"network": make()}) for name, make in networks.items()}
        for turn in range(turns + 1):
            for (name, order), seconds in taken.items():
                own = made[name].to(memory_format=order)
                clock = time.perf_counter()
                self._step(own, batches[turn % 2], self.config).backward()
                passed = time.perf_counter() - clock
                own.zero_grad(set_to_none=True)
                if turn:  # the first one prepares
                    seconds.append(passed)
        size, found = self.config.data.batch_size, {}
        for name in networks:
            order = min(ORDERS, key=lambda o: statistics.median(taken[name, o]))
            seconds = taken[name, order]
            found[name] = {
                "images_per_s": size / statistics.median(seconds),
                "images_per_s_spread": [size / max(seconds), size / min(seconds)],
                "channels_last": order is torch.channels_last,
                "parameters": count_parameters(made[name]),
            }
        return found

    def profile(self, networks: dict[str, Network], steps: int = 3) -> None:
        """Print what most of the time of a training step is spent on, channels last and first."""
        (batch,) = self.loader(0).batches(0, 1)
        for name, make in networks.items():
            for order, word in zip(ORDERS, ("first", "last"), strict=True):
                own = nn.ModuleDict({"network": make()}).to(memory_format=order)
                self._step(own, batch, self.config).backward()
                with torch.profiler.profile() as found:
                    for _ in range(steps):
                        self._step(own, batch, self.config).backward()
                kinds = found.key_averages()
                total = sum(kind.self_cpu_time_total for kind in kinds)
                table = Table(f"{name}, channels {word}", "ms a step", "share")
                for kind in sorted(kinds, key=lambda kind: -kind.self_cpu_time_total)[:12]:
                    own_time = kind.self_cpu_time_total
                    table.add_row(
                        kind.key, f"{own_time / steps / 1e3:.1f}", f"{own_time / total:.0%}"
                    )
                print_table(table, width=100)

    def conditions(self) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "volume": "vnc_sstem, trained on z 0–8, chosen on z 10–11, scored on z 12–15",
            "patches": f"8 of 128² per step, turns, flips and grey values, data.balance={BALANCE}",
            "slices": self.slices,
            "precision": self.kind,
            "threads": torch.get_num_threads(),
        }


class Evaluating:
    """A network in evaluation mode, as the tiles of `em_train.predict.tiles` want it, for a while."""

    def __init__(self, networks: nn.ModuleDict) -> None:
        self.networks = networks

    def __enter__(self) -> nn.Module:
        self.networks.eval()
        return AsUNet(self.networks["network"])

    def __exit__(self, *_: Any) -> None:
        self.networks.train()


class AsUNet(UNet):
    """Any network on slices with the tiles of our U-Net: whole slices, mirrored beyond their borders."""

    def __init__(self, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.config = UNetConfig(classes=2)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits of slices whose sides are made multiples of what every network takes."""
        height, width = image.shape[-2:]
        pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        logits: Tensor = self.network(nn.functional.pad(image, pad, mode="reflect"))
        return logits[..., :height, :width]


def rows_of(
    name: str, rate: float, steps: int, runs: list[Any], speed: dict[str, Any]
) -> list[dict[str, Any]]:
    """A flat row for every class."""
    rows = []
    for c, label in enumerate(CLASSES.names):
        row: dict[str, Any] = {"case": f"{label}, {name}", "network": name, "class": label}
        for score in ("dice", "iou", "boundary_f1"):
            values = [run["scores"][c][score] for run in runs]
            row[score] = statistics.mean(values)
            row[f"{score}_spread"] = [min(values), max(values)]
        minutes = statistics.mean(run["cpu_minutes"] for run in runs)
        rows.append(row | {"lr": rate, "steps": steps, "cpu_minutes": minutes} | speed)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("class", "network", "Dice", "IoU", "boundary F1", "lr", "img/s", "parameters")
    for row in sorted(rows, key=lambda row: row["class"]):
        cells = [
            f"{row[score]:.3f} ({row[f'{score}_spread'][0]:.3f}–{row[f'{score}_spread'][1]:.3f})"
            for score in ("dice", "iou", "boundary_f1")
        ]
        speed = f"{row['images_per_s']:.1f}" + (" last" if row["channels_last"] else " first")
        table.add_row(
            row["class"], row["network"], *cells, f"{row['lr']:g}", speed, f"{row['parameters']:,}"
        )
    print_table(table, width=140)


def show_speeds(speeds: dict[str, dict[str, Any]]) -> None:
    table = Table("network", "img/s", "of the turns", "channels", "parameters")
    for name, speed in speeds.items():
        low, high = speed["images_per_s_spread"]
        order = "last" if speed["channels_last"] else "first"
        cells = (f"{speed['images_per_s']:.1f}", f"{low:.1f}–{high:.1f}", order)
        table.add_row(name, *cells, f"{speed['parameters']:,}")
    print_table(table, width=140)


if __name__ == "__main__":
    main()
