"""What several test files share: the real volumes, where they are at hand."""

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The tensors of the tests are small: on a busy machine two threads wait for each other longer than
# they work. Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real EM volumes; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("EM_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real EM volumes at {folder}; name their folder with EM_REAL_DATA")
    return folder


# With pytest-xdist (-n) a file stays in one worker, where its tests share what they prepared. Files with
# tests marked `processes` all go to one: never two of these compete for the machine while they time
# what they kill. They wait more than they compute, so they come first; then what takes long.
FIRST = ("processes", "tests/train", "tests/standalone", "tests/models", "tests/kernels")


@cache
def group_of(file: str) -> str:
    """The group of a test file, whose tests run one after another."""
    return "processes" if "pytest.mark.processes" in (ROOT / file).read_text() else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out groups, in the order in which they were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, put first what takes long."""

    def place(item: pytest.Item) -> int:
        group = group_of(item.nodeid.partition("::")[0])
        return next((i for i, name in enumerate(FIRST) if group.startswith(name)), len(FIRST))

    if hasattr(config, "workerinput"):
        items.sort(key=place)


def pytest_configure() -> None:
    """Let signals arrive: a shell that starts this in the background, or nohup, has them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
