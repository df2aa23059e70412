"""Where the doors are: the table and the rule are imported as `doors`, the runs are trained once."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A sound volume, a finished run of each recipe, and commands in processes of their own."""
    from doors import arena

    return arena.build(tmp_path_factory.mktemp("doors"))


def pytest_collection_modifyitems(items):
    """Forgive the tests that `known` names."""
    from doors.known import TESTS

    for item in items:
        for pattern, reason in TESTS.items():
            if fnmatchcase(item.name, pattern):
                item.add_marker(pytest.mark.xfail(reason=reason))
