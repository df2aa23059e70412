"""Commands that judge what was learned: probe, prove, evaluate, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from em_train.commands.options import (
    LABELS,
    SEED_LIMIT,
    Debug,
    Grey,
    Json,
    absolute,
    app,
    parse_layers,
    parse_numbers,
    parse_range,
    refuse_unused,
    was_given,
    writes_html,
    writes_png,
)

PANEL = "Judge what was learned"

# Options of `evaluate` that not every recipe knows.
SOME_RECIPES = {
    "border_vx": "--border-vx",
    "seed": "--seed",
    "baselines": "--no-baselines",
    "target": "--target",
    "instances": "--instances",
    "neck": "--neck",
}


@app.command(rich_help_panel=PANEL)
def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a mae or dense-ssl run.")],
    data: Annotated[str, typer.Option("--data", metavar="VOLUME", help="Raw volume with labels.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help=f"{LABELS} A single ADDRESS may be a map too. May be repeated: a later class wins. "
            "Default: the label image classes.",
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
    window_vx: Annotated[int, typer.Option(min=1, help="Side of the part of the slices.")] = 512,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How often it is repeated.")] = 3,
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
    from em_train.judge import patches

    config = patches.ProbeConfig(
        fit_z=parse_range("--fit-z", fit_z),
        score_z=parse_range("--score-z", score_z),
        patch_vx=tuple(parse_numbers("--patch", patch, int)) if patch else None,
        layers=parse_layers("--layers", layers),
        label=label,
        window_vx=window_vx,
        seeds=seeds,
    )
    found = patches.probe(run, data, labels or [], config, beside=beside or (), baselines=baselines)
    patches.print_probing(found)
    if json_path:
        json_path.write_text(json.dumps(found.as_json(), indent=2) + "\n")


@app.command(rich_help_panel=PANEL)
def prove(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a dense-ssl run.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="VOLUME", help="Default: the first volume of the run."),
    ] = None,
    audit_steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Steps of the shuffle audit; 0 leaves it out.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, max=SEED_LIMIT, help="Other crops.")] = 0,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Prove that classes depend on content, or show what else they depend on.

    Position in the crop, brightness alone, a single class: each has a figure and a bound. The audit
    trains afresh with context from unrelated places, where an honest encoder can predict nothing.
    Writes `proof.json` and `images/proof.png` into the run folder. Exit code 1 if a gate is missed.

    For instance: `emtrain prove runs/first --data other.zarr`
    """
    from em_train.catalogue import entry_of, module_for
    from em_train.engine import config as configuration
    from em_train.engine.run_folder import stored_config

    report, entry = module_for(run, "prove"), entry_of(run)
    recipe = entry.load()
    config = configuration.resolve(recipe.Config, [stored_config(run, entry.command)])
    proof = report.prove_stored_run(
        run, config, recipe.run, address=data, audit_steps=audit_steps, seed=seed
    )
    if proof is None:
        raise typer.Exit(75)  # a signal asked to stop
    report.print_proof(proof)
    if json_path:
        json_path.write_text(json.dumps(proof.as_json(), indent=2) + "\n")
    typer.echo(f"look at {run / 'images' / 'proof.png'}")
    if proof.passed is False:
        raise typer.Exit(1)


@app.command(
    "shortcut",
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def shortcut() -> None:
    """The former name of `prove`."""
    raise typer.BadParameter("emtrain shortcut is now emtrain prove; its options are the same")


@app.command(rich_help_panel=PANEL)
def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[str, typer.Option("--data", metavar="VOLUME", help="Raw volume with labels.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help=f"{LABELS} A single ADDRESS may be a map too, but for a segment run. May be repeated: "
            "a later class wins. Default: the label image classes; for a segment run the labels that it "
            "was trained on.",
        ),
    ] = None,
    fit_z: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Slices that give codes their names and train probes. Default: the first 60 % of those "
            "with labels, apart from those to score; with --score-data all.",
        ),
    ] = None,
    score_z: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Slices to score. Default: the last 30 % of those with labels, apart from those to fit; "
            "with --score-data, and for a segment run, all.",
        ),
    ] = None,
    score_data: Annotated[
        str | None, typer.Option(metavar="VOLUME", help="Score on another volume.")
    ] = None,
    score_labels: Annotated[
        list[str] | None, typer.Option(metavar="LABELS", help="Its labels, as --labels.")
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
    neck: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Part predicted instances that touch, as emtrain predict --neck. Default: not.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="VOLUME",
            help="Of a restore run: what the result should look like. Without it, --data is the truth "
            "of copies that are damaged.",
        ),
    ] = None,
    grey: Grey = "auto",
    border_vx: Annotated[int, typer.Option(min=0, help="Pixels at each border left out.")] = 40,
    seed: Annotated[
        int, typer.Option(min=0, max=SEED_LIMIT, help="Of clusterings and probes.")
    ] = 0,
    baselines: Annotated[bool, typer.Option(help="Also score the baselines.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", callback=writes_png, help="Default: images/evaluation.png of the run."
        ),
    ] = None,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Compare what a run learned with the truth, and, without labels, with what needs no learning.

    Codes get the name of the class that most of their pixels have on the slices to fit; they and the
    probes are scored on others. A segmentation is scored with its own thresholds; it fits nothing.

    At most 16 slices are fitted and 16 scored, spread evenly over their range, and of each slice the
    middle: 768 px of a dense-ssl run, 1024 px of a segment run. Of a collection of images
    (images:FOLDER, of a segment run) every image is scored.

    For instance: `emtrain evaluate RUN --data raw.zarr --labels membranes.zarr --labels mito.zarr
    --fit-z 0:9 --score-z 12:16`
    """
    from em_train.catalogue import module_for
    from em_train.judge.truth import Protocol

    if score_labels and not score_data:
        raise ValueError("--score-labels belongs to a volume; give it with --score-data")
    module = module_for(run, "evaluate")
    unused = [
        option
        for name, option in SOME_RECIPES.items()
        if was_given(context, name) and name not in module.OPTIONS
    ]
    refuse_unused(run, unused)
    own: dict[str, Any] = {
        **{"baselines": baselines, "instances": instances or (), "neck": neck},
        "target": None if target is None else absolute(target),
    }
    protocol = Protocol(
        fit_z=parse_range("--fit-z", fit_z),
        score_z=parse_range("--score-z", score_z),
        border_vx=border_vx,
        seed=seed,
    )
    found = module.evaluate(
        run,
        (data, labels or []),
        (score_data, score_labels or []) if score_data else None,
        protocol,
        at_nm=tuple(parse_numbers("--at-nm", at_nm, float)) if at_nm else None,
        grey=grey,
        **{name: value for name, value in own.items() if name in module.OPTIONS},
    )
    found.show()
    if json_path:
        json_path.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    picture = picture or run / "images" / "evaluation.png"
    try:
        found.save_picture(picture)
    except OSError as error:
        typer.echo(
            f"the picture could not be saved at {picture} ({error}); name a file that can be written "
            "with --picture",
            err=True,
        )
    else:
        typer.echo(f"look at {picture}")


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            callback=writes_html,
            help="Where to write. Default: RUN/report.html, or comparison.html for several runs.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file about runs: curves in the same axes, pictures, what their settings differ in.

    Runs may be finished, broken off or still going on.

    For instance: `emtrain report runs/a runs/b --out comparison.html`
    """
    from em_train.look.report import render

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    render(runs, path)
    typer.echo(f"look at {path}")
