"""The server of voxels under requests that no browser sends: answered in order, or not at all; alive after."""

import importlib
import json
import pkgutil
import socket
import threading
import time
from contextlib import suppress

import em_train
import pytest
from doors.sound import write_image

# By its name: where it lies in the package is no matter here.
MODULE = next(
    name
    for _, name, _ in pkgutil.walk_packages(em_train.__path__, "em_train.")
    if name.endswith(".voxel_server")
)
BOX = "0-8_0-8_0-4"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    voxels = importlib.import_module(MODULE)
    path = write_image(tmp_path_factory.mktemp("served") / "raw.zarr")
    with voxels.VoxelServer([voxels.ServedVolume(str(path))]) as server:
        yield server


def send(server, request, *, wait=20.0):
    """What comes back for some bytes, until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=wait) as line:
        found = b""
        with suppress(TimeoutError, OSError):  # it may refuse before all is sent
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError, OSError):
            while part := line.recv(1 << 16):
                found += part
        return found


def get(server, path, *, host=None, method="GET", more=""):
    host = host or f"127.0.0.1:{server.server_port}"
    raw = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"
    return send(server, raw.encode("utf-8", "surrogateescape"))


def status(answer):
    return int(answer.split(None, 2)[1]) if answer.startswith(b"HTTP/") else None


def alive(server):
    answer = get(server, f"/{server.token}/0/info")
    return status(answer) == 200 and json.loads(answer.partition(b"\r\n\r\n")[2])["scales"]


def paths(token):
    """Requests for what is not there, or for what nobody may have."""
    wrong = "0" * len(token)
    return (
        *("/", "//", "", "*", "/favicon.ico", "/info", "/0/info", f"/{wrong}/0/info", f"/{token}"),
        *(f"/{token}/", f"/{token}/0", f"/{token}/0/", f"/{token}/1/info", f"/{token}/-1/info"),
        *(f"/{token}/²/info", f"/{token}/１/info", f"/{token}/{'9' * 5000}/info"),
        *(f"/{token[:-1]}/0/info", f"/{token}x/0/info", f"/{token.upper()}X/0/info"),
        *(f"/{token}/0/../0/info/x", f"/{token}/0/../../etc/passwd", f"/{token}/0/%2e%2e/info"),
        *(f"/{token}/0/info/x", f"/{token}/0/names/info", f"/{token}/0/0", f"/{token}/0/0/"),
        *(f"/{token}/0/0/{BOX}/x", f"/{token}/0/7/{BOX}", f"/{token}/0/-1/{BOX}"),
        *(f"/{token}/0/{'9' * 5000}/{BOX}", f"/{token}/0/²/{BOX}"),
        *(f"/{token}/0/0/8-0_0-8_0-4", f"/{token}/0/0/0-0_0-8_0-4", f"/{token}/0/0/0-8_0-8"),
        *(
            f"/{token}/0/0/-8-8_0-8_0-4",
            f"/{token}/0/0/0-9999_0-8_0-4",
            f"/{token}/0/0/a-b_c-d_e-f",
        ),
        *(f"/{token}/0/0/0-{'9' * 300}_0-8_0-4", f"/{token}/0/0/0-{'9' * 5000}_0-8_0-4"),
        *(f"/{token}/0/0/²-³_0-8_0-4", f"/{token}/0/0/0-8_0-8_0-4%00", f"/{token}/0/0/{BOX}\x00"),
        *(f"/{token}/0/0/{BOX};ls", f"/{token}/0/0/{BOX}_0-1", "/" + "a/" * 5000, "/" + "%" * 1000),
    )


def test_what_is_not_there_gets_nothing(server):
    for path in paths(server.token):
        answer = get(server, path)
        assert status(answer) in (400, 403, 404, 414, None), (path[:80], answer[:80])
        assert b"root:" not in answer and server.token.encode() not in answer
    assert alive(server)


def test_a_box_is_answered_and_a_query_changes_nothing(server):
    answer = get(server, f"/{server.token}/0/0/{BOX}")
    assert status(answer) == 200 and len(answer.partition(b"\r\n\r\n")[2]) == 8 * 8 * 4


def test_other_words_than_get_are_refused(server):
    path = f"/{server.token}/0/info"
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "X" * 300):
        assert status(get(server, path, method=method)) in (400, 403, 405, 414, 501), method
    assert alive(server)


RAW = {
    "nothing": b"",
    "a newline": b"\r\n\r\n",
    "zeros": bytes(1000),
    "bytes": bytes(range(256)) * 8,
    "no version": b"GET /\r\n\r\n",
    "a version to come": b"GET / HTTP/9.9\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\n\r\n",
    "a long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 5000 + b"\r\n",
    "no end": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a body that never comes": b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "requests without a pause": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200,
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_do_not_stop_it(server, name, capfd):
    began = time.monotonic()
    answer = send(server, RAW[name])
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert time.monotonic() - began < 20
    assert alive(server)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]:1", "localhost.", ""],
)
def test_a_page_that_calls_itself_this_machine_gets_nothing(server, host):
    """What a name that points here (DNS rebinding) would send."""
    request = f"GET /{server.token}/0/info HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert status(send(server, request.encode())) in (400, 403, 404, 421)


def threads():
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_crowd_that_says_nothing_does_not_lock_others_out(server):
    before = threads()  # those of other servers
    lines = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(100)]
    try:
        for line in lines[::2]:
            line.sendall(b"GET /")
        began = time.monotonic()
        assert alive(server)
        assert time.monotonic() - began < 20
        # Those whose place was given away end as soon as they get a turn.
        while (count := threads() - before) > 64 and time.monotonic() - began < 20:
            time.sleep(0.1)
        assert count <= 64, f"{count} threads for 100 silent callers"
    finally:
        for line in lines:
            line.close()


def test_who_leaves_in_the_middle_leaves_no_trace(server, capfd):
    for _ in range(20):
        line = socket.create_connection(("127.0.0.1", server.server_port))
        line.sendall(f"GET /{server.token}/0/0/{BOX} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        line.close()
    assert alive(server)
    time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err


def test_only_this_machine_is_answered(server):
    assert server.server_address[0] == "127.0.0.1"
