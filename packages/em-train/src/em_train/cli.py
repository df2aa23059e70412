"""The command `emtrain`.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Errors that a
person can mend are one message on stderr and exit code 1; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_train.engine import worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from em_train.config import Layer

app = typer.Typer(
    name="emtrain",
    help="Learn from electron-microscopy volumes: first without labels, then with few.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RECIPES = {"dense-ssl": "dense_ssl", "segment": "segment", "mae": "mae"}  # command: module

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="PATH", help="Also write the figures there as JSON."),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A .toml file, or the config.json of a run."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. optim.lr=3e-4."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, with its configuration.")
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="List every key, its value and meaning, and leave.")
]
Channel = Annotated[
    str | None,
    typer.Option(metavar="N|NAME", help="Which channel, where the volume has several."),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="N|auto",
        help="Start a process per GPU, again when one dies. 0: the CPU. Default: this process.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", help="Start N processes on the CPU instead."),
]
Init = Annotated[
    str | None,
    typer.Option("--init", metavar="RUN", help="Start from the weights of another run."),
]
Slurm = Annotated[
    Literal["print", "submit"] | None,
    typer.Option("--slurm", help="Print or submit an sbatch script instead of running here."),
]
Sbatch = Annotated[
    list[str] | None,
    typer.Option(
        "--sbatch",
        metavar="OPTION",
        help="Option of sbatch for --slurm, e.g. --nodes=2. May be repeated.",
    ),
]

# Which module evaluates, and which predicts, for the runs of a recipe.
EVALUATIONS = {"dense-ssl": "em_train.dense.evaluate", "segment": "em_train.segment.evaluate"}
PREDICTORS = {
    "dense-ssl": "em_train.dense.predict",
    "segment": "em_train.segment.predict",
    "mae": "em_train.mae.predict",
}


@app.command("dense-ssl")
def dense_ssl(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="VOLUME",
            help="Raw volume: OME-Zarr, zarr, .npy, or synthetic: (the default). May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/dense-ssl-TIME."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from a preset: default, demo, exp1, …")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Init = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn classes of content for every pixel, without labels.

    An encoder gives every pixel one of K classes, a predictor guesses the classes of a slice from
    its neighbours. The run folder holds pictures, weights, metrics and `report.html`.

    For instance: `emtrain dense-ssl --data raw.zarr --out runs/first --set optim.steps=2000`
    """
    from em_train.config import Layer
    from em_train.recipes import dense_ssl as recipe

    layers = _layers("dense-ssl", preset, config, set_)
    if data:
        layers.append(Layer("--data", {"data": {"volumes": [*map(_absolute, data)]}}))
    _train(
        recipe,
        "dense-ssl",
        layers,
        out=out,
        resume=resume,
        init=init,
        places=(gpus, processes),
        slurm=(slurm, sbatch or ()),
        show_config=show_config,
    )


