"""The browser: where it is, and how it is led to an address that no other user may read.

All users of a machine see the arguments of all processes, and Neuroglancer's address holds the token
that shows the volumes. So a browser is given a page that only this user can open, which leads on.
"""

from __future__ import annotations

import html
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
SNAPS = Path("/snap/bin")
PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<a href="{address}">emtrain view</a>
"""


def find_browser() -> str:
    """A browser that can draw without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and ON_MACOS.exists():
        found = str(ON_MACOS)
    if found is None:
        raise FileNotFoundError(
            f"--screenshot needs Chromium or Chrome, and none of {', '.join(BROWSERS)} is there; "
            "install it (Debian: apt install chromium), or leave --screenshot out and open the address "
            "in any browser"
        )
    return found


@contextmanager
def private_page(address: str) -> Iterator[Path]:
    """A page that leads to an address, in a folder of its own, both for this user alone."""
    # A browser that is a snap has a /tmp of its own, and reads what lies openly in the home folder.
    where = Path.home() if SNAPS.is_dir() else None
    with tempfile.TemporaryDirectory(
        prefix="emtrain-view-", dir=where, ignore_cleanup_errors=True
    ) as folder:
        page = Path(folder) / "look.html"
        page.touch(0o600, exist_ok=False)
        page.write_text(PAGE.format(address=html.escape(address)), encoding="utf-8")
        yield page
