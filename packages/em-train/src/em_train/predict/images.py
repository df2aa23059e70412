"""`emtrain predict` for a collection of images: a folder of pictures, one of each image for each output.

    OUT/classes/NAME.png            what differs from recipe to recipe stands in its `predict.py`
    OUT/prediction.json             of which run and images, by which options

Everything lies in `.OUT.unfinished` beside OUT until it is whole. After a signal `--resume` goes on: the
pictures that are there are not made again.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Images, StoreExistsError, Volume, VolumeReadError, open_images
from em_data.formats.images import some
from em_data.writer.place import check_apart
from PIL import Image

from em_train.engine.atomic import remove_leftovers, replacing
from em_train.engine.folders import check_replaceable, put_in_place
from em_train.engine.progress import meter, say
from em_train.engine.run_folder import read_by
from em_train.engine.stop import StopRequest
from em_train.engine.stored import read_json

NOTE = "prediction.json"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What a run makes of each image of a collection."""

    make: Callable[[Volume], Mapping[str, np.ndarray]]
    """From an image to its pictures (Y, X), by the folder that they belong to."""
    folders: tuple[str, ...]
    palettes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """RGB of the values of class maps, by folder: (values, 3) uint8."""
    finish: Callable[[Path, Images], None] | None = None
    """Writes what lies beside them when all are there."""
    files: tuple[str, ...] = ()
    """The names of that."""

    @property
    def tops(self) -> list[str]:
        """The folders right in the one that is written."""
        return sorted({name.partition("/")[0] for name in self.folders})


def predict_images(
    run: Path,
    address: str,
    out: Path,
    pictures: Pictures,
    asked: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> bool:
    """Write what a run says about the images of a collection; False when a signal asked to stop.

    Args:
        run: folder of the run.
        address: `images:FOLDER`.
        out: folder to write.
        pictures: how they are made.
        asked: what they depend on; it must be the same when it is gone on with.
        resume: go on with a folder that was begun.
        overwrite: replace a prediction that is there.
    """
    check_apart(out, [run, address, *read_by(run)])
    images = open_images(address)
    check_names(images)
    begun = out.with_name(f".{out.name}.unfinished")
    named = [images.name(number) for number in range(len(images))]
    wanted = {**asked, "images": named, "files": [*pictures.tops, *pictures.files]}
    if resume and (out / NOTE).exists() and not begun.exists():
        check_same(out, wanted)
        say(f"{out} is whole already")
        return True
    check_replaceable(out, NOTE, "prediction of images", overwrite=overwrite)
    if begun.exists() and not (resume or overwrite):
        raise StoreExistsError(
            f"{out} was begun already; go on with --resume, or begin anew with --overwrite"
        )
    if resume and begun.exists():
        check_same(begun, wanted)
        remove_leftovers(begun)
    else:
        shutil.rmtree(begun, ignore_errors=True)
        for name in pictures.folders:
            (begun / name).mkdir(parents=True)
        with replacing(begun / NOTE) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    with StopRequest() as stop, meter("predict", len(images)) as bar:
        for number in range(len(images)):
            if stop.name:
                return False
            _make(images, number, begun, pictures)
            bar.update(number + 1, images.name(number))
    if pictures.finish:
        pictures.finish(begun, images)
    put_in_place(begun, out)
    for name in (*pictures.tops, *pictures.files):
        say(f"wrote   {out / name}")
    return True


def _make(images: Images, number: int, folder: Path, pictures: Pictures) -> None:
    """Write the pictures of one image, unless all of them are there."""
    name = images.name(number)
    if all(picture_of(folder / one, name) for one in pictures.folders):
        return
    try:
        found = pictures.make(images[number].held_in_memory())
    except VolumeReadError as error:
        if not images.skips_unreadable:
            raise
        warnings.warn(f"left out, as the address says: {error}", stacklevel=2)
        return
    for one, values in found.items():
        save_picture(values, folder / one, name, pictures.palettes.get(one))


def picture_of(folder: Path, name: str) -> Path | None:
    """The picture of an image, where it is there."""
    return next((p for s in (".png", ".tif") if (p := folder / f"{name}{s}").exists()), None)


def save_picture(
    values: np.ndarray, folder: Path, name: str, palette: np.ndarray | None = None
) -> None:
    """Write (Y, X): bytes and 16 bits as PNG, larger numbers and real ones as TIFF."""
    small = values.dtype in (np.uint8, np.uint16)
    if values.dtype == np.uint32:  # Pillow has signed ones
        values = values.astype(np.int32)
    picture = Image.fromarray(values)
    if palette is not None:
        picture = picture.convert("P")
        picture.putpalette(palette.tobytes())
    with replacing(folder / f"{name}{'.png' if small else '.tif'}") as temporary:
        picture.save(temporary, format="PNG" if small else "TIFF")


def check_names(images: Images) -> None:
    """Refuse images whose pictures would have the same name."""
    counts = Counter(images.name(number) for number in range(len(images)))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise StoreExistsError(
            f"{images.folder} has several images of one name with different endings: {some(twice)}; "
            "predict them from different folders"
        )


def check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with what was begun otherwise."""
    begun = read_json(folder / NOTE, dict[str, Any], "begin anew with --overwrite")
    differ = [key for key in {*begun, *wanted} if begun.get(key) != wanted.get(key)]
    if differ:
        raise StoreExistsError(
            f"{folder} was begun with other {', '.join(sorted(differ))}; give the same, or begin anew "
            "with --overwrite"
        )
