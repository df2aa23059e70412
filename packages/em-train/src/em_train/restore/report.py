"""What a restoration shows: damaged, repaired, true and the difference, and the report of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data.geometry import Float3
from torch import Tensor, nn

from em_train.engine.atomic import replacing
from em_train.engine.run_folder import RunFolder
from em_train.look import pictures, report
from em_train.look.report import Curve
from em_train.restore.data import Pair
from em_train.restore.run import RESTORATION, Restoration
from em_train.restore.validation import look_at, repaired

GAIN = 4  # of the differences in pictures
CURVES = (
    Curve("loss", "loss", "of the network that repairs, on training crops"),
    Curve("held_out_psnr", "held-out PSNR (dB)", "of repaired crops that are never learned from"),
    Curve("held_out_psnr_before", "damaged PSNR (dB)", "of the same crops as they are shown"),
    Curve("held_out_error", "held-out error", "Charbonnier, in grey ranges"),
    Curve("pixel", "pixel error", "Charbonnier, on training crops"),
    Curve("structure", "1 − MS-SSIM", "on training crops"),
    Curve("adversary", "adversary", "what the discriminator charges for being found out"),
    Curve("judge", "discriminator's loss", "least squares: .25 + .25 where it cannot tell"),
    Curve("score_true", "score of true crops", "as the discriminator sees them"),
    Curve("score_repaired", "score of repaired crops", "as the discriminator sees them"),
    Curve("grad_norm", "gradient norm", "before clipping"),
    Curve("crops_per_s", "crops per second", "speed of training, with reading"),
    Curve("lr", "learning rate", "of AdamW"),
)


def preview(
    network: nn.Module,
    pair: Pair,
    folder: RunFolder,
    step: int,
    config: Any,
    device: torch.device,
) -> None:
    """Save a held-out crop as damaged, repaired, truth and difference."""
    save_pair(network, pair, folder.images / f"step-{step:06d}.png", config, device)


@torch.inference_mode()
def save_pair(
    network: nn.Module, pair: Pair, path: Path, config: Any, device: torch.device
) -> None:
    """Write the panels of a pair as PNG."""
    found, shown, truth = (one[0, 0].cpu() for one in repaired(network, pair, config, device))
    noisy = config.data.learn_from in ("noise", "neighbours")
    panels = [
        ("shown", grey(shown)),
        ("repaired", grey(found)),
        ("another noisy one" if noisy else "truth", grey(truth)),
        (f"repaired minus truth, {GAIN} times", grey(0.5 + GAIN * (found - truth))),
    ]
    if noisy:
        panels[3] = (f"removed, {GAIN} times", grey(0.5 + GAIN * (shown - found)))
    pictures.save_row(pictures.enlarged(panels), path)


def grey(image: Tensor) -> np.ndarray:
    """An image from 0 to 1 as bytes: (Y, X)."""
    return np.rint(image.nan_to_num().clamp(0, 1).numpy() * 255).astype(np.uint8)


def finish(
    network: nn.Module,
    pairs: Sequence[Pair],
    size_nm: Float3 | None,
    folder: RunFolder,
    config: Any,
    device: torch.device,
    best_step: int,
) -> dict[str, str]:
    """Figures, pictures and the report of a run that is done; what came out, in words."""
    seen = look_at(network, pairs, config, device)
    write(folder.path / RESTORATION, asdict(Restoration(voxel_size_nm=size_nm)))
    write(folder.path / "scores.json", asdict(seen) | {"best_step": best_step})
    save_pair(network, pairs[0], folder.images / "restored.png", config, device)
    noisy = config.data.learn_from in ("noise", "neighbours")
    summary = {
        "best weights": f"of step {best_step}",
        "held-out PSNR": f"{seen.psnr:.2f} dB, {seen.psnr_before:.2f} dB as shown"
        + ("; the truth is as noisy as what is shown, so this is no quality" if noisy else ""),
        "held-out error": f"{seen.error:.4f} of the grey range, {seen.before:.4f} as shown",
        "scored on": f"{len(pairs)} held-out crops that the weights were chosen on; for others, "
        "emtrain evaluate",
    }
    report.write(
        folder,
        config,
        title=f"restore · {folder.path.name}",
        lead="Held-out crops as they are shown, repaired, and as they should be. What a network "
        "adds may be invented: emtrain evaluate says how much of it is.",
        summary=summary,
        curves=CURVES,
        picture=folder.images / "restored.png",
        picture_caption="a held-out crop; in the difference grey is none",
    )
    return summary


def write(path: Path, content: Any) -> None:
    """Write a file of JSON at once."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
