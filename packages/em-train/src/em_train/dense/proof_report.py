"""The proof of a run as a person sees it: figures with their gates, a picture, `proof.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from em_data import GreyRange, Volume, grey_range
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from em_train.dense.audit import Audit, shuffle_audit
from em_train.dense.position import crops_of_one_place
from em_train.dense.proof import Proof, prove
from em_train.dense.run import open_run
from em_train.engine.atomic import replacing
from em_train.engine.progress import say
from em_train.engine.reading import open_at
from em_train.engine.run_folder import RunFolder
from em_train.look import pictures

COMMAND = "dense-ssl"


def prove_stored_run(
    run: Path,
    config: Any,
    train: Callable[[Any, RunFolder], bool],
    *,
    address: str | None = None,
    audit_steps: int,
    seed: int = 0,
) -> Proof | None:
    """The proof of the run in a folder; None when a signal stopped the audit.

    Args:
        run: folder of the run.
        config: its configuration.
        train: the recipe's `run`, for the audit.
        address: volume to prove it on; without it, the first one that the run was trained on.
        audit_steps: steps of the audit; 0 leaves it out.
        seed: other crops.
    """
    encoder, data = open_run(run)
    volume = open_at(address or data.volumes[0], data)
    if volume.nbytes <= data.memory_gib * 2**30:
        volume = volume.held_in_memory()  # a thousand crops are read
    audit: Audit | None = None
    if audit_steps:
        say(f"audit   {audit_steps} steps with context from unrelated places")
        audit = shuffle_audit(config, train, command=COMMAND, steps=audit_steps)
        if audit is None:
            return None
    return prove_run(
        encoder,
        volume,
        grey_range(volume),
        run,
        crop_vx=config.data.stack.size_vx,
        seed=seed,
        audit=audit,
    )


def prove_run(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    folder: Path,
    *,
    crop_vx: int,
    seed: int = 0,
    audit: Audit | None = None,
) -> Proof:
    """Measure and judge the shortcuts of a run; leaves `proof.json` and `images/proof.png`."""
    information = audit.information if audit else None
    proof = prove(encoder, volume, grey, crop_vx=crop_vx, seed=seed, audit_information=information)
    found = proof.as_json() | {
        "volume": volume.source,
        "audit": dataclasses.asdict(audit) if audit else None,
    }
    with replacing(folder / "proof.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    save_crops(encoder, volume, grey, folder / "images" / "proof.png", crop_vx=crop_vx)
    return proof


def print_proof(proof: Proof) -> None:
    """The figures with their gates, and the verdict."""
    table = Table("gate", "value", "wanted", "", "what it says", box=box.SIMPLE_HEAD)
    marks = {True: "[green]passed[/]", False: "[bold red]FAILED[/]", None: "[yellow]open[/]"}
    for verdict in proof.verdicts:
        value = "–" if verdict.value is None else f"{verdict.value:.4g}"
        table.add_row(verdict.title, value, verdict.bound, marks[verdict.passed], verdict.reason)
    alone = "proves nothing alone: a position code has 1"
    table.add_row("z κ", f"{proof.figures.z_kappa:.4g}", "", "", alone)
    table.add_row("photo κ", f"{proof.figures.photo_kappa:.4g}", "", "", alone)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(Text(proof.sentence, style="bold red" if proof.passed is False else "bold"))


def save_crops(encoder: Any, volume: Volume, grey: GreyRange, path: Path, *, crop_vx: int) -> None:
    """Save one place as raw and as classes through several crops; nothing where none can move."""
    if min(volume.shape[1:]) <= crop_vx:
        return
    raw, maps = crops_of_one_place(encoder, volume, grey, crop_vx=crop_vx)
    panels = [("raw", np.rint(raw.numpy() * 255).astype(np.uint8))]
    for number, codes in enumerate(maps, 1):
        colours = pictures.class_map(codes.numpy(), encoder.config.classes)
        panels.append((f"through crop {number}", colours))
    pictures.save_row(pictures.enlarged(panels), path)
