"""Reports: one file with the result, the pictures, the curves and the configuration of runs.

`write` makes the report of a run that has finished; `render` makes one of any runs, running, broken
or finished, side by side, from what their folders hold.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from em_train.engine.atomic import replacing
from em_train.engine.errors import RunFolderError
from em_train.engine.run_folder import RunFolder, measured_rows

# Told apart by most people who do not see all colours; the first one is a lone run's.
COLOURS = ("#2a78d6", "#d9662b", "#1f9e77", "#b0489b", "#8a7a10", "#c23b4e", "#5b6bc0", "#6b6b6b")
FRAMES = 12  # pictures through time in a report; all of them stay in images/
STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead { opacity: .75; margin-top: 0; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.number { text-align: right; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.curves figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
.curves svg { width: 100%; height: auto; } figcaption { font-size: .85rem; opacity: .8; }
.frames { display: grid; gap: .8rem; } details summary { cursor: pointer; }
code { font-size: .88em; } tr.differs td, tr.differs th { background: #f5c54255; font-weight: 600; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
"""


@dataclass(frozen=True)
class Curve:
    """One number over the steps, with the sentence that explains it."""

    key: str
    title: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a recipe says about a run, beside what was measured."""

    title: str
    lead: str = ""
    summary: Mapping[str, str]
    curves: Sequence[Curve] = ()
    picture: str = ""  # within the run folder
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds."""

    path: Path
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    told: Told


def write(
    folder: RunFolder,
    config: Any,
    *,
    title: str,
    lead: str,
    summary: Mapping[str, str],
    curves: Sequence[Curve],
    picture: Path,
    picture_caption: str,
) -> None:
    """Write the report of a run, and what it says that nothing else in the folder does."""
    told = Told(
        title=title,
        lead=lead,
        summary=dict(summary),
        curves=tuple(curves),
        picture=str(picture.relative_to(folder.path)),
        caption=picture_caption,
    )
    with replacing(folder.path / "report.json") as temporary:
        temporary.write_text(json.dumps(asdict(told), indent=2) + "\n", encoding="utf-8")
    render([folder.path], folder.report)


def render(paths: Sequence[Path], out: Path) -> None:
    """Write one report of some runs: their curves in the same axes, their settings side by side."""
    runs = [read_run(path) for path in paths]
    names = _names(paths)
    told = runs[0].told if len(runs) == 1 else Told(title=" · ".join(names), summary={})
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(told.title)}</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style><h1>{html.escape(told.title)}</h1>",
        f"<p class=lead>{html.escape(told.lead)}</p>" if told.lead else "",
    ]
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        if len(runs) > 1:
            parts.append(f"<h2>{_key(number)}{html.escape(name)}</h2>")
        if (run.path / run.told.picture).is_file():
            parts.append(_image(run.path / run.told.picture, run.told.caption))
        parts += ["<h2>Result</h2>" if len(runs) == 1 else "", _table(run.told.summary)]
    parts += [
        "<h2>Curves</h2><div class=curves>",
        *(_curve(runs, c) for c in _curves(runs)),
        "</div>",
    ]
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        frames = _evenly(sorted((run.path / "images").glob("step-*.png")), FRAMES)
        if frames:
            whose = f": {html.escape(name)}" if len(runs) > 1 else ""
            parts.append(f"<h2>{_key(number) if whose else ''}Through time{whose}</h2>")
            parts.append("<div class=frames>")
            steps = [int(frame.stem.removeprefix("step-")) for frame in frames]
            parts += [_image(f, f"step {step}") for f, step in zip(frames, steps, strict=True)]
            parts.append("</div>")
    parts += ["<h2>Configuration</h2>", _settings(runs, names), "</html>"]
    with replacing(out) as temporary:
        temporary.write_text("\n".join(filter(None, parts)), encoding="utf-8")