@app.command()
def segment(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="VOLUME", help="Raw volume. May be repeated."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="NAME=LABELS[@VALUE]",
            help="A class: where a label volume is not 0, or has a value. LABELS may name a label "
            "image beside the volume. Once for each class, and for each volume in the same order.",
        ),
    ] = None,
    val_z: Annotated[
        str | None,
        typer.Option(
            "--val-z", metavar="A:B", help="Held-out slices A to B − 1. Default: the last 20 %."
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]",
            help="Train on N labelled slices only; several: a run for each, compared.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/segment-TIME."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Start from a preset: default, demo, quick, fib-sem, ss-tem."
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Start from the weights of a segment run, or let the encoder of a dense-ssl run guide.",
        ),
    ] = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn to label every pixel, from a few labelled slices.

    The run folder holds the weights that did best on the held-out slices, thresholds, scores with
    intervals, pictures of the best and the worst, and `report.html`.

    For instance: `emtrain segment --data raw.zarr --labels mitochondria=mito.zarr --val-z 880:900`
    """
    from em_train import config as configuration
    from em_train.config import Layer
    from em_train.recipes import segment as recipe
    from em_train.segment.series import run_series, slice_counts

    layers = _layers("segment", preset, config, set_)
    given: dict[str, Any] = {}
    if data:
        given["volumes"] = [*map(_absolute, data)]
    if labels:
        given["labels"] = [*map(_absolute_labels, labels)]
    if val_z:
        given["split"] = {"z": _range("--val-z", val_z)}
    counts = slice_counts(slices)
    if len(counts) == 1:
        given["slices"] = counts[0]
    layers.append(Layer("options", {"data": given}))
    if init and not resume:
        resolved = configuration.resolve(recipe.Config, layers)
        layers.append(Layer("--init", recipe.guide_of(init, resolved.data)))

    def train(path: Path | None, more: Sequence[Layer], go_on: bool) -> None:
        _train(
            recipe,
            "segment",
            [*layers, *more],
            out=path,
            resume=go_on,
            init=init,
            places=(gpus, processes),
            slurm=(slurm, sbatch or ()),
            show_config=show_config,
        )

    if len(counts) < 2 or show_config:
        train(out, (), resume)
        return
    if gpus or processes or slurm:
        raise ValueError(
            "--slices with several numbers runs in this process; leave --gpus and the like out"
        )
    path = out or Path("runs") / f"segment-{time.strftime('%Y%m%d-%H%M%S')}"
    run_series(path, counts, train, resume=resume)


@app.command()
def mae(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="VOLUME",
            help="Raw volume: OME-Zarr, precomputed://…, or synthetic: (the default). May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/mae-TIME."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start from a preset: default, demo, laptop, ss-tem, small, base, large.",
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Init = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn the structure of volumes by filling in what was hidden: a masked autoencoder.

    The run folder holds the encoder, pictures of what was hidden, filled in and true, the error on
    held-out cubes beside that of in-painting, and `report.html`.

    For instance: `emtrain mae --data raw.zarr --preset laptop`
    """
    from em_train.config import Layer
    from em_train.recipes import mae as recipe

    layers = _layers("mae", preset, config, set_)
    if data:
        layers.append(Layer("--data", {"data": {"volumes": [*map(_absolute, data)]}}))
    _train(
        recipe,
        "mae",
        layers,
        out=out,
        resume=resume,
        init=init,
        places=(gpus, processes),
        slurm=(slurm, sbatch or ()),
        show_config=show_config,
    )


