"""Every command at every door: refused in good order, or right; nothing destroyed, nothing silent.

tools/test --all tests/doors
python tools/bench/train/doors.py --only "predict* × zarr-*"
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from doors import cases, trial
from doors.known import KNOWN, known

QUICK, WHOLE = 30, 2400


def told(verdicts):
    """The defects that nobody knows of, as a person reads them."""
    return [
        f"{v.case.id}\n  {v.why}\n  {v.typed}\n  {v.said[-400:]}"
        for v in verdicts
        if v.outcome == "defect" and not known(v.case.id)
    ]


def test_a_share_of_the_pass(bench):
    defects = told(map(bench.try_case, cases.chosen(QUICK, seed=0)))
    assert not defects, "\n".join(defects)


@pytest.mark.slow
def test_the_pass(bench):
    chosen = cases.chosen(WHOLE, seed=1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(bench.try_case, chosen))
    assert len(verdicts) >= 2000
    assert {v.outcome for v in verdicts} >= {"clean", "fine"}
    defects = told(verdicts)
    assert not defects, f"{len(defects)} of {len(verdicts)}\n" + "\n".join(defects)


def test_the_table_has_every_command_and_every_door_once():
    found = cases.all_cases()
    assert max(Counter(case.id for case in found).values()) == 1
    words = {case.arguments[0] for case in found}
    from em_train.cli import app

    commands = {one.name or one.callback.__name__ for one in app.registered_commands}
    assert words == commands


def test_nothing_is_known_without_a_case():
    ids = [case.id for case in cases.all_cases()]
    assert not [pattern for pattern in KNOWN if not any(fnmatchcase(one, pattern) for one in ids)]


@pytest.fixture
def sound(bench):
    return next(c for c in cases.all_cases() if c.id == "info × zarr-sound")


def test_the_rule_itself_finds_what_is_wrong(bench, sound):
    assert bench.try_case(sound).outcome == "fine"
    assert "refusal was due" in bench.try_case(replace(sound, expected="refused")).why
    assert "told.json" in bench.try_case(replace(sound, writes=("here/told.json",))).why
    written = ("info", "--json", "@in/more.json", "@door")
    assert "left in/more.json" in bench.try_case(replace(sound, arguments=written)).why
    nowhere = replace(sound, arguments=("info", "nowhere.zarr"), expected="refused")
    assert bench.try_case(replace(nowhere, names=("nowhere.zarr",))).outcome == "clean"
    assert "does not name" in bench.try_case(replace(nowhere, names=("somewhere",))).why
    assert "refused what is sound" in bench.try_case(replace(nowhere, expected="fine")).why


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("error: x.zarr is empty; take another\n", []),
        ("error: x.zarr is empty\n", ["the message has no remedy"]),
        ("error: nothing here; take another\n", ["the message does not name the thing"]),
        ("error: x.zarr; take it\nerror: x.zarr; take it\n", ["2 messages"]),
        ("x.zarr is empty; take another\n", ["no message"]),
    ],
)
def test_a_message_names_the_thing_and_a_remedy_once(said, wanted):
    assert trial.complaints(said, 1, ["x.zarr"]) == wanted


def test_of_names_without_end_a_message_holds_the_ends():
    said = f"error: no volume at {'v' * 100}…{'v' * 95}.zarr; check the path\n"
    assert trial.complaints(said, 1, ["v" * 10_000 + ".zarr"]) == []
    assert trial.complaints(said, 1, ["w" * 10_000 + ".n5"]) != []


def test_what_changed_is_told(tmp_path):
    (tmp_path / "kept").write_text("a")
    (tmp_path / "gone").write_text("b")
    before = trial.tree(tmp_path)
    (tmp_path / "kept").write_text("c")
    (tmp_path / "gone").unlink()
    (tmp_path / "new").mkdir()
    assert trial.changes(before, trial.tree(tmp_path)) == [
        "left new",
        "removed gone",
        "changed kept",
    ]
