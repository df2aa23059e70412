"""Voxels on request, for a browser on this machine: any `Volume` as if it were stored as precomputed.

Neuroglancer asks for small boxes at the resolution that it shows, so the volume may be of any size and
of any format that em-data reads, on a server with credentials too. Only this machine is answered, and
only who knows the token in the address.

https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from em_data import Box, Volume, open_volume
from em_data.geometry import Int3, int3

from em_train.engine.progress import say

LOOPBACK = "127.0.0.1"
CHUNK_VX = (64, 64, 64)  # of volumes without chunks
SMALLEST_BYTES, LARGEST_BYTES = 1 << 15, 1 << 21  # of one answer
TYPES = {"bool": "uint8", "float16": "float32", "float64": "float32", "int64": "float32"}
PLACE = re.compile(r"(\d+)-(\d+)_(\d+)-(\d+)_(\d+)-(\d+)")  # x, y, z


class ServedVolume:
    """One volume with all its levels and channels, as precomputed."""

    def __init__(
        self,
        address: str,
        *,
        channels: int = 1,
        is_label: bool = False,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """Open all levels of the volume; `names` are those of the values of a label image."""
        picks = range(channels) if channels > 1 else (None,)
        first = open_volume(address, channel=picks[0])
        sizes = [level.voxel_size_nm for level in first.levels]
        at_nm = sizes if len(sizes) > 1 and all(sizes) else [None]
        self.levels = [
            [open_volume(address, at_nm=size, channel=pick) for pick in picks] for size in at_nm
        ]
        self.finest, self.coarsest = self.levels[0][0], self.levels[-1]
        self.voxel_size_nm = self.finest.voxel_size_nm or (1.0, 1.0, 1.0)
        self.is_label, self.names = is_label, names or {}
        kind = self.finest.dtype.name
        if is_label:  # names have no sign
            self.dtype = kind.replace("uint", "int").replace("int", "uint").replace("bool", "uint8")
        else:
            self.dtype = TYPES.get(kind, "float32" if kind == "uint64" else kind)

    def info(self) -> dict[str, Any]:
        """The file `info`."""
        scales = []
        for number, (volume, *_) in enumerate(self.levels):
            size_nm = volume.voxel_size_nm or self.voxel_size_nm
            # Corners of voxels, counted in voxels from the first corner of the finest level.
            offset = [
                round(((o - n / 2) - (o0 - n0 / 2)) / n)
                for o, n, o0, n0 in zip(
                    *(volume.origin_nm, size_nm, self.finest.origin_nm, self.voxel_size_nm),
                    strict=True,
                )
            ]
            scales.append(
                {
                    "key": str(number),
                    "size": volume.shape[::-1],
                    "resolution": size_nm[::-1],
                    "voxel_offset": offset[::-1],
                    "chunk_sizes": [self.chunk_vx(number)[::-1]],
                    "encoding": "raw",
                }
            )
        return {
            "@type": "neuroglancer_multiscale_volume",
            "type": "segmentation" if self.is_label else "image",
            "data_type": self.dtype,
            "num_channels": len(self.levels[0]),
            "scales": scales,
            **({"segment_properties": "names"} if self.names else {}),
        }

    def properties(self) -> dict[str, Any]:
        """The file `names/info`: what values are called."""
        return {
            "@type": "neuroglancer_segment_properties",
            "inline": {
                "ids": [str(value) for value in self.names],
                "properties": [
                    {"id": "label", "type": "label", "values": [*self.names.values()]},
                ],
            },
        }

    def chunk_vx(self, level: int) -> Int3:
        """What is served at once: the chunks of the volume, or what has a handy size."""
        volume = self.levels[level][0]
        size = [min(c, n) for c, n in zip(volume.chunk_vx or CHUNK_VX, volume.shape, strict=True)]
        voxel = len(self.levels[0]) * np.dtype(self.dtype).itemsize
        while math.prod(size) * voxel > LARGEST_BYTES:
            longest = size.index(max(size))
            size[longest] = -(-size[longest] // 2)
        while math.prod(size) * voxel < SMALLEST_BYTES and int3(size) != volume.shape:
            room = [s if s < n else math.inf for s, n in zip(size, volume.shape, strict=True)]
            shortest = room.index(min(room))
            size[shortest] = min(2 * size[shortest], volume.shape[shortest])
        return int3(size)

    def read(self, level: int, place: str) -> bytes | None:
        """The voxels of a box such as `0-64_0-64_0-32`, x first; None where there is none."""
        found = PLACE.fullmatch(place)
        if not found or level >= len(self.levels):
            return None
        x0, x1, y0, y1, z0, z1 = map(int, found.groups())
        offset = self.info()["scales"][level]["voxel_offset"][::-1]
        origin = [a - o for a, o in zip((z0, y0, x0), offset, strict=True)]
        size = (z1 - z0, y1 - y0, x1 - x0)
        volumes: Sequence[Volume] = self.levels[level]
        ends = [o + n for o, n in zip(origin, size, strict=True)]
        inside = all(e <= n for e, n in zip(ends, volumes[0].shape, strict=True))
        if min(*origin, *(n - 1 for n in size)) < 0 or not inside:
            return None
        box = Box(int3(origin), size)
        return b"".join(v.read(box).astype(self.dtype, copy=False).tobytes() for v in volumes)


class VoxelServer(ThreadingHTTPServer):
    """Answers requests for voxels, in threads, between `with` and its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, volumes: Sequence[ServedVolume], port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.volumes = volumes
        self.token = secrets.token_hex(16)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def address(self, number: int) -> str:
        """Where one of the volumes is."""
        return f"precomputed://http://{LOOPBACK}:{self.server_port}/{self.token}/{number}"

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Type and content of what lies at a path; None where there is nothing."""
        token, number, *rest = [*path.strip("/").split("/"), ""]
        if token != self.token or not number.isdecimal() or int(number) >= len(self.volumes):
            return None
        volume, rest = self.volumes[int(number)], rest[:-1]
        if rest == ["info"]:
            return "application/json", json.dumps(volume.info()).encode()
        if rest == ["names", "info"] and volume.names:
            return "application/json", json.dumps(volume.properties()).encode()
        if len(rest) == 2 and rest[0].isdecimal():
            voxels = volume.read(int(rest[0]), rest[1])
            return None if voxels is None else ("application/octet-stream", voxels)
        return None

    def __enter__(self) -> VoxelServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    server: VoxelServer

    def do_GET(self) -> None:
        try:
            found = self.server.answer(self.path)
        except (OSError, ValueError, MemoryError) as error:
            say(str(error))
            found = None
        kind, content = found or ("text/plain", b"")
        try:
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            # The page comes from another port; who asks has shown the token.
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # it looks elsewhere by now
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a look at a volume is thousands of requests."""