@app.command()
def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a mae or dense-ssl run.")],
    data: Annotated[str, typer.Option("--data", metavar="VOLUME", help="Raw volume with labels.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="VOLUME",
            help="Class map, or one volume per class (a later one wins), or borders:INSTANCES. "
            "Default: labels/classes of the volume.",
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="RUN", help="Another run, at the same patches."),
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="N[,N…]", help="Layers of the encoder; -1 is the last.")
    ] = "-1",
    label: Annotated[
        str,
        typer.Option(
            metavar="majority|SHARE",
            help="A patch has the class of most of its voxels, or every class of so large a share.",
        ),
    ] = "majority",
    fit_z: Annotated[
        str | None, typer.Option(metavar="A:B", help="Slices that the readouts are fitted on.")
    ] = None,
    score_z: Annotated[str | None, typer.Option(metavar="A:B", help="Slices to score.")] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Patches for a dense-ssl run. Default: 1,8,8."),
    ] = None,
    window_vx: Annotated[int, typer.Option(help="Side of the part of the slices.")] = 512,
    seeds: Annotated[int, typer.Option(metavar="N", help="How often it is repeated.")] = 3,
    baselines: Annotated[bool, typer.Option(help="Also score the baselines.")] = True,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Measure what labels can be read from the frozen features of a run, and from what is simpler.

    Planes and small perceptrons are fitted on patches of some slices and scored on others: of the
    run, of the same encoder untrained, raw voxels, a filter bank, the position alone, other runs.

    For instance: `emtrain probe RUN --data raw.zarr --labels membranes.zarr --labels mito.zarr
    --fit-z 0:9 --score-z 12:16`
    """
    from em_train import patch_probe

    config = patch_probe.ProbeConfig(
        fit_z=_range("--fit-z", fit_z),
        score_z=_range("--score-z", score_z),
        patch_vx=tuple(_numbers("--patch", patch, int)) if patch else None,
        layers=tuple(int(layer) for layer in layers.split(",")),
        label=label,
        window_vx=window_vx,
        seeds=seeds,
    )
    _recipe_of(run, {"mae": "", "dense-ssl": ""})
    found = patch_probe.probe(
        run, data, labels or [], config, beside=beside or (), baselines=baselines
    )
    patch_probe.print_probing(found)
    if json_path:
        json_path.write_text(json.dumps(found.as_json(), indent=2) + "\n")


@app.command()
def shortcut(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a dense-ssl run.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="VOLUME", help="Default: the first volume of the run."),
    ] = None,
    audit_steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of the shuffle audit; 0 leaves it out.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Other crops.")] = 0,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Prove that classes depend on content, or show what else they depend on.

    Position in the crop, brightness alone, a single class: each has a figure and a bound. The audit
    trains afresh with context from unrelated places, where an honest encoder can predict nothing.
    Writes `proof.json` and `images/shortcut.png` into the run folder. Exit code 1 if a gate is missed.

    For instance: `emtrain shortcut runs/first --data other.zarr`
    """
    from em_train import config as configuration
    from em_train.dense.prove import prove_stored_run
    from em_train.dense.report import print_proof
    from em_train.engine.run_folder import stored_config
    from em_train.recipes import dense_ssl as recipe

    _recipe_of(run, {"dense-ssl": "em_train.dense.prove"})
    config = configuration.resolve(recipe.Config, [stored_config(run, "dense-ssl")])
    proof = prove_stored_run(
        run, config, recipe.run, address=data, audit_steps=audit_steps, seed=seed
    )
    if proof is None:
        raise typer.Exit(75)  # a signal asked to stop
    print_proof(proof)
    if json_path:
        json_path.write_text(json.dumps(proof.as_json(), indent=2) + "\n")
    typer.echo(f"look at {run / 'images' / 'shortcut.png'}")
    if proof.passed is False:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[str, typer.Option("--data", metavar="VOLUME", help="Raw volume with labels.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="VOLUME",
            help="Class map, or one volume per class (a later one wins), or borders:INSTANCES. "
            "Default: labels/classes of the volume.",
        ),
    ] = None,
    fit_z: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Slices that give codes their names and train probes."),
    ] = None,
    score_z: Annotated[str | None, typer.Option(metavar="A:B", help="Slices to score.")] = None,
    score_data: Annotated[
        str | None, typer.Option(metavar="VOLUME", help="Score on another volume.")
    ] = None,
    score_labels: Annotated[
        list[str] | None, typer.Option(metavar="VOLUME", help="Its labels, as --labels.")
    ] = None,
    at_nm: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxel size instead of the run's.")
    ] = None,
    instances: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[between:]CLASS",
            help="Of a segment run: also judge what hangs together of a class, or between it. May be "
            "repeated.",
        ),
    ] = None,
    border_vx: Annotated[int, typer.Option(help="Pixels at each border left out.")] = 40,
    seed: Annotated[int, typer.Option(help="Of clusterings and probes.")] = 0,
    baselines: Annotated[bool, typer.Option(help="Also score the baselines.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Default: images/evaluation.png of the run."),
    ] = None,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Compare what a run learned with the truth, and, without labels, with what needs no learning.

    Codes get the name of the class that most of their pixels have on the slices to fit; they and the
    probes are scored on others. A segmentation is scored with its own thresholds; it fits nothing.

    For instance: `emtrain evaluate RUN --data raw.zarr --labels membranes.zarr --labels mito.zarr
    --fit-z 0:9 --score-z 12:16`
    """
    import importlib

    from em_train.evaluate import Protocol

    if score_labels and not score_data:
        raise ValueError("--score-labels belongs to a volume; give it with --score-data")
    module = importlib.import_module(_recipe_of(run, EVALUATIONS))
    if instances and module.__name__ != EVALUATIONS["segment"]:
        raise ValueError(
            f"--instances judges segmentations, and {run} is none; leave it out, or give a segment run"
        )
    protocol = Protocol(
        fit_z=_range("--fit-z", fit_z),
        score_z=_range("--score-z", score_z),
        border_vx=border_vx,
        seed=seed,
    )
    picture = picture or run / "images" / "evaluation.png"
    found = module.evaluate(
        run,
        (data, labels or []),
        (score_data, score_labels or []) if score_data else None,
        protocol,
        at_nm=tuple(_numbers("--at-nm", at_nm, float)) if at_nm else None,
        baselines=baselines,
        picture=picture,
        **({"instances": instances} if instances else {}),
    )
    found.show()
    if json_path:
        json_path.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    typer.echo(f"look at {picture}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[str, typer.Option("--data", metavar="VOLUME", help="What to predict.")],
    out: Annotated[Path, typer.Option("--out", metavar="OUT.zarr", help="OME-Zarr to write.")],
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="classes (the default), probabilities, both as classes,probabilities, or embedding "
            "(of dense-ssl; of mae the default).",
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta", help="Mean over each tile turned and mirrored: eight times the work."
        ),
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
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
            help="Memory for blocks beside the network, of all processes; on a cluster of each."
        ),
    ] = 2.0,
    block: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="What is written at once. Default: by the memory."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write what a run says about every voxel of a volume as OME-Zarr, block by block.

    No byte depends on blocks, processes or interruptions; what is finished is never done again.

    For instance: `emtrain predict runs/first --data raw.zarr --out classes.zarr --processes 4`
    """
    import shlex

    from em_data.geometry import int3

    from em_train import predict as prediction

    module = _recipe_of(run, PREDICTORS)
    output = output or ("embedding" if module == PREDICTORS["mae"] else "classes")
    done = prediction.predict(
        module,
        run,
        _absolute(data),
        out,
        outputs=output.split(","),
        tta=tta,
        processes=processes,
        dask=dask,
        memory_gib=memory_gib,
        block_vx=int3(_numbers("--block", block, int)) if block else None,
        resume=resume,
        overwrite=overwrite,
    )
    if not done:
        again = ["emtrain", "predict", str(run), "--data", data, "--out", str(out)]
        again += ["--output", output, *["--tta"] * tta, "--memory-gib", f"{memory_gib:g}"]
        again += ["--dask", dask] if dask else ["--processes", str(processes)]
        typer.echo(f"saved; go on with: {shlex.join([*again, '--resume'])}", err=True)
        raise typer.Exit(75)
    typer.echo(f"look at it with: {shlex.join(['emtrain', 'view', data, str(out)])}")


