"""A report is one file, whole at any moment; it shows what comes from outside as text, numbers as CSVs have them."""

import os
import re
from base64 import b64decode
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import figures
from figures.page import Code, Facts, Page, Part, Picture, Progress, Section, Table, Text, picture
from tests.support.drawings import MAIN
from tests.support.pages import cells, parse

NASTY = "<script>alert('&amp;')</script>\"' onload=x {{ 7 * 7 }}"
PNG = b"\x89PNG\r\n\x1a\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="4"/>'


def of(*parts: Part) -> Page:
    return Page("toy", sections=[Section("Results", parts)])


def test_everything_from_outside_is_shown_as_text() -> None:
    rows = pd.DataFrame({NASTY: [NASTY], "group": [NASTY]})
    parts = [
        Text(NASTY),
        Code(NASTY),
        Facts({NASTY: NASTY}, title=NASTY),
        Table(rows, title=NASTY, caption=NASTY, file=NASTY, by="group"),
        Picture(SVG, NASTY, title=NASTY, caption=NASTY, file=NASTY),
    ]
    section = Section(NASTY, parts)
    page = Page(NASTY, NASTY, NASTY, [section, Section("", [], folded=True), section], Progress(1, 2, NASTY), NASTY)
    shown = parse(page.html())
    (body,) = shown.all("body")
    section_has = 1 + 1 + 1 + 3 + 6 + 3  # its title, and those of its parts in their order
    assert body.text.count(NASTY) == 6 + 2 + 2 * section_has  # header and footer, links to the sections
    assert shown.one("title").text == NASTY
    assert {image.attributes["alt"] for image in shown.all("img")} == {NASTY}
    assert "<script" not in page.html().lower()


@pytest.mark.parametrize(
    "file", ["javascript:alert(1)", "http://example.org/x.csv", "//example.org/x.csv", "a b?#.csv"]
)
def test_a_link_stays_beside_the_page(file: str) -> None:
    table = Table(pd.DataFrame({"": ["a"]}), file=file)
    if file.startswith("/"):
        with pytest.raises(ValueError, match=r"is not relative to the page; give a path such as 'figures/a\.csv'"):
            of(table).html()
        return
    (link,) = parse(of(table).html()).all("a")
    assert not re.search("[:?#]", link.attributes["href"])
    assert link.text == file


def test_nothing_comes_from_elsewhere_and_no_script_may_run() -> None:
    html = of(Picture(SVG, "nothing")).html()
    page = parse(html)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert page.all("meta", name="viewport")


def test_every_number_is_that_of_the_csv_and_a_missing_one_is_nothing() -> None:
    values = np.random.default_rng(0).normal(size=5) * 10.0 ** np.arange(-8, 12, 4)
    rows = pd.DataFrame({"block": list("abcde"), "value": values, "n": range(5), "text": "+0.10 [-0.20, +0.30]*"})
    rows.loc[2, "value"] = np.nan
    rows["reading"] = ["helps", None, "", "undecided", "-"]
    shown = cells(parse(of(Table(rows)).html()).one("table"))
    csv = pd.read_csv(StringIO(rows.to_csv(index=False)), dtype=str, keep_default_na=False)
    assert shown == csv.to_numpy().tolist()


def test_rows_stand_below_their_headings() -> None:
    rows = pd.DataFrame({"where": ["d 8", "d 8", "", "d 8"], "": list("abcd"), "x": [1.5, 2, 3, 4]})
    table = parse(of(Table(rows, by="where")).html()).one("table")
    assert [column.text for column in table.one("thead").all("th")] == ["", "x"]
    assert [[row.text for row in body.all("tr")] for body in table.all("tbody")] == [
        ["d 8", row_text("a", "1.5"), row_text("b", "2")],
        [row_text("c", "3")],
        ["d 8", row_text("d", "4")],
    ]


def row_text(name: str, number: str) -> str:
    return f"{name} {number}"


def test_a_figure_says_what_there_is_to_see() -> None:
    axes = figures.accuracy_by_depth(MAIN["outcomes"])
    made = picture(axes, title="accuracy by depth", file="figures/accuracy by depth.csv")
    shown = parse(of(made).html())
    image, figure = shown.one("img"), shown.one("figure", class_="picture")
    assert image.attributes["alt"] == (
        "Figure of 2 panels: training accuracy (%), test accuracy (%) against depth (layers). "
        f"Drawn: {', '.join(figures.ARMS)}"
    )
    assert figure.one("figcaption").text == f"{figures.caption(axes)} figures/accuracy by depth.csv"
    assert figure.one("a").attributes["href"] == "figures/accuracy%20by%20depth.csv"
    kind, _, data = image.attributes["src"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(BytesIO(b64decode(data))) as opened:
        assert min(opened.size) > 300
    with pytest.raises(ValueError, match="neither PNG nor SVG"):
        of(Picture(b"GIF89a", "a")).html()
    with pytest.raises(ValueError, match="the picture 'x' has no alternative text; give alt"):
        of(Picture(PNG, " ", title="x")).html()


def test_a_saved_png_says_what_there_is_to_see(tmp_path: Path) -> None:
    axes = figures.accuracy_by_depth(MAIN["outcomes"])
    said = picture(axes).alt
    _, png, _ = figures.save(axes, MAIN["outcomes"], tmp_path, "accuracy")
    with Image.open(png) as image:
        assert image.info["Description"] == said


def test_an_unfinished_page_is_read_again_and_a_finished_one_is_not() -> None:
    running = Page("toy", progress=Progress(3, 10, "3 of 10 runs"))
    bar = parse(running.html()).one("progress")
    assert (bar.attributes["value"], bar.attributes["max"]) == ("3", "10")
    assert 'http-equiv="refresh"' in running.html()
    assert 'http-equiv="refresh"' not in Page("toy").html()


def test_a_page_replaces_the_old_one_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    assert Page("old").write(file) == file
    old = file.read_text()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            Page("new").write(file)
    assert file.read_text() == old
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="no alternative text"):
        of(Picture(PNG, "")).write(file)
    assert file.read_text() == old
    assert parse(Page("new").write(file).read_text()).one("title").text == "new"


def test_no_line_ends_within_an_interval() -> None:
    text = "0.91 [0.68, 1.15], n = 3, -0.5 ± 0.1, +0.5 [-0.2, +1.0]* of 2, 3 and (0.1, -0.2)"
    html = of(Text(text)).html()
    assert "0.91 [0.68,_1.15], n_=_3, -0.5_±_0.1, +0.5" in html.replace("\N{NO-BREAK SPACE}", "_")
    assert "+0.5 [-0.2,_+1.0]* of 2, 3 and (0.1,_-0.2)" in html.replace("\N{NO-BREAK SPACE}", "_")
