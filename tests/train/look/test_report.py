import json
from html.parser import HTMLParser

import pytest
from em_train.engine.run_folder import RunFolder
from em_train.look.report import Curve, render, write
from PIL import Image

CURVES = (Curve("loss", "the loss", "what is minimised & more"),)


class Outline(HTMLParser):
    """What a page shows: its tags, its text, and what it would have to fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.sources = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data

    def count(self, tag, **attributes):
        return sum(t == tag and a.items() >= attributes.items() for t, a in self.tags)


def make_run(path, *, lr, steps=5, finished=True):
    path.mkdir(parents=True)
    settings = {
        "command": "dense-ssl",
        "optim": {"lr": lr},
        "run": {"steps": 5},
        "data": {"volumes": ["<a>"]},
    }
    (path / "config.json").write_text(json.dumps(settings))
    folder = RunFolder(path)
    folder.images.mkdir()
    for step in range(1, steps + 1):
        odd = float("nan") if step == 2 else lr / step
        folder.record({"step": step, "loss": odd, "other_measure": step})
        Image.new("L", (8, 8), step).save(folder.images / f"step-{step:06d}.png")
    Image.new("L", (8, 8)).save(folder.images / "classes.png")
    if finished:
        write(
            folder,
            None,
            title=f"dense-ssl · {path.name}",
            lead="a lead",
            summary={"NMI": "0.5 <"},
            curves=CURVES,
            picture=folder.images / "classes.png",
            picture_caption="the end",
        )
    return path


def test_one_run_is_one_file_that_needs_nothing(tmp_path):
    run = make_run(tmp_path / "a", lr=0.5)
    page = Outline((run / "report.html").read_text())
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.count("img") == 6 and page.count("polyline") == 2
    for words in (
        "a lead",
        "0.5 <",
        "the loss",
        "what is minimised & more",
        "step 3",
        "optim.lr",
        "<a>",
    ):
        assert words in page.words
    assert "other measure" in page.words, "what the recipe did not explain is shown too"
    again = run / "again.html"
    render([run], again)
    assert again.read_text() == (run / "report.html").read_text()


def test_runs_share_axes_and_differences_stand_out(tmp_path):
    runs = [
        make_run(tmp_path / "x" / "same", lr=0.5),
        make_run(tmp_path / "y" / "same", lr=0.25, steps=3, finished=False),
        make_run(tmp_path / "c", lr=0.5, steps=1, finished=False),
    ]
    render(runs, tmp_path / "all.html")
    page = Outline((tmp_path / "all.html").read_text())
    for words in (str(runs[0]), str(runs[1]), "c", "step 3 of 5, not finished"):
        assert words in page.words
    differing = page.words[
        page.words.index("Configuration") : page.words.index("keys that are equal")
    ]
    assert "optim.lr" in differing and "0.25" in differing and "run.steps" not in differing
    assert page.count("tr", **{"class": "differs"}) == 1
    assert page.count("polyline") == 2 * 3  # one point makes a dot no eye finds, but no error
    highest = max(0.5, 0.25)
    assert f"{highest:.3g}" in page.words


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        render([tmp_path], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_picture_that_leads_out_of_the_run_is_not_shown(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("L", (9, 9), 77).save(secret)
    (tmp_path / "passwords.txt").write_text("hunter2")
    run = make_run(tmp_path / "a", lr=0.5)
    shown = Outline((run / "report.html").read_text()).count("img")
    frame = run / "images" / "step-000003.png"
    frame.unlink()
    frame.symlink_to(secret)
    for picture in ("../secret.png", str(secret), "../passwords.txt", "images/link.png"):
        (run / "images" / "link.png").unlink(missing_ok=True)
        (run / "images" / "link.png").symlink_to(tmp_path / "passwords.txt")
        change(run / "report.json", picture=picture)
        render([run], tmp_path / "out.html")
        page = Outline((tmp_path / "out.html").read_text())
        assert page.count("img") == shown - 2
        assert page.words.count("not shown, for it leads out of the run") == 2
        assert "the end: not shown" in page.words and "step 3: not shown" in page.words


def test_what_is_no_png_is_not_shown_and_odd_names_are_no_frames(tmp_path):
    run = make_run(tmp_path / "a", lr=0.5)
    (run / "notes.txt").write_text("mine")
    (run / "images" / "step-000002.png").write_bytes(b"no picture")
    (run / "images" / "step-x.png").write_bytes(b"")
    (run / "images" / "step-000009.png").symlink_to("nowhere.png")
    change(run / "report.json", picture="notes.txt")
    render([run], tmp_path / "out.html")
    page = Outline((tmp_path / "out.html").read_text())
    assert page.words.count("not shown, for there is no PNG") == 3
    assert "mine" not in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("name", ["config.json", "report.json"])
@pytest.mark.parametrize("text", ["", "null", "[]", "7", '{"title"', '{"command": 1, "title": 1}'])
def test_a_damaged_file_is_named(tmp_path, name, text):
    run = make_run(tmp_path / "a", lr=0.5)
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} (is damaged|belongs to no run)"):
        render([run], tmp_path / "out.html")
    (run / name).unlink()
    (tmp_path / "other.json").write_text('{"command": "x"}')
    (run / name).symlink_to(tmp_path / "other.json")
    with pytest.raises(ValueError, match=rf"{name} leads out of the run"):
        render([run], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_damaged_rows_are_left_out_and_counted(tmp_path, capfd):
    run = make_run(tmp_path / "a", lr=0.5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('null\n{"loss": 3}\n{"step": 7, "loss": 1.0}\n{"ste')
    render([run], tmp_path / "out.html")
    assert "step 7" in Outline((tmp_path / "out.html").read_text()).words
    told = capfd.readouterr().err.replace("\n", "")
    assert "metrics.jsonl: 2 damaged lines are left out" in told
