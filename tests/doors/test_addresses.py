"""Whatever is typed as an address, a range or a size: a result, or a message that names it."""

import os
import re
import string

import em_data
import numpy as np
import pytest
from em_train.cli import app
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

QUIET = settings(
    deadline=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SERVERS = ("http://", "https://", "s3://", "gs://")
# Text as it comes, and text that some part of an address is made of.
PIECES = st.sampled_from(
    [
        *("synthetic:", "shape=", "voxel_nm=", "seed=", "precomputed://", "n5://", "file://", "::"),
        *(
            "raw.npy",
            "raw.h5",
            "/",
            "..",
            ".",
            "~",
            "@",
            "=",
            ",",
            "x",
            "8x64x64",
            "-1",
            "nan",
            "1e9",
        ),
        *("images:", "labels:", "?voxel_nm=8,8,8", "#", "%2e%2e", "*", " ", "\n", "\udcff"),
    ]
)
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=40)
ADDRESS = st.lists(st.one_of(PIECES, TEXT), max_size=5).map("".join)


def named(text, message):
    """Whether a message holds a text, as it is or as Python writes it."""
    forms = {text, repr(text)[1:-1], os.path.normpath(text) if text else ""}
    return any(form in message for form in forms) or text.strip() == ""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a volume in it, so that an address may be right."""
    monkeypatch.chdir(tmp_path)
    np.save("raw.npy", np.zeros((4, 8, 8), np.uint8))
    return tmp_path


@QUIET
@given(address=ADDRESS)
@example("")
@example("synthetic:shape=-1x2x3")
@example("raw.npy::raw")
@example("a" * 5000)
def test_any_address_is_a_volume_or_is_named_in_the_refusal(here, address):
    assume(not any(scheme in address for scheme in SERVERS))
    try:
        volume = em_data.open_volume(address)
    except (ValueError, OSError, ImportError) as error:
        shown = re.split(r"::|\?", address.removeprefix("precomputed://").removeprefix("n5://"))[0]
        assert named(shown, str(error)), str(error)
    else:
        assert min(volume.shape) > 0 and volume.dtype.kind in "buif"
        if volume.voxel_size_nm is not None:
            assert all(np.isfinite(volume.voxel_size_nm)) and min(volume.voxel_size_nm) > 0
        assert np.isfinite(volume.origin_nm).all()


def typed(*arguments):
    """What comes of a command in this process: what was printed, and the error."""
    result = CliRunner().invoke(app, [*arguments])
    error = result.exception
    if isinstance(error, SystemExit):
        error = None
    return result.exit_code, result.output, error


RANGE = st.one_of(
    TEXT,
    st.text(string.digits + ":-+. ", max_size=12),
    st.from_regex(r"\d{1,6}:\d{1,6}", fullmatch=True),  # of all alphabets
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)).map(lambda p: f"{p[0]}:{p[1]}"),
)


@QUIET
@given(text=RANGE)
@example("²:³")
@example("5:2")
@example("1_0:2_0")
@example("")
def test_any_range_is_read_or_is_named_in_the_refusal(text):
    _, _, error = typed("probe", "nowhere", "--data", "x", f"--fit-z={text}")
    assert isinstance(error, ValueError | OSError), repr(error)
    if re.fullmatch(r"[0-9]+:[0-9]+", text):
        # Read; what is missed next is the run, unless the range is refused as backwards.
        first, end = map(int, text.split(":"))
        assert "nowhere" in str(error) or (first >= end and text in str(error))
    elif isinstance(error, ValueError):
        assert "--fit-z" in str(error) and named(text, str(error))
    else:  # other digits than ours are read as what they are
        assert re.fullmatch(r"\s*\d+\s*:\s*\d+\s*", text)


TRIPLE = st.one_of(
    TEXT,
    st.text(string.digits + ",x-+.e ", max_size=14),
    st.tuples(*[st.integers(1, 50)] * 3).map(lambda t: ",".join(map(str, t))),
)


@QUIET
@given(text=TRIPLE)
@example("nan,1,1")
@example("1e400,1,1")
def test_any_voxel_size_is_read_or_is_named_in_the_refusal(text):
    code, output, error = typed("synth", "--show-config", f"--voxel-nm={text}", "out.zarr")
    if code:
        assert isinstance(error, ValueError), repr(error)
        assert "voxel" in str(error) and (named(text, str(error)) or "got" in str(error))
        return
    sizes = [float(part) for part in text.replace("x", ",").split(",")]
    assert len(sizes) == 3 and np.isfinite(sizes).all() and min(sizes) > 0
    shown = re.search(r"voxel_size_nm\s+\(([^)]*)\)", output)
    assert shown and [float(part) for part in shown[1].split(",")] == sizes