@app.command()
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
            metavar="N", help="Listen at N and N + 1, as a tunnel needs it. 0: any that are free."
        ),
    ] = 0,
    screenshot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Write a picture, with Chromium and no window, and leave."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at volumes and predictions in Neuroglancer, until Ctrl-C.

    Anything that emtrain reads, however large: voxels are read when they are looked at.

    For instance: `emtrain view raw.zarr classes.zarr --screenshot look.png`
    """
    from em_data.geometry import int3

    from em_train import view as viewing

    with viewing.opened(
        [volume, *(predictions or [])],
        position_vx=int3(_numbers("--position", position, int)) if position else None,
        layout=layout,
        port=port,
    ) as viewer:
        if screenshot:
            viewing.save_screenshot(viewer, screenshot)
            typer.echo(f"look at {screenshot}")
        else:
            viewing.show(viewer)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Where to write the OME-Zarr.")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="Size in voxels.")] = "64,384,384",
    voxel_nm: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Voxel size in nanometres.")
    ] = "17.6,8,8",
    seed: Annotated[int, typer.Option(help="Another seed, another piece of tissue.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another property, e.g. noise=0.1."),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="List every property and leave.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a synthetic EM volume with its truth as OME-Zarr.

    Raw voxels at the root, `labels/classes` and `labels/instances` beside them.

    For instance: `emtrain synth tissue.zarr --shape 100,512,512 --voxel-nm 10,10,10`
    """
    from em_train import config as configuration
    from em_train.synth import SyntheticConfig, write_synthetic

    layers = [
        configuration.Layer(
            "options",
            {
                "shape_vx": _numbers("--shape", shape, int),
                "voxel_size_nm": _numbers("--voxel-nm", voxel_nm, float),
                "seed": seed,
            },
        ),
        configuration.set_layer(set_ or []),
    ]
    resolved = configuration.resolve(SyntheticConfig, layers)
    if show_config:
        _print_config(resolved)
        return
    write_synthetic(resolved, out, overwrite=overwrite)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to write. Default: RUN/report.html, or comparison.html for several runs.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file about runs: curves in the same axes, pictures, what their settings differ in.

    Runs may be finished, broken off or still going on.

    For instance: `emtrain report runs/a runs/b --out comparison.html`
    """
    from em_train.report import render

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    render(runs, path)
    typer.echo(f"look at {path}")


@app.command("bench-train")
def bench_train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Whose training: dense-ssl.")],
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
    import importlib

    from em_train import bench_train as bench
    from em_train import config as configuration

    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    module = importlib.import_module(f"em_train.recipes.{RECIPES[recipe]}")
    resolved = configuration.resolve(module.Config, _layers(recipe, preset, config, set_))
    figures = bench.measure(module, resolved, steps=steps, rounds=rounds)
    bench.show(recipe, figures)
    if json_path:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


@app.command()
def info(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME|RUN|WEIGHTS]", help="What to describe; nothing: this machine."
        ),
    ] = None,
    thumbnail: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also draw the middle of the volume, from two sides."),
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
    from em_train.info import describe, print_description

    description = describe(path, thumbnail, _channel(channel))
    print_description(description)
    if json_path:
        json_path.write_text(json.dumps(description, indent=2) + "\n")


@app.command()
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
    memory: Annotated[int, typer.Option(metavar="MIB", help="Memory for blocks.")] = 256,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Measure how fast crops come out of a volume, and where the time goes.

    For instance: `emtrain speed raw.zarr --stack 3,512,512 --threads 4`
    """
    from em_train.speed import measure, print_speed

    found = measure(
        volume,
        channel=_channel(channel),
        stack_vx=tuple(_numbers("--stack", stack, int)),
        cube_vx=tuple(_numbers("--cube", cube, int)),
        seconds=seconds,
        threads=threads,
        budget_bytes=memory << 20,
    )
    print_speed(found)
    if json_path:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    """Run `emtrain`, turning errors that a person can mend into one message."""
    # Set before torch is imported: threads that wait by spinning take the time of those that work.
    # On two cores that other processes want as well, training is 1.3 to 3 times faster like this; on
    # idle ones it is equal within the noise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    worker.die_with_parent()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if worker.ERROR_FILE in os.environ:  # who started this worker says it, once
            worker.record(error)
            sys.exit(1)
        if isinstance(error, worker.MENDABLE) and "--debug" in sys.argv:
            raise
        if not isinstance(error, (*worker.MENDABLE, worker.WorkerError)):
            typer.echo("this is a bug in emtrain; please report what follows", err=True)
            raise
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(worker.place() + (str(error) or type(error).__name__), err=True)
        sys.exit(1)