def read_run(path: Path) -> Run:
    """What the folder of a run holds, finished or not."""
    if not (path / "config.json").exists():
        raise RunFolderError(f"{path} holds no run; give folders that emtrain made with --out")
    settings = dict(_flat(json.loads((path / "config.json").read_text())))
    rows = measured_rows(path)
    if (path / "report.json").exists():
        stored = json.loads((path / "report.json").read_text(encoding="utf-8"))
        told = Told(**stored | {"curves": tuple(Curve(**curve) for curve in stored["curves"])})
    else:
        step = rows[-1]["step"] if rows else 0
        state = {"state": f"step {step} of {settings.get('run.steps', '?')}, not finished"}
        told = Told(title=f"{settings.get('command', 'run')} · {path.name}", summary=state)
    return Run(path=path, rows=rows, settings=settings, told=told)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in tree.items():
        deeper = isinstance(value, Mapping)
        flat += _flat(value, f"{prefix}{name}.") if deeper else [(f"{prefix}{name}", value)]
    return flat


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of runs: those of their folders, longer where two would be the same."""
    short = [path.absolute().name for path in paths]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]


def _key(number: int) -> str:
    return f"<span class=key style='background:{COLOURS[number % len(COLOURS)]}'></span>"


def _table(values: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>"


def _settings(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Every key; where runs differ, first and highlighted."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    values = {key: [str(run.settings.get(key, "—")) for run in runs] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    equal = [key for key in keys if key not in differing]

    def rows(chosen: Sequence[str], style: str = "") -> str:
        cells = (
            f"<tr{style}><td><code>{html.escape(key)}</code>"
            + "".join(f"<td><code>{html.escape(value)}</code>" for value in values[key])
            for key in chosen
        )
        return "".join(cells)

    head = "<tr><th>" + "".join(
        f"<th>{_key(number)}{html.escape(name)}" for number, name in enumerate(names)
    )
    shown = f"<table>{head}{rows(differing, ' class=differs')}</table>" if differing else ""
    if len(runs) > 1 and not differing:
        shown = "<p>All runs have the same configuration.</p>"
    what = "every key" if len(runs) == 1 else "keys that are equal"
    return f"{shown}<details><summary>{what}</summary><table>{rows(equal)}</table></details>"


def _curves(runs: Sequence[Run]) -> list[Curve]:
    """What the recipes explained, then what else was measured."""
    explained = {curve.key: curve for run in runs for curve in run.told.curves}
    measured = dict.fromkeys(
        key
        for run in runs
        for row in run.rows
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    )
    named = {key: Curve(key, key.replace("_", " "), "") for key in measured}
    return list((explained | {k: c for k, c in named.items() if k not in explained}).values())


def _evenly(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly spaced, the last among them."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f"<figure style='margin:0'><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(row["step"], row.get(key)) for row in rows]
    return [(x, y) for x, y in pairs if isinstance(y, int | float) and math.isfinite(y)]


def _curve(runs: Sequence[Run], curve: Curve) -> str:
    series = [_points(run.rows, curve.key) for run in runs]
    head = f"<b>{html.escape(curve.title)}</b>"
    caption = f"<figcaption>{html.escape(curve.meaning)}</figcaption>"
    ends = " ".join(
        f"{_key(n) if len(runs) > 1 else ''}{points[-1][1]:.4g}"
        for n, points in enumerate(series)
        if points
    )
    if all(len(points) < 2 for points in series):
        return f"<figure>{head} {ends or 'nothing recorded'}{caption}</figure>"
    width, height, left, bottom = 320, 150, 44, 18
    x0, x1 = (pick(x for points in series for x, _ in points) for pick in (min, max))
    low, high = (pick(y for points in series for _, y in points) for pick in (min, max))
    span = (high - low) or 1.0
    lines = ""
    for number, points in enumerate(series):
        path = " ".join(
            f"{left + (x - x0) / ((x1 - x0) or 1) * (width - left - 8):.1f},"
            f"{8 + (high - y) / span * (height - bottom - 16):.1f}"
            for x, y in points
        )
        colour = COLOURS[number % len(COLOURS)]
        lines += f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.6 />"
    return (
        f"<figure>{head} {ends}"
        f"<svg viewBox='0 0 {width} {height}' role=img aria-label='{html.escape(curve.title)}'>"
        f"<g font-size=10 fill=currentColor opacity=.7>"
        f"<text x=0 y=14>{high:.3g}</text><text x=0 y={height - bottom - 6}>{low:.3g}</text>"
        f"<text x={left} y={height - 4}>{x0:g}</text>"
        f"<text x={width - 8} y={height - 4} text-anchor=end>step {x1:g}</text></g>"
        f"{lines}</svg>{caption}</figure>"
    )
