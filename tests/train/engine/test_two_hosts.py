"""torchrun over two hosts: two network namespaces that see each other through a pair of cables."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from em_train.engine import checkpoint

pytestmark = pytest.mark.processes

NAMES = [f"emtrain-{os.getpid()}-{host}" for host in "ab"]
ADDRESSES = ["10.213.77.1", "10.213.77.2"]
RUN = [
    *("--config", str(Path(__file__).with_name("small.toml"))),
    *("--set", "run.steps=60", "--set", "run.device=cpu"),
]


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts():
    """Two network namespaces with a veth pair between them."""
    if not shutil.which("ip"):
        pytest.skip("no command ip (iproute2) to make network namespaces with")
    links = [f"emt{os.getpid() % 10**6}{host}" for host in "ab"]
    try:
        for name in NAMES:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"this machine forbids network namespaces: {made.stderr.strip()}")
        paired = ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        if paired.returncode:
            pytest.skip(f"this machine forbids veth pairs: {paired.stderr.strip()}")
        for name, link, address in zip(NAMES, links, ADDRESSES, strict=True):
            assert ip("link", "set", link, "netns", name).returncode == 0
            for command in (
                ("addr", "add", f"{address}/24", "dev", link),
                ("link", "set", link, "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", name, *command).returncode == 0
        yield list(zip(NAMES, links, ADDRESSES, strict=True))
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def start(host, run):
    """torchrun on one host, with one worker of the run."""
    name, link, address = host
    torchrun = [
        *("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
        *(
            f"--rdzv-endpoint={ADDRESSES[0]}:29517",
            "--rdzv-id=two-hosts",
            f"--local-addr={address}",
        ),
        # Names of hosts mean nothing here: who holds the meeting place is said.
        f"--rdzv-conf=is_host={int(address == ADDRESSES[0])}",
    ]
    command = ["-m", "em_train.cli", "dense-ssl", "--out", str(run), *RUN]
    settings = {"GLOO_SOCKET_IFNAME": link, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
            *torchrun,
            *command,
        ],
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_in(name):
    """Processes of the run in a namespace."""
    inside = ip("netns", "pids", name).stdout.split()
    found = []
    for pid in inside:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"em_train.cli" in command and b"torch.distributed.run" not in command:
            found.append(int(pid))
    return found


def wait_for(condition, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_of_another_host_is_killed_and_comes_back(hosts, tmp_path):
    run = tmp_path / "run"
    agents = [start(host, run) for host in hosts]
    try:
        wait_for(lambda: checkpoint.newest(run / "checkpoints") >= 5)
        (victim,) = workers_in(hosts[1][0])
        os.kill(victim, signal.SIGKILL)
        errors = [agent.communicate(timeout=300)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(errors)
    assert checkpoint.load(run / "checkpoints")["step"] == 60
    assert checkpoint.load(run / "checkpoints")["world"] == 2
    log = (run / "log.txt").read_text()
    assert log.count("started at step 0") == 1 and log.count("resumed at step") == 1, log
    rows = (run / "metrics.jsonl").read_text().count("\n")
    assert rows == 60 and (run / "report.html").exists()
    assert not workers_in(hosts[0][0]) and not workers_in(hosts[1][0])