def _train(
    recipe: ModuleType,
    command: str,
    layers: list[Layer],
    *,
    out: Path | None,
    resume: bool,
    init: str | None,
    places: tuple[str | None, int | None],
    slurm: tuple[str | None, Sequence[str]],
    show_config: bool,
) -> None:
    """What the command of every recipe does: resolve the configuration, then run, launch or submit."""
    from em_train import config as configuration
    from em_train.config import Layer
    from em_train.engine import launch
    from em_train.engine.run_folder import stored_config

    where = launch.Places(gpus=places[0], processes=places[1])
    if resume:
        if out is None:
            raise ValueError("--resume needs the run folder: give it with --out")
        layers = [stored_config(out, command), *layers]
    if init:
        layers.append(Layer("--init", {"run": {"init": _absolute(init)}}))
    if where.device():
        layers.append(Layer("--gpus or --processes", {"run": {"device": where.device()}}))
    resolved = configuration.resolve(recipe.Config, layers)
    if show_config:
        _print_config(resolved)
        return
    if worker.is_worker() and out is None:
        raise ValueError("several processes need the same run folder: give it with --out")
    path = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if slurm[0]:
        script = launch.slurm_script(path.absolute(), where, slurm[1])
        typer.echo(launch.submit(script) if slurm[0] == "submit" else script)
        return
    code = launch.train(recipe, command, resolved, path, resume=resume, places=where)
    if code:
        raise typer.Exit(code)


