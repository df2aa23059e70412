"""What several test files share: the real volumes, where they are at hand."""

import os
import signal
from pathlib import Path

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


# With pytest-xdist a file stays in one worker, where its tests share what they prepared. Tests marked
# `processes` all go to one: never two of them at a time compete for the machine while they time what
# they kill. They wait more than they compute, so they come first, and long files before short ones.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests belong together, and put first what takes long."""
    if not config.getoption("loadgroup", default=False):  # set in the workers
        return
    first = ("processes", "tests/train", "tests/standalone", "tests/models", "tests/kernels")
    places = {}
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        group = "processes" if item.get_closest_marker("processes") else file
        item.add_marker(pytest.mark.xdist_group(group))
        places[item] = next((i for i, name in enumerate(first) if group.startswith(name)), 99)
    items.sort(key=places.__getitem__)


def pytest_configure() -> None:
    """Let signals arrive: a shell that starts this in the background, or nohup, has them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
