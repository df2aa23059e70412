"""Voxels on request, for a browser on this machine: any `Volume` as if it were stored as precomputed.

Neuroglancer asks for small boxes at the resolution that it shows, so the volume may be of any size and
of any format that em-data reads, on a server with credentials too. Only this machine is answered, and
only who knows the token in the address and asks under a name of this machine: a page from elsewhere can
have its own name lead here.

https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import json
import math
import re
import secrets
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
PLACE = re.compile("_".join([r"(-?[0-9]{1,18})-(-?[0-9]{1,18})"] * 3))  # x, y, z
HOSTS = (LOOPBACK, "localhost")
CONNECTIONS = 64  # at once, a thread each; a browser has six of a server
TIMEOUT_SECONDS = 30.0  # that a connection may say nothing, or take nothing
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n"
ALLOWED = "Access-Control-Allow-Origin"  # the page comes from another port


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
        """The voxels of a box such as `0-64_0-64_0-32`, x first; None where there is none.

        No box is larger than what `info` says is served at once. A level may begin before the finest
        one, then its boxes are called `-5-59` and the like.
        """
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
        small = all(n <= most for n, most in zip(size, self.chunk_vx(level), strict=True))
        if min(*origin, *(n - 1 for n in size)) < 0 or not (inside and small):
            return None
        box = Box(int3(origin), size)
        return b"".join(v.read(box).astype(self.dtype, copy=False).tobytes() for v in volumes)


class VoxelServer(ThreadingHTTPServer):
    """Answers requests for voxels, in threads, between `with` and its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, volumes: Sequence[ServedVolume], port: int = 0, hosts: Sequence[str] = HOSTS
    ) -> None:
        """Listen at `port`, or where it is free; `hosts` are the names that it answers to."""
        super().__init__((LOOPBACK, port), _Handler)
        self.volumes = volumes
        self.hosts = hosts
        self.token = secrets.token_hex(16)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._silent: dict[socket.socket, None] = {}  # who has asked nothing yet, the oldest first
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def address(self, number: int) -> str:
        """Where one of the volumes is."""
        return f"precomputed://http://{LOOPBACK}:{self.server_port}/{self.token}/{number}"

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Type and content of what lies at a path; None where there is nothing."""
        token, number, *rest = [*path.strip("/").split("/"), ""]
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return None
        if not re.fullmatch("[0-9]{1,9}", number) or int(number) >= len(self.volumes):
            return None
        volume, rest = self.volumes[int(number)], rest[:-1]
        if rest == ["info"]:
            return "application/json", json.dumps(volume.info()).encode()
        if rest == ["names", "info"] and volume.names:
            return "application/json", json.dumps(volume.properties()).encode()
        if len(rest) == 2 and re.fullmatch("[0-9]{1,9}", rest[0]):
            voxels = volume.read(int(rest[0]), rest[1])
            return None if voxels is None else ("application/octet-stream", voxels)
        return None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread; of too many, one that is silent makes room, or it waits."""
        if self._free.acquire(blocking=False) or (
            self._drop_silent() and self._free.acquire(timeout=1.0)
        ):
            self.mark(request, silent=True)
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread has begun
                self.mark(request, silent=False)
                self._free.release()
                raise
            return
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(BUSY + f"{ALLOWED}: *\r\n\r\n".encode())
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.mark(request, silent=False)
            self._free.release()

    def mark(self, request: socket.socket, *, silent: bool) -> None:
        """Note whether a connection has still to ask something."""
        with self._counting:
            self._silent.pop(request, None)
            if silent:
                self._silent[request] = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who leaves in the middle is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _drop_silent(self) -> bool:
        with self._counting:
            oldest = next(iter(self._silent), None)
            if oldest is not None:
                del self._silent[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end
        return oldest is not None

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

    def setup(self) -> None:
        """Let no connection be kept by who says nothing."""
        self.request.settimeout(TIMEOUT_SECONDS)
        super().setup()

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        self.server.mark(self.request, silent=True)
        super().handle_one_request()

    def do_GET(self) -> None:
        self.server.mark(self.request, silent=False)
        known = re.sub(":[0-9]+$", "", self.headers.get("Host", "")).lower() in self.server.hosts
        found = None
        try:
            found = self.server.answer(self.path) if known else None
        except (OSError, ValueError, MemoryError) as error:
            say(str(error))
        kind, content = found or ("text/plain", b"")
        try:
            self.send_response(200 if found else 404 if known else 403)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if known:
                self.send_header(ALLOWED, "*")
            self.end_headers()
            self.wfile.write(content)
        except (ConnectionError, TimeoutError):  # it looks elsewhere by now
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a look at a volume is thousands of requests."""
