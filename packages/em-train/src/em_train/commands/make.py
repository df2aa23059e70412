"""The command that makes data: synth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from em_train.commands.options import (
    SEED_LIMIT,
    Debug,
    app,
    option_of,
    parse_numbers,
    print_config,
)
from em_train.commands.use import PANEL


@app.command(rich_help_panel=PANEL)
def synth(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="OME-Zarr to write; of particles and lattices a folder of pictures."
        ),
    ],
    kind: Annotated[
        str, typer.Option(metavar="tissue|particles|lattice", help="What to make.")
    ] = "tissue",
    shape: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Of tissue: size in voxels. Default: 64,384,384."),
    ] = None,
    voxel_nm: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Y,X", help="Of tissue: voxel size in nanometres. Default: 17.6,8,8."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, metavar="N", help="Of pictures: how many. Default: 100."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Of pictures: their side in pixels. Default: 256."),
    ] = None,
    nm: Annotated[
        float | None,
        typer.Option(
            metavar="NM", help="Of pictures: side of a pixel. Default: 1, of a lattice 0.02."
        ),
    ] = None,
    damage: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="Of pictures: also write them as a worse scan would show them, with the degradations "
            "of sem-particles, stem-lattice or another preset.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=SEED_LIMIT, help="Another seed, other tissue or other pictures."),
    ] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another property, e.g. noise=0.1."),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="List every property and leave.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what this command has written there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write synthetic EM with its truth: a volume of tissue, or pictures of materials.

    Tissue is an OME-Zarr: raw voxels at the root, `labels/classes` and `labels/instances` beside them.
    Particles on a support film and atomic lattices are pictures: `images`, `instances`, with `--damage`
    also `damaged`, and of lattices the table `positions.csv`.

    For instance: `emtrain synth tissue.zarr --shape 100,512,512 --voxel-nm 10,10,10`
    """
    from em_train.engine import config as configuration
    from em_train.synth import CONFIGS, write_images, write_synthetic

    if kind not in CONFIGS:
        raise ValueError(f"no kind {kind!r}; there are: {', '.join(CONFIGS)}")
    volume = {"shape": shape, "voxel_nm": voxel_nm}
    pictures = {"count": count, "size": size, "nm": nm, "damage": damage}
    strange = pictures if kind == "tissue" else volume
    if given := [option_of(name) for name, value in strange.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)} would change nothing of {kind}; leave it out")
    asked: dict[str, Any] = {"seed": seed}
    if shape is not None:
        asked["shape_vx"] = parse_numbers("--shape", shape, int)
    if voxel_nm is not None:
        asked["voxel_size_nm"] = parse_numbers("--voxel-nm", voxel_nm, float)
    if size is not None:
        asked["size_px"] = [size, size]
    if nm is not None:
        asked["pixel_nm"] = nm
    layers = [configuration.Layer("what was typed", asked), configuration.set_layer(set_ or [])]
    resolved: Any = configuration.resolve(CONFIGS[kind], layers)
    if show_config:
        print_config(resolved)
    elif kind == "tissue":
        write_synthetic(resolved, out, overwrite=overwrite)
    else:
        write_images(kind, resolved, out, count=count or 100, damage=damage, overwrite=overwrite)
