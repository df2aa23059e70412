"""Names and addresses that a person, a script or a bad day may hand over.

Names with spaces, quotes or a leading dash are sound: they are what a folder is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from doors.door import Door, Make, table
from doors.sound import write_image

# Names of sound volumes; what cannot be in a file's name is not here.
NAMES = {
    "a space": "my volume.zarr",
    "a newline": "two\nlines.zarr",
    "a tab": "a\tb.zarr",
    "umlauts": "größe µm.zarr",
    "two alphabets": "объём 体積.zarr",
    "a picture": "🔬.zarr",
    "a leading dash": "-rf.zarr",
    "two leading dashes": "--help.zarr",
    "quotes": 'it\'s "raw".zarr',
    "shell": "$(touch owned); rm -rf x.zarr",
    "markup": "[red]raw[/red].zarr",
    "braces": "{name}.zarr",
    "percent": "100%s.zarr",
    "a hash": "#1.zarr",
    "a question mark": "raw?.zarr",
    "a star": "*.zarr",
    "a backslash": "a\\b.zarr",
    "an at sign": "raw@2.zarr",
    "an equals sign": "a=b.zarr",
    "a comma": "a,b.zarr",
    "250 letters": "v" * 245 + ".zarr",
    "an escape": "\x1b[31mred.zarr",
    "surrogates": "\udcff\udcfe.zarr",
    "no suffix": "volume",
    "a colon": "a:b.zarr",
    "two colons": "a::b.zarr",
    "a trailing dot": "volume.",
    "a leading dot": ".hidden.zarr",
}
# What the product gives a meaning of its own, or no terminal can print.
ODD_NAMES = (
    "an at sign",
    "an equals sign",
    "two colons",
    "surrogates",
    "a question mark",
    "a newline",
)

WORDS = {
    "empty": "",
    "a space": " ",
    "nowhere": "nowhere.zarr",
    "a home": "~nobody/volume.zarr",
    "a null device": "/dev/null",
    "an endless device": "/dev/zero",
    "memory": "/proc/self/mem",
    "a process": "/proc/self",
    "the root": "/",
    "here": ".",
    "above": "..",
    "10000 letters": "v" * 10_000,
    "1000 folders": "a/" * 1000,
    "a dash": "-",
    "unknown scheme": "gopher://host/volume",
    "file scheme": "file:///nowhere/volume",
    "only a scheme": "://",
    "precomputed alone": "precomputed://",
    "precomputed nowhere": "precomputed:///nowhere",
    "precomputed twice": "precomputed://precomputed://nowhere",
    "precomputed of a file": "precomputed:///etc/passwd",
    "precomputed unknown": "precomputed://gopher://host/volume",
    "n5 alone": "n5://",
    "n5 nowhere": "n5:///nowhere",
    "synthetic of nothing": "synthetic:shape=0x64x64",
    "synthetic negative": "synthetic:shape=-8x64x64",
    "synthetic of text": "synthetic:shape=axbxc",
    "synthetic of floats": "synthetic:shape=1e3x64x64",
    "synthetic of two": "synthetic:shape=64x64",
    "synthetic unknown": "synthetic:colour=red",
    "synthetic no value": "synthetic:shape",
    "synthetic nan": "synthetic:voxel_nm=nanx8x8",
    "synthetic infinite": "synthetic:voxel_nm=infx8x8",
    "synthetic of 0 nm": "synthetic:voxel_nm=0x8x8",
    "synthetic negative nm": "synthetic:voxel_nm=-8x8x8",
    "synthetic seed of text": "synthetic:seed=one",
    "h5 nowhere": "nowhere.h5::raw",
    "only colons": "::",
    "images nowhere": "images:nowhere",
}
ODD_WORDS = {
    "synthetic seed -1": "synthetic:shape=12x80x80,seed=-1",
    "synthetic seed 10^40": f"synthetic:shape=12x80x80,seed={10**40}",
    "synthetic enormous": f"synthetic:shape={10**15}x{10**15}x{10**15}",
    "synthetic tiny nm": "synthetic:shape=12x80x80,voxel_nm=1e-9x1e-9x1e-9",
    "synthetic huge nm": "synthetic:shape=12x80x80,voxel_nm=1e9x1e9x1e9",
    "synthetic empty parts": "synthetic:,,shape=12x80x80,,",
    "synthetic twice": "synthetic:shape=1x1x1,shape=12x80x80",
}
SERVERS = {
    "nobody listens": "http://127.0.0.1:1/volume.zarr",
    "no port": "https://127.0.0.1:port/volume.zarr",
    "port 99999": "http://127.0.0.1:99999/volume.zarr",
    "no host": "http://",
    "half an address": "http://[::1/volume.zarr",
    "no bucket": "s3://",
    "a bad bucket": "s3://..//..",
    "no google bucket": "gs://",
    "precomputed, nobody listens": "precomputed://http://127.0.0.1:1/volume",
    "a user and a line": "http://a:b@127.0.0.1:1/x\r\nHost: y",
}


def named(name: str) -> Make:
    return lambda folder: str(write_image(folder / name))


def word(text: str) -> Make:
    return lambda folder: text


ADDRESSES: Sequence[Door] = [
    *table(
        "name",
        {
            name: ("odd" if name in ODD_NAMES else "fine", named(text))
            for name, text in NAMES.items()
        },
    ),
    *table("word", {name: ("shut", word(text)) for name, text in WORDS.items()}),
    *table("word", {name: ("odd", word(text)) for name, text in ODD_WORDS.items()}),
    *(
        replace(door, remote=True)
        for door in table("server", {name: ("shut", word(text)) for name, text in SERVERS.items()})
    ),
]


def relative(folder: Path, name: str) -> str:
    """A sound volume with an odd name, called from its folder: the name alone."""
    write_image(folder / name)
    return name
