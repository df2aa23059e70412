"""Commands that use runs and volumes: predict, view, info, speed, bench-train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from em_train.catalogue import RECIPES
from em_train.commands.options import (
    Channel,
    ConfigFile,
    Debug,
    Grey,
    Json,
    absolute,
    app,
    layers_of,
    option_of,
    parse_channel,
    parse_numbers,
    refuse_unused,
    writes_png,
)

PANEL = "Use it, and look"


@app.command(rich_help_panel=PANEL)
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="VOLUME", help="What to predict; of segment also images:FOLDER."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="OUT.zarr", help="OME-Zarr to write; of images a folder of pictures."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="classes (the default), probabilities, instances (of segment, within slices), several "
            "as classes,probabilities, embedding (of dense-ssl; of mae the default), or restored.",
        ),
    ] = None,
    instances: Annotated[
        str | None,
        typer.Option(
            metavar="[between:]CLASS",
            help="Whose instances: of a class, or between it, as cells between membranes. Default: of "
            "the only class.",
        ),
    ] = None,
    neck: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Part instances that touch where a neck is narrower than this share of the narrower "
            "body; 0: never. Default: where the run has learned borders:, there, else 0.75.",
        ),
    ] = None,
    least_px: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Leave out instances of fewer pixels."),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta", help="Mean over each tile turned and mirrored: eight times the work."
        ),
    ] = False,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Of a restore run: from the volume as it is (0) to the repaired one (1, the default).",
        ),
    ] = None,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Of a restore run: a second channel, the standard deviation over each tile turned and "
            "mirrored, in grey values; nine times the work.",
        ),
    ] = False,
    grey: Grey = "auto",
    processes: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Write with N processes of one thread, on the GPUs in turn. 0: this one.",
        ),
    ] = 0,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="local:N|tcp://…",
            help="Write with the workers of a Dask cluster: N of this machine, or those of a scheduler.",
        ),
    ] = None,
    memory_gib: Annotated[
        float,
        typer.Option(
            min=0,
            help="Memory for blocks beside the network, of all processes; on a cluster of each.",
        ),
    ] = 2.0,
    block: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="What is written at once. Default: by the memory."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the prediction that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write what a run says about every voxel of a volume as OME-Zarr, block by block.

    No byte depends on blocks, processes or interruptions; what is finished is never done again. Of a
    collection, `images:FOLDER`, a folder of pictures is written; of its instances also a table,
    `instances.csv`, and a histogram of their sizes, `instances.png`.

    For instance: `emtrain predict runs/first --data raw.zarr --out classes.zarr --processes 4`
    """
    import shlex

    from em_data.geometry import int3

    from em_train.catalogue import entry_of, module_for
    from em_train.predict import volume as prediction

    module = module_for(run, "predict")
    output = entry_of(run).outputs[0] if output is None else output
    more = {"instances": instances, "neck": neck, "least_px": least_px, "strength": strength}
    more |= {"uncertainty": uncertainty or None}
    more = {name: value for name, value in more.items() if value is not None}
    known = getattr(module, "OPTIONS", ())
    refuse_unused(run, [option_of(name) for name in more if name not in known])
    done = prediction.predict(
        module.__name__,
        run,
        absolute(data),
        out,
        outputs=output.split(","),
        tta=tta,
        grey=grey,
        processes=processes,
        dask=dask,
        memory_gib=memory_gib,
        block_vx=int3(parse_numbers("--block", block, int)) if block else None,
        resume=resume,
        overwrite=overwrite,
        more=more,
    )
    if not done:
        again = ["emtrain", "predict", str(run), "--data", data, "--out", str(out)]
        again += ["--output", output, *["--tta"] * tta, "--memory-gib", f"{memory_gib:g}"]
        again += ["--grey", grey] if grey != "auto" else []
        for name, value in more.items():
            again += [option_of(name), *([] if value is True else [str(value)])]
        again += ["--dask", dask] if dask else ["--processes", str(processes)]
        typer.echo(f"saved; go on with: {shlex.join([*again, '--resume'])}", err=True)
        raise typer.Exit(75)
    if not data.startswith("images:"):
        typer.echo(f"look at it with: {shlex.join(['emtrain', 'view', data, str(out)])}")