def _layers(
    command: str, preset: str | None, file: Path | None, assignments: list[str] | None
) -> list[Layer]:
    """The layers of a configuration, weakest first."""
    from em_train import config as configuration

    layers = []
    if preset:
        layers.append(configuration.preset_layer(preset, command))
    if file:
        layers.append(configuration.file_layer(file, command))
    if assignments:
        layers.append(configuration.set_layer(assignments))
    return layers


def _recipe_of(run: Path, modules: dict[str, str]) -> str:
    """The module that does something for the recipe of a run."""
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} holds no run: there is no config.json; give a run folder")
    recipe = str(json.loads(path.read_text()).get("command"))
    if recipe not in modules:
        raise ValueError(f"{run} is a run of {recipe}; this works for {', '.join(modules)}")
    return modules[recipe]


def _range(option: str, text: str | None) -> tuple[int, int] | None:
    """A half-open range such as 880:900."""
    if text is None:
        return None
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit()):
        raise ValueError(f"{option} is {text!r}; wanted a range FIRST:END such as 12:16")
    return int(first), int(end)


def _absolute(address: str) -> str:
    """The address of a volume that stays right when the run is resumed from another folder."""
    path, separator, dataset = address.partition("::")  # of HDF5
    return f"{Path(path).absolute()}{separator}{dataset}" if Path(path).exists() else address


def _absolute_labels(option: str) -> str:
    """The same for NAME=ADDRESS@VALUE."""
    from em_train.segment.labels import parse

    name, address, value = parse(option)
    return f"{name}={_absolute(address)}" + ("" if value is None else f"@{value}")


def _channel(text: str | None) -> int | str | None:
    return int(text) if text and text.isdecimal() else text


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise ValueError(f"{option} is {text!r}; wanted three numbers z,y,x such as 64,384,384")
    return values


def _print_config(resolved: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from em_train import config as configuration

    values = configuration.flat(resolved)
    table = Table("key", "value", "meaning", box=box.SIMPLE_HEAD)
    for key in configuration.keys(type(resolved)):
        value, default = values[key.name], key.default
        shown = Text(str(value), style="" if value == default else "bold")
        if value != default:
            shown.append(f" (default {default})", style="not bold")
        table.add_row(Text(key.name, style="cyan"), shown, Text(key.meaning))
    Console().print(table)


if __name__ == "__main__":
    main()
