"""`emtrain view`: volumes and predictions in Neuroglancer, on this machine.

Every volume is served by `voxel_server`, whatever it is stored as, and becomes a layer: grey values in
the range that they use, class maps and label images as segments, probabilities in the colours of their
classes, embeddings by their first three dimensions. Class `i` has the colour that it has in pictures.
"""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import grey_range, open_volume
from em_data.formats.legend import Legend, read_legend
from em_data.formats.options import split_options
from em_data.geometry import Int3
from PIL import Image, ImageDraw, ImageFont

from em_train.engine.atomic import replacing
from em_train.engine.progress import say
from em_train.look.browser import find_browser, private_page
from em_train.look.pictures import TRUTH_COLOURS, palette
from em_train.look.voxel_server import LOOPBACK, ServedVolume, VoxelServer

LABELS = "labels:"  # before an address: its values are names, whatever it says
LAYOUTS = ("4panel", "xy", "xz", "yz", "3d", "xy-3d", "xz-3d", "yz-3d")
OPACITY = 0.45  # of what lies on top, as in pictures
PANEL_PX = 450  # side of a panel, about
FLAT_VX = (
    2048  # of a volume without coarser levels, at most so many are shown along an axis at first
)
PICTURE_PX = (1200, 900)
PICTURE_SECONDS = 180.0  # until everything is read and drawn
# Without a screen, and drawing without a GPU.
HEADLESS = (
    *("--headless=new", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
LEGEND_PX = 26  # height of a row of names
MOST_NAMES = 20


@dataclass(frozen=True)
class ShownLayer:
    """A volume and how it is shown."""

    name: str
    volume: ServedVolume
    legend: Legend
    visible: bool


@dataclass(frozen=True)
class Viewer:
    """Neuroglancer, and what it shows."""

    neuroglancer: Any
    viewer: Any
    layers: Sequence[ShownLayer]

    @property
    def address(self) -> str:
        """What a browser on this machine opens."""
        return str(self.viewer.get_viewer_url())


@contextmanager
def opened(
    addresses: Sequence[str],
    *,
    position_vx: Int3 | None = None,
    layout: str = "4panel",
    port: int = 0,
) -> Iterator[Viewer]:
    """Neuroglancer with the volumes as layers, the first one below, until the block ends.

    Args:
        addresses: volumes; `labels:` before one says that its values are names.
        position_vx: voxel of the first volume to look at; without it the middle.
        layout: which panels.
        port: where Neuroglancer listens, with the voxels one above; 0: where it is free.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"--layout is {layout!r}; wanted {', '.join(LAYOUTS)}")
    neuroglancer = _import_neuroglancer()
    layers = [
        layer
        for number, address in enumerate(addresses)
        for layer in layers_of(address, below=number == 0)
    ]
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):  # such as raw.zarr of two folders
        layers = [replace(one, name=f"{i} {one.name}") for i, one in enumerate(layers)]
    neuroglancer.set_server_bind_address(LOOPBACK, port)
    with VoxelServer([layer.volume for layer in layers], port and port + 1) as server:
        try:
            viewer = neuroglancer.Viewer()
            with viewer.txn() as state:
                _arrange(neuroglancer, state, layers[0].volume, position_vx, layout)
                for number, layer in enumerate(layers):
                    shown = _shown(neuroglancer, layer, server.address(number), number == 0)
                    state.layers.append(name=layer.name, layer=shown, visible=layer.visible)
                named = [one for one in layers if one.visible and one.legend.classes]
                if named:  # the names of its classes
                    state.selected_layer.layer = named[-1].name
                    state.selected_layer.visible = True
            yield Viewer(neuroglancer, viewer, layers)
        finally:
            neuroglancer.stop()


def show(viewer: Viewer) -> None:
    """Say where Neuroglancer is, open it where there is a screen, and stay until Ctrl-C."""
    say(f"look at {viewer.address}")
    say("stays until Ctrl-C")
    screen = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if screen or sys.platform in ("darwin", "win32"):
            webbrowser.open(stack.enter_context(private_page(viewer.address)).as_uri())
        threading.Event().wait()


def save_screenshot(viewer: Viewer, path: Path) -> None:
    """Write what Neuroglancer shows as PNG, drawn by a browser without a window."""
    with viewer.viewer.config_state.txn() as state:
        state.show_ui_controls = False
        state.viewer_size = PICTURE_PX
    with viewer.viewer.txn() as shown:
        shown.selected_layer.visible = False
    taken: queue.SimpleQueue[Any] = queue.SimpleQueue()
    viewer.viewer.async_screenshot(taken.put)
    width, height = PICTURE_PX
    command = [find_browser(), *HEADLESS, f"--window-size={width},{height + 200}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium's does not work for root
    with private_page(viewer.address) as page:
        browser = subprocess.Popen(
            [*command, f"--user-data-dir={page.parent}", page.as_uri()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that all of its processes can be ended
        )
        found: Any = None
        until = time.monotonic() + PICTURE_SECONDS
        try:
            while found is None and browser.poll() is None and time.monotonic() < until:
                with suppress(queue.Empty):
                    found = taken.get(timeout=1.0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    if found is None:
        raise TimeoutError(
            f"{command[0]} did not show the volumes within {PICTURE_SECONDS:.0f} s; look at them with "
            "emtrain view without --screenshot, or take a volume with coarser levels"
        )
    picture = Image.open(io.BytesIO(found.screenshot.image)).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with_names(picture, viewer.layers).save(temporary, format="PNG")


def with_names(picture: Image.Image, layers: Sequence[ShownLayer]) -> Image.Image:
    """A picture above the names of the classes that it shows, in their colours."""
    entries = [
        (name, layer.legend.colours[i])
        for layer in layers
        if layer.visible
        for i, name in (layer.legend.classes or dict(enumerate(layer.legend.channels))).items()
        if i in layer.legend.colours
    ]
    if len(entries) > MOST_NAMES:
        entries = [
            *entries[:MOST_NAMES],
            (f"… and {len(entries) - MOST_NAMES} more", (255, 255, 255)),
        ]
    font, gap = ImageFont.load_default(size=15), 10
    places, x, row = [], gap, 0
    for name, _ in entries:
        width = 18 + round(font.getlength(name)) + 2 * gap
        if x + width > picture.width and x > gap:
            x, row = gap, row + 1
        places.append((x, picture.height + row * LEGEND_PX + 5))
        x += width
    rows = row + 1 if entries else 0
    sheet = Image.new("RGB", (picture.width, picture.height + rows * LEGEND_PX), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for (left, top), (name, colour) in zip(places, entries, strict=True):
        draw.rectangle((left, top, left + 13, top + 13), fill=colour)
        draw.text((left + 18, top - 2), name, fill="black", font=font)
    return sheet


# Layers ------------------------------------------------------------------------------------------


def layers_of(address: str, *, below: bool, beside: bool = False) -> list[ShownLayer]:
    """The layer of a volume, and those of the label images that are stored beside it.

    Those of the volume below are not shown at first; those of a prediction are, instead of it. With
    `beside` it is one of these.
    """
    forced, address = address.startswith(LABELS), address.removeprefix(LABELS)
    legend = read_legend(address)
    volume = open_volume(address, channel=0 if legend.channels else None)
    # Wider integers are numbers of things: a camera has no more than 16 bits.
    numbers = volume.dtype.kind in "iu" and volume.dtype.itemsize > 2
    is_label = forced or beside or legend.is_label or numbers
    if volume.dtype.kind == "f":
        if forced:
            raise ValueError(
                f"{LABELS}{address} holds {volume.dtype}, and names are integers; look at it without "
                f"{LABELS}, or convert it"
            )
        is_label = False  # whatever it says
    if is_label:
        legend = _coloured(legend, volume.dtype.itemsize)
    served = ServedVolume(
        address, channels=len(legend.channels) or 1, is_label=is_label, names=legend.classes
    )
    place, _ = split_options(address)
    name = re.sub(r"\.(ome\.)?zarr$", "", place.rstrip("/").rpartition("/")[2])
    labels = [] if "://" in address or not Path(place).is_dir() else volume.label_names
    layers = [ShownLayer(name, served, legend, below or not labels)]
    for label in labels:
        (found,) = layers_of(f"{place}/labels/{label}", below=False, beside=True)
        layers.append(replace(found, name=f"{name}/{label}", visible=not below))
    return layers


def _coloured(legend: Legend, itemsize: int) -> Legend:
    """With colours: its own, or those that true classes have in pictures. Instances keep none."""
    if legend.colours or itemsize > 1:
        return legend
    values = sorted(legend.classes) or range(1, 256)
    shades = palette(max(values) + 1, TRUTH_COLOURS)
    colours = {i: (int(r), int(g), int(b)) for i, (r, g, b) in enumerate(shades) if i in values}
    return replace(legend, colours=colours)


def _arrange(
    neuroglancer: Any, state: Any, first: ServedVolume, position_vx: Int3 | None, layout: str
) -> None:
    """Units, and all of the first volume in sight."""
    size_nm, shape, origin_nm = first.voxel_size_nm, first.finest.shape, first.finest.origin_nm
    if first.finest.voxel_size_nm is None:
        say(f"{first.finest.source} does not say its voxel size; it is shown with voxels of 1 nm")
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=size_nm[::-1]
    )
    middle = [n / 2 for n in shape] if position_vx is None else [p + 0.5 for p in position_vx]
    corner = [o / s - 0.5 for o, s in zip(origin_nm, size_nm, strict=True)]
    state.position = [c + m for c, m in zip(corner, middle, strict=True)][::-1]
    extent_nm = [n * s for n, s in zip(shape, size_nm, strict=True)]
    finest_nm = min(size_nm)
    widest = max(extent_nm) / finest_nm
    seen = widest if len(first.levels) > 1 else min(widest, FLAT_VX)
    panels = 1 if layout in ("xy", "xz", "yz", "3d") else 2
    state.cross_section_scale = 1.05 * seen / PANEL_PX * panels / 2
    state.projection_scale = 1.6 * widest
    state.layout = layout
    state.show_default_annotations = False


def _shown(neuroglancer: Any, layer: ShownLayer, url: str, below: bool) -> Any:
    volume, legend = layer.volume, layer.legend
    names, channels = ["x", "y", "z"], len(legend.channels)
    scales, units = [*volume.voxel_size_nm[::-1]], ["nm"] * 3
    corner = [
        o / s - 0.5 for o, s in zip(volume.finest.origin_nm, volume.voxel_size_nm, strict=True)
    ]
    matrix = np.concatenate([np.eye(3), np.array(corner[::-1])[:, None]], 1)
    if channels:
        names, scales, units = [*names, "c^"], [*scales, 1], [*units, ""]
        matrix = np.insert(np.insert(matrix, 3, 0, axis=1), 3, [0, 0, 0, 1, 0], axis=0)
    source = neuroglancer.LayerDataSource(
        url=url,
        transform=neuroglancer.CoordinateSpaceTransform(
            output_dimensions=neuroglancer.CoordinateSpace(names=names, scales=scales, units=units),
            matrix=matrix,
        ),
    )
    if volume.is_label:
        colours = {value: "#{:02x}{:02x}{:02x}".format(*c) for value, c in legend.colours.items()}
        return neuroglancer.SegmentationLayer(
            source=[source],
            segment_colors=colours,
            selected_alpha=1.0 if below else OPACITY,
            hide_segment_zero=0 not in legend.colours,
        )
    return neuroglancer.ImageLayer(
        source=[source], shader=shader(volume, legend), opacity=1.0 if below else OPACITY
    )


def shader(volume: ServedVolume, legend: Legend) -> str:
    """How values become colours: grey, the colours of channels mixed, or three channels as RGB."""
    ranges = [grey_range(channel) for channel in volume.coarsest[: len(legend.channels) or 1]]
    if not legend.channels:
        low, high = (f"{value:g}" for value in (ranges[0].low, ranges[0].high))
        return (
            f"#uicontrol invlerp normalized(range=[{low}, {high}])\n"
            "void main() { emitGrayscale(normalized()); }\n"
        )
    as_they_are = volume.dtype == "uint8"  # probabilities: 255 is certain
    values = [
        f"clamp((float(toRaw(getDataValue({i}))) - {0 if as_they_are else r.low:f})"
        f" / {255 if as_they_are else r.high - r.low:f}, 0.0, 1.0)"
        for i, r in enumerate(ranges)
    ]
    if not legend.colours:
        rgb = ", ".join((values * 3)[:3] if len(values) < 3 else values[:3])
        return f"void main() {{ emitRGB(vec3({rgb})); }}\n"
    controls, terms = [], []
    for i, (name, value) in enumerate(zip(legend.channels, values, strict=True)):
        switch = f"show_{i}_" + re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
        r, g, b = (c / 255 for c in legend.colours.get(i, (255, 255, 255)))
        controls.append(f"#uicontrol bool {switch} checkbox(default=true)\n")
        terms.append(f"  if ({switch}) sum += {value} * vec4({r:.4f}, {g:.4f}, {b:.4f}, 1.0);\n")
    return (
        "".join(controls)
        + "void main() {\n  vec4 sum = vec4(0.0);\n"
        + "".join(terms)
        + "  emitRGBA(vec4(sum.rgb / max(sum.a, 1e-6), min(sum.a, 1.0)));\n}\n"
    )


def _import_neuroglancer() -> Any:
    try:
        import neuroglancer
    except ImportError as error:
        raise ImportError(
            f"emtrain view needs Neuroglancer, which cannot be imported ({error}); "
            "install it: pip install 'em-train[view]'"
        ) from error
    return neuroglancer