@app.command(rich_help_panel=PANEL)
def view(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="What lies below.")],
    predictions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PREDICTION...]",
            help="Volumes on top; labels: before one says that its values are names.",
        ),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Voxel of VOLUME to look at. Default: the middle."),
    ] = None,
    layout: Annotated[
        str, typer.Option(metavar="4panel|xy|xz|yz|3d|xy-3d", help="What to see.")
    ] = "4panel",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65534,
            metavar="N",
            help="Listen at N and N + 1, as a tunnel needs it. 0: any that are free.",
        ),
    ] = 0,
    screenshot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            callback=writes_png,
            help="Write a picture, with Chromium and no window, and leave.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at volumes and predictions in Neuroglancer, until Ctrl-C.

    Anything that emtrain reads, however large: voxels are read when they are looked at.

    For instance: `emtrain view raw.zarr classes.zarr --screenshot look.png`
    """
    from em_data.geometry import int3

    from em_train.look import view as viewing

    with viewing.opened(
        [volume, *(predictions or [])],
        position_vx=int3(parse_numbers("--position", position, int, positive=False))
        if position is not None
        else None,
        layout=layout,
        port=port,
    ) as viewer:
        if screenshot:
            viewing.save_screenshot(viewer, screenshot)
            typer.echo(f"look at {screenshot}")
        else:
            viewing.show(viewer)


@app.command(rich_help_panel=PANEL)
def info(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME|RUN|WEIGHTS]", help="What to describe; nothing: this machine."
        ),
    ] = None,
    thumbnail: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            callback=writes_png,
            help="Also draw the middle of the volume, from two sides.",
        ),
    ] = None,
    channel: Channel = None,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Describe this installation, a volume, a run or weights.

    Without an argument: versions, devices and which compiled operators are in use.
    A volume is a path, `file.h5::dataset`, or an address such as `https://…`, `s3://…`,
    `precomputed://…`.
    """
    from em_train.look.info import describe, print_description

    description = describe(path, thumbnail, parse_channel(channel))
    print_description(description)
    if json_path:
        json_path.write_text(json.dumps(description, indent=2) + "\n")


@app.command(rich_help_panel=PANEL)
def speed(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="What to read.")],
    channel: Channel = None,
    stack: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Size of the stacks of slices, in voxels.")
    ] = "5,256,256",
    cube: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Size of the cubes, in voxels.")
    ] = "64,64,64",
    seconds: Annotated[float, typer.Option(help="How long to measure, about.")] = 10.0,
    threads: Annotated[int, typer.Option(help="Threads that read.")] = 2,
    memory: Annotated[int, typer.Option(min=1, metavar="MIB", help="Memory for blocks.")] = 256,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Measure how fast crops come out of a volume, and where the time goes.

    For instance: `emtrain speed raw.zarr --stack 3,512,512 --threads 4`
    """
    from em_train.measure.reading import print_speed, reading_speed

    found = reading_speed(
        volume,
        channel=parse_channel(channel),
        stack_vx=tuple(parse_numbers("--stack", stack, int)),
        cube_vx=tuple(parse_numbers("--cube", cube, int)),
        seconds=seconds,
        threads=threads,
        budget_bytes=memory << 20,
    )
    print_speed(found)
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


@app.command("bench-train", rich_help_panel=PANEL)
def bench_train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help=f"Whose training: {', '.join(RECIPES)}.")
    ],
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from a preset of the recipe.")
    ] = None,
    config: ConfigFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. data.batch_size=32."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of each round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds, interleaved.")] = 5,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Measure the speed of training: with and without reading, and against what the device can do.

    For instance: `emtrain bench-train dense-ssl --set data.volumes='["raw.zarr"]' --json speed.json`
    """
    from em_train.engine import config as configuration
    from em_train.measure import training as bench

    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    loaded = RECIPES[recipe].load()
    resolved = configuration.resolve(loaded.Config, layers_of(recipe, preset, config, set_))
    figures = bench.training_speed(loaded, resolved, steps=steps, rounds=rounds)
    bench.show(recipe, figures)
    if json_path:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")
