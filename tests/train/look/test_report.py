import json
from html.parser import HTMLParser

import pytest
from em_train.engine.errors import RunFolderError
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
    with pytest.raises(RunFolderError, match="holds no run"):
        render([tmp_path], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
