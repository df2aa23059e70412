"""No token stands where other users look: in the arguments of a process, or in a file that they can read."""

import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from em_train.look import browser, view

ADDRESS = "http://127.0.0.1:9/v/secret/"


def test_a_page_is_for_this_user_alone_and_gone_afterwards():
    with browser.private_page(ADDRESS + "?a=1&b=2") as page:
        for path, mode in ((page, 0o600), (page.parent, 0o700)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert f'content="0; url={ADDRESS}?a=1&amp;b=2"' in page.read_text()
    assert not page.parent.exists()


def test_snaps_are_given_a_page_that_they_can_read(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "SNAPS", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with browser.private_page(ADDRESS) as page:
        assert page.is_relative_to(tmp_path)


def test_no_browser_is_told_the_address_by_its_arguments(tmp_path, monkeypatch):
    told = tmp_path / "arguments"
    script = tmp_path / "chromium"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}\ncp "${{@: -1}}" {tmp_path} || exit 0\n'
    )
    script.chmod(0o700)
    monkeypatch.setattr(view, "find_browser", lambda: str(script))
    with pytest.raises(TimeoutError, match="did not show"):
        view.save_screenshot(_viewer(), tmp_path / "look.png")
    *_, last = told.read_text().split()
    assert last.startswith("file://") and "secret" not in told.read_text()

    opened = []

    def look(address):
        opened.append(address)
        assert ADDRESS in Path(address.removeprefix("file://")).read_text()

    def leave(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(view.webbrowser, "open", look)
    monkeypatch.setattr(threading.Event, "wait", leave)
    monkeypatch.setenv("DISPLAY", ":0")
    view.show(_viewer())
    (address,) = opened
    assert "secret" not in address and not Path(address.removeprefix("file://")).exists()


def test_a_browser_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt install chromium"):
        browser.find_browser()


def _viewer():
    """As much of a viewer as is asked before a browser has answered."""

    class State:
        def __enter__(self):
            return SimpleNamespace(selected_layer=SimpleNamespace())

        def __exit__(self, *_):
            pass

    inner = SimpleNamespace(
        config_state=SimpleNamespace(txn=State),
        txn=State,
        async_screenshot=lambda _: None,
        get_viewer_url=lambda: ADDRESS,
    )
    return view.Viewer(None, inner, ())
