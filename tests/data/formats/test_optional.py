import os

import pytest
from em_data.errors import ForkError
from em_data.formats.optional import ForkGuard


def test_a_library_that_was_used_before_a_fork_is_refused_after_it(monkeypatch):
    used, unused = ForkGuard("used-library"), ForkGuard("unused-library")
    used.enter()
    used.enter()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ForkError, match=f"{parent + 1} was forked from {parent}.*used-library"):
        used.enter()
    unused.enter()


def test_em_data_imports_no_extra(script):
    printed = script(
        """
        import sys
        import em_data
        extras = ("torch", "h5py", "tifffile", "PIL", "tensorstore", "obstore", "imagecodecs")
        print([name for name in extras if name in sys.modules])
        """
    )
    assert printed == "[]\n"
