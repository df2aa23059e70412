"""Collections of images, as they should not be, and addresses of them that say what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from doors.door import Door, Make, table
from doors.sound import grey

Spoil = Callable[[Path], object]
SIDES = (96, 96, 80, 128)  # of the images


def pictures(options: str = "", spoil: Spoil = lambda folder: None) -> Make:
    """A folder of images, spoilt, and what the address says after it."""

    def make(folder: Path) -> str:
        from PIL import Image

        for number, side in enumerate(SIDES):
            Image.fromarray(grey((1, side, side))[0]).save(folder / f"{number}.png")
        spoil(folder)
        return f"images:{folder}{options}"

    return make


def cut(share: float) -> Spoil:
    """The first share of one image."""

    def spoil(folder: Path) -> None:
        raw = (folder / "1.png").read_bytes()
        (folder / "1.png").write_bytes(raw[: int(share * len(raw))])

    return spoil


def nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def of_two_types(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((96, 96), 3000, np.uint16)).save(folder / "deep.png")


def tiny(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / "tiny.png")


WRONG = {
    "take of text": "?take=a:b",
    "take backwards": "?take=3:1",
    "take beyond": "?take=0:99",
    "take superscript": "?take=²:³",
    "take without end": "?take=0:" + "9" * 5000,
    "least of text": "?least_px=text",
    "least 0": "?least_px=0",
    "least superscript": "?least_px=²",
    "least without end": "?least_px=" + "9" * 5000,
    "least above all": "?least_px=500",
    "unknown option": "?colour=red",
    "an option twice": "?take=0:2&take=0:3",
    "match of raw": "?match={name}.png",
    "channel": "?channel=0",
    "unreadable wrong": "?unreadable=keep",
    "voxel nan": "?voxel_nm=nan,1,1",
    "voxel of two": "?voxel_nm=4,4",
}

IMAGES: Sequence[Door] = table(
    "images",
    {
        "sound": ("odd", pictures()),
        "voxel size": ("odd", pictures("?voxel_nm=1,4,4")),
        "a part": ("odd", pictures("?take=0:3&least_px=90")),
        "of two types": ("odd", pictures(spoil=of_two_types)),
        "one of 1 pixel": ("odd", pictures(spoil=tiny)),
        "one unreadable, skipped": ("odd", pictures("?unreadable=skip", cut(0.001))),
        "none": ("shut", pictures(spoil=nothing)),
        "a cut header": ("shut", pictures(spoil=cut(0.001))),
        "cut pixels": ("rotten", pictures(spoil=cut(0.5))),
        "a text": ("shut", pictures(spoil=lambda at: (at / "1.png").write_text("no picture"))),
        "a folder": ("shut", pictures(spoil=lambda at: (at / "more.png").mkdir())),
        **{name: ("shut", pictures(options)) for name, options in WRONG.items()},
    },
)
