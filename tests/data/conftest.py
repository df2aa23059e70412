"""Servers on loopback, and voxels to put into files."""

import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest


class RangeHandler(SimpleHTTPRequestHandler):
    """Files of a folder, with the ranges that shards need; what is named `forbidden` is refused."""

    protocol_version = "HTTP/1.1"  # keeps connections, as real servers do

    def do_GET(self):
        with self.server.one_more():
            self.answer()

    def answer(self):
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        self.server.requests.append(self.path)
        refused = self.server.refusing or "forbidden" in self.path
        if refused or not path.is_file():
            self.send_error(403 if refused else self.server.absent)
            return
        data = path.read_bytes()
        start, stop = 0, len(data)
        if wanted and self.server.ranges:
            first, last = wanted.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")  # browsers ask whether they may look
        super().end_headers()

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    """Serves a folder; `ranges = False` makes it as simple as Python's own server."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # connections that wait to be accepted
    ranges = True
    refusing = False
    latency_s = 0.002  # a short way to the server
    absent = 404  # buckets that may not be listed answer 403

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(RangeHandler, directory=str(folder)))
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests = []
        self.at_once = self.most_at_once = 0
        self.counting = threading.Lock()

    @contextmanager
    def one_more(self):
        """Count the requests that are being answered."""
        with self.counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.latency_s)
        yield
        with self.counting:
            self.at_once -= 1


@pytest.fixture
def http_server(tmp_path):
    """An HTTP server of `tmp_path`."""
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def free_port():
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def moto_server():
    """The address of moto's S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_bucket(moto_server, monkeypatch):
    """A function that puts the files of a folder into the bucket `em-data` and gives its address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in [n for n in os.environ if n.startswith("AWS_") and n.endswith(("KEY", "KEY_ID"))]:
        monkeypatch.delenv(name)

    import boto3

    credentials = {"aws_access_key_id": "owner", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=moto_server, region_name="us-east-1", **credentials)
    client.create_bucket(Bucket="em-data", ACL="public-read")

    def upload(folder, acl="public-read"):
        for path in filter(Path.is_file, folder.rglob("*")):
            key = f"{folder.name}/{path.relative_to(folder)}"
            client.put_object(Bucket="em-data", Key=key, Body=path.read_bytes(), ACL=acl)
        return f"s3://em-data/{folder.name}"

    yield upload
    for stored in client.list_objects_v2(Bucket="em-data").get("Contents", ()):
        client.delete_object(Bucket="em-data", Key=stored["Key"])
    client.close()


@pytest.fixture
def voxels():
    """A function that draws voxels of a shape and type, not all of them noise."""

    def draw(shape=(11, 40, 50), dtype=np.uint8, seed=0):
        rng = np.random.default_rng(seed)
        top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1000
        values = rng.integers(0, min(top, 2**31), shape).astype(dtype)
        values[..., : shape[-1] // 3] = 7
        return values

    return draw


@pytest.fixture
def script():
    """A function that runs Python text in a process of its own and gives what it prints."""

    def run(text, *arguments):
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(text)]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def write_image(tmp_path):
    """A function that writes an OME-Zarr image of one level or more with zarr-python."""
    import zarr

    def write(
        levels,
        name="image.zarr",
        zarr_format=3,
        axes="zyx",
        size_nm=(40, 8, 8),
        extra=None,
        **array,
    ):
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=zarr_format)
        datasets = []
        for number, data in enumerate(levels):
            group.create_array(f"s{number}", data=data, **array)
            scale = [1.0] * (len(axes) - 3) + [s * 2**number for s in size_nm]
            datasets.append(
                {
                    "path": f"s{number}",
                    "coordinateTransformations": [{"type": "scale", "scale": scale}],
                }
            )
        kinds = {"c": {"type": "channel"}, "t": {"type": "time", "unit": "second"}}
        space = {"type": "space", "unit": "nanometer"}
        described = {
            "multiscales": [
                {
                    "axes": [{"name": a, **kinds.get(a, space)} for a in axes],
                    "datasets": datasets,
                }
            ],
            **(extra or {}),
        }
        if zarr_format == 3:
            described = {"ome": {"version": "0.5", **described}}
        group.attrs.update(described)
        return tmp_path / name

    return write


@pytest.fixture
def write_precomputed(tmp_path):
    """A function that writes a precomputed volume (z, y, x) or (c, z, y, x) with tensorstore."""
    import tensorstore

    def write(data, name, *, resolution=(8, 8, 40), offset=(0, 0, 0), level=0, **scale):
        data = data if data.ndim == 4 else data[None]
        scale = {"chunk_size": [16, 16, 4], "encoding": "raw", **scale}
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{tmp_path / name}/",
            "scale_index": level,
            "multiscale_metadata": {
                **{"data_type": data.dtype.name, "num_channels": len(data), "type": "image"},
            },
            "scale_metadata": {
                "size": data.shape[:0:-1],
                "resolution": resolution,
                "voxel_offset": offset,
                **scale,
            },
        }
        if level:
            spec.pop("scale_index")
        array = tensorstore.open(spec, create=True, open=level > 0).result()
        array[...] = data.transpose(3, 2, 1, 0)
        return tmp_path / name

    return write


@pytest.fixture
def write_n5(tmp_path):
    """A function that writes an N5 dataset (…, z, y, x) with tensorstore."""
    import json

    import tensorstore

    def write(data, name, compression=None, **attributes):
        metadata = {
            "dimensions": data.shape[::-1],
            "blockSize": [16, 8, 4, 1, 1][: data.ndim],
            "dataType": data.dtype.name,
            "compression": compression or {"type": "gzip"},
        }
        spec = {"driver": "n5", "kvstore": f"file://{tmp_path / name}/", "metadata": metadata}
        tensorstore.open(spec, create=True).result()[...] = data.T
        file = tmp_path / name / "attributes.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | attributes))
        return tmp_path / name

    return write


@pytest.fixture
def emps(real_data):
    """A real collection of images with their labels: 160 of EMPS."""
    folder = real_data / "emps_train"
    if not folder.is_dir():
        pytest.skip(f"no emps_train in {real_data}; set EM_REAL_DATA")
    return folder
