"""`report.html`: one file with the result, the pictures, the curves and the configuration of a run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_train import config as configuration
from em_train.run_folder import RunFolder
from em_train.whole import replacing

FRAMES = 12  # pictures through time in a report; all of them stay in images/
STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2a78d6; }
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
code { font-size: .88em; }
"""


@dataclass(frozen=True)
class Curve:
    """One number over the steps, with the sentence that explains it."""

    key: str
    title: str
    meaning: str


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
    """Write the report of a run from what its folder holds."""
    rows = folder.rows()
    frames = _evenly(sorted(folder.images.glob("step-*.png")), FRAMES)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p class=lead>{html.escape(lead)}</p>",
        _image(picture, picture_caption),
        "<h2>Result</h2><table>",
        *(
            f"<tr><th>{html.escape(name)}<td>{html.escape(value)}"
            for name, value in summary.items()
        ),
        "</table><h2>Curves</h2><div class=curves>",
        *(_curve(rows, curve) for curve in curves),
        "</div><h2>Classes through time</h2><div class=frames>",
        *(_image(frame, f"step {int(frame.stem.removeprefix('step-'))}") for frame in frames),
        "</div><h2>Configuration</h2><details><summary>every key</summary><table>",
        *(
            f"<tr><td><code>{html.escape(name)}</code><td><code>{html.escape(str(value))}</code>"
            for name, value in configuration.flat(config).items()
        ),
        "</table></details></html>",
    ]
    with replacing(folder.report) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


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


def _curve(rows: Sequence[Mapping[str, Any]], curve: Curve) -> str:
    points = [(row["step"], row[curve.key]) for row in rows if row.get(curve.key) is not None]
    head = f"<b>{html.escape(curve.title)}</b>"
    if len(points) < 2:
        last = f"{points[0][1]:.4g}" if points else "nothing recorded"
        return (
            f"<figure>{head} {last}<figcaption>{html.escape(curve.meaning)}</figcaption></figure>"
        )
    width, height, left, bottom = 320, 150, 44, 18
    x0, x1 = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    path = " ".join(
        f"{left + (x - x0) / ((x1 - x0) or 1) * (width - left - 8):.1f},"
        f"{8 + (high - y) / span * (height - bottom - 16):.1f}"
        for x, y in points
    )
    return (
        f"<figure>{head} {points[-1][1]:.4g}"
        f"<svg viewBox='0 0 {width} {height}' role=img aria-label='{html.escape(curve.title)}'>"
        f"<g font-size=10 fill=currentColor opacity=.7>"
        f"<text x=0 y=14>{high:.3g}</text><text x=0 y={height - bottom - 6}>{low:.3g}</text>"
        f"<text x={left} y={height - 4}>{x0}</text>"
        f"<text x={width - 8} y={height - 4} text-anchor=end>step {x1}</text></g>"
        f"<polyline points='{path}' fill=none stroke='var(--accent)' stroke-width=1.6 />"
        f"</svg><figcaption>{html.escape(curve.meaning)}</figcaption></figure>"
    )
