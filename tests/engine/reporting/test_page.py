"""An experiment's page shows what the terminal showed, numbers as CSVs have them, and is whole while a grid runs."""

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from time import perf_counter

import pandas as pd
import pytest

import figures
from experiments.engine.reporting import page as module
from experiments.engine.reporting import show
from experiments.engine.reporting.page import LivePage, command_of, recipe_facts
from experiments.engine.running.grid import run_grid
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run
from tests.support.browser import browser
from tests.support.drawings import MAIN
from tests.support.grid_script import ONE, Toy, start
from tests.support.pages import Element, cells, parse, read, section

NASTY = "<script>alert(1)</script>"
LONG = "a condition with a name that is longer than a telephone is wide, and_a_word_of_more_than_thirty_letters"


@dataclass(frozen=True)
class Settings:
    """Of the script that this module would be."""

    rate: float = 1
    names: tuple[str, ...] = ("a b",)
    out: Path = Path("results")
    quick: bool = False


def toy_runs() -> list[Run]:
    return [
        Run("toy", arm, 8, seed, Toy(rate), about={"title": NASTY}, labels={"control": NASTY})
        for arm in "ab"
        for seed in (0, 1)
        for rate in (1, 2)
    ]


def toy_task(run: Run, checkpoint: Path) -> Outcome:
    if (run.arm, run.seed, run.recipe.rate) == ("b", 1, 2):
        return Outcome({}, diverged_at=7)
    rows = [
        {"epoch": epoch, "split": split, "quantity": quantity, "value": 0.9 / (1 + epoch)}
        for epoch in (1, 2)
        for split, quantity in (("train", "loss"), ("validation", "accuracy"))
    ]
    return Outcome({"curves": pd.DataFrame(rows)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a report with two tables of decisions, another table and two figures, of names that are hard to show."""
    out = tmp_path_factory.mktemp("out")
    output = show.live(Output(out / "toy", settings=Settings(rate=2, out=out)))
    run_grid(toy_runs(), toy_task, output.below("tuning"), execution=ONE)
    run_grid(toy_runs()[:2], toy_task, output, execution=ONE)
    console = show.terminal()
    for draw, name in ((figures.accuracy_by_depth, "outcomes"), (figures.path_lengths, "paths")):
        show.save_figure(output, draw(MAIN[name]), MAIN[name], draw.__name__)
    numbers = {f"outcome {i}": f"+0.{i}00 [-0.{i}00, +0.{i}00]" for i in range(1, 7)}
    show.table(console, {(NASTY, LONG): numbers, ("", NASTY): numbers}, title=NASTY, caption=LONG)
    show.files(console, output)
    show.decisions(console, {NASTY: ("-1.5", "0.1", NASTY)}, title="first")
    made = {"one effect": ("+0.12 [+0.03, +0.21]", "0.02", "helps"), LONG: ("-", "0", "undecided")}
    show.decisions(console, made, title="second, n = 3")
    show.end(console, output, remark=f"One data set.\nOne data set.\n{NASTY}")
    return output.folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> Element:
    return read(folder / "report.html")


def test_it_asks_the_docstrings_question_and_answers_with_the_last_decisions(shown: Element) -> None:
    assert shown.one("h1").text == " ".join((__doc__ or "").split())
    assert shown.one("title").text == "toy"
    effects = f"helps: one effect +0.12 [+0.03, +0.21]; undecided: {LONG} -."
    assert shown.one("p", class_="answer").text == f"Answersecond, n = 3. {effects}"


def test_every_number_of_the_decisions_is_that_of_the_csv(shown: Element, folder: Path) -> None:
    csv = pd.read_csv(folder / "decisions.csv", dtype=str, keep_default_na=False)
    decided = section(shown, "Decisions")
    tables = decided.all("figure", class_="table")
    assert [table.one("h3").text for table in tables] == list(csv["table"].unique())
    for table in tables:
        of_table = csv[csv["table"] == table.one("h3").text].drop(columns=["where", "table"])
        assert cells(table.one("table")) == of_table.to_numpy().tolist()
        assert [column.text for column in table.one("thead").all("th")][1:] == list(of_table.columns)[1:]
        assert table.one("a").attributes["href"] == "decisions.csv"
    assert [line.text for line in decided.all("p")] == ["One data set.", NASTY]  # said twice, shown once


def test_every_figure_has_its_words_and_its_table(shown: Element, folder: Path) -> None:
    drawn = section(shown, "Figures").all("figure", class_="picture")
    assert [figure.one("h3").text for figure in drawn] == ["accuracy by depth", "path lengths"]
    for figure in drawn:
        name = figure.one("h3").text.replace(" ", "_")
        assert figure.one("a").attributes["href"] == f"figures/{name}.csv"
        caption = (folder / "figures" / f"{name}.txt").read_text().strip()
        assert figure.one("figcaption").text == f"{caption} figures/{name}.csv"
        assert figure.one("img").attributes["alt"].startswith("Figure of ")


def test_it_says_what_was_run_where_and_how(shown: Element, folder: Path) -> None:
    runs = section(shown, "Runs, versions, hardware")
    assert cells(runs.one("table")) == [
        ["tuning/", "8", "1", "1", "8", "0, 1"],
        ["this folder", "2", "0", "1", "8", "0"],
    ]
    facts = {name.text: value.text for name, value in zip(runs.all("dt"), runs.all("dd"), strict=True)}
    assert facts["diverged runs"] == f"b, depth 8, seed 1, control {NASTY}: diverged at step 7"
    assert (facts["data"], facts["rate"], facts["device"]) == (NASTY, "1, 2", "cpu")
    assert "torch " in facts["versions"]
    assert facts["hardware"]
    command = section(shown, "How to repeat it").one("code").text
    assert command.endswith(f"python experiments/test_page.py --rate 2 --out {folder.parent}")
    settings = section(shown, "All settings")
    assert [value.text for value in settings.all("dd")] == ["2", "a b", str(folder.parent), "False"]


def test_figures_that_another_call_has_deleted_are_left_out(tmp_path: Path) -> None:
    output = Output(tmp_path)
    for name in ("first", "second"):
        show.save_figure(output, figures.accuracy_by_depth(MAIN["outcomes"]), MAIN["outcomes"], name)
    (tmp_path / "figures" / "first.png").unlink()
    assert [part.title for part in module.pictures(output) if isinstance(part, module.Picture)] == ["second"]


def test_the_page_is_listed_among_the_files_that_a_later_call_may_delete(folder: Path) -> None:
    assert {"report.html", "decisions.csv"} <= set(pd.read_json(folder / "written.json")[0])


def test_settings_in_which_runs_differ_are_listed() -> None:
    recipes = [
        {"class": "Recipe", "training": {"class": "T", "epochs": n, "rate": 0.1}, "flow": [n]} for n in range(12)
    ]
    assert recipe_facts(recipes[:1]) == {"epochs": "0", "rate": "0.1", "flow": "[0]"}
    assert recipe_facts(recipes)["epochs"] == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


def test_a_command_has_what_differs_from_the_defaults() -> None:
    assert command_of(Settings()) == "python experiments/test_page.py"
    assert (
        command_of(Settings(rate=2, names=("a b", "c"))) == "python experiments/test_page.py --rate 2 --names 'a b' c"
    )
    assert command_of(Settings(names=(), quick=True)) == "python experiments/test_page.py --quick --names"
    assert command_of(None) == ""


# In a browser


@pytest.mark.parametrize("width", [380, 1400])
def test_in_a_browser_nothing_overflows_or_complains(folder: Path, width: int) -> None:
    csv = pd.read_csv(folder / "decisions.csv", dtype=str, keep_default_na=False).drop(columns=["where", "table"])
    with browser() as tab:
        colours = set()
        for scheme in ("light", "dark"):
            tab.open(folder / "report.html", width=width, scheme=scheme)
            assert tab.evaluate("innerWidth") == width
            assert tab.complaints() == []
            assert tab.overflow() == []
            assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 300)")
            colours.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            cells = tab.evaluate(
                """[...document.querySelectorAll('#section-1 tbody tr:not(.heading)')].map(
                row => [...row.children].map(cell => cell.innerText))"""
            )
            assert cells == csv.to_numpy().tolist()
        assert len(colours) == 2


def test_in_a_browser_an_overflow_and_a_request_would_be_seen(tmp_path: Path) -> None:
    wide = '<div style="width: 500px">wide</div><script>console.log(1)</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><html><body>{wide}</body></html>")
    with browser() as tab:
        tab.open(tmp_path / "page.html", width=380)
        assert "the page itself" in tab.overflow()
        assert [text for text in tab.complaints() if "consoleAPI" in text or '"log"' in text]
        assert "http://127.0.0.1:9/x.png" in tab.complaints()


# While runs are under way


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFTER", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)


@pytest.mark.usefixtures("at_once")
def test_a_page_under_way_has_progress_and_the_curves_so_far(tmp_path: Path) -> None:
    output = Output(tmp_path, settings=Settings())
    seen: list[Element] = []
    live = LivePage(output)

    def watch() -> None:
        live()
        seen.append(read(tmp_path / "report.html"))

    output.watch = watch
    run_grid(toy_runs()[4:], toy_task, output, execution=ONE)
    bars = [page.one("progress") for page in seen]
    assert [bar.attributes["value"] for bar in bars] == ["1.0", "2.0", "3.0", "4.0", "4.0"]
    assert {bar.attributes["max"] for bar in bars} == {"4.0"}
    assert bars[2].text.startswith("3 of 4 runs, after ")
    assert "Drawn: <script>alert(1)</script>" in seen[0].one("img").attributes["alt"]
    assert section(seen[-1], "Runs so far").one("table").text.endswith("this folder 4 1 1 8 0, 1")


def test_a_short_grid_has_no_page_and_a_long_one_is_not_drawn_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, file = [100.0], tmp_path / "report.html"
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    output = show.live(Output(tmp_path))
    output.begin(tmp_path / "runs", toy_runs(), [])
    written = []

    def made(self: LivePage) -> module.Page:
        written.append(now[0])
        now[0] += 2  # seconds of drawing
        return module.Page("toy")

    monkeypatch.setattr(LivePage, "page", made)
    for now[0] in (101, 104.9, 105.1, 120, 147.0, 147.2):  # 2 s are 5 % of 40 s
        output.changed()
    assert written == [105.1, 147.2]
    file.unlink()  # with the tables of an earlier call
    output.changed()
    assert len(written) == 3


@pytest.mark.usefixtures("at_once")
def test_a_page_that_cannot_be_drawn_ends_no_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: LivePage) -> module.Page:
        raise ValueError("no such colour")

    monkeypatch.setattr(LivePage, "page", fail)
    tables, _ = run_grid(toy_runs(), toy_task, show.live(Output(tmp_path)), execution=ONE)
    assert len(tables["curves"]) == 7 * 4
    assert capsys.readouterr().err.count("is not written while runs are under way: ValueError: no such colour") == 1
    assert not (tmp_path / "report.html").exists()


def test_of_many_conditions_the_best_are_drawn(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(14)]
    runs = [Run("toy", "a", 8, 0, Toy(n), labels={"control": name}) for n, name in enumerate(names)]
    output = Output(tmp_path)

    def task(run: Run, checkpoint: Path) -> Outcome:
        loss = pd.DataFrame({"epoch": [1], "split": "train", "quantity": "loss", "value": float(run.recipe.rate + 1)})
        validated = loss.assign(split="validation", value=0.5)
        return Outcome({"curves": pd.concat([loss, validated])})

    run_grid(runs, task, output, execution=ONE)
    file = LivePage(output).page().write(tmp_path / "report.html")
    (drawn,) = read(file).all("figure", class_="picture")
    assert drawn.one("img").attributes["alt"].endswith(f"Drawn: {', '.join(names[:10])}")
    assert drawn.one("figcaption").text.endswith("Of 14, the 10 of the lowest training loss.")
    assert "validation loss (nats)" in drawn.one("img").attributes["alt"]  # where there is no accuracy


def test_curves_are_named_by_what_tells_runs_apart(tmp_path: Path) -> None:
    kinds = [("residual", 8, 1), ("residual", 14, 2), ("plain", 8, 1), ("plain", 8, 2)]
    runs = [Run("toy", arm, depth, 0, Toy(rate), labels={"learning_rate": rate}) for arm, depth, rate in kinds]
    output = Output(tmp_path)
    run_grid(runs, toy_task, output, execution=ONE)
    (drawn,) = parse(LivePage(output).page().html()).all("img")
    assert drawn.attributes["alt"].endswith("Drawn: residual, plain, learning rate 1, plain, learning rate 2")


def run_watched(folder: Path, pages: float) -> None:
    """A grid whose page is written whenever a run ends, in a process that is killed while it writes: at 2.3 within the
    third page, after 0.3 of the time that the second took."""
    module.AFTER, module.SHARE = 0.0, 1e9
    original, seconds = Output.changed, list[float]()

    def changed(output: Output) -> None:
        start = perf_counter()
        if len(seconds) == int(pages):
            timer = Timer(pages % 1 * seconds[-1], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        original(output)
        seconds.append(perf_counter() - start)

    Output.changed = changed  # type: ignore[method-assign]
    run_grid(toy_runs(), toy_task, show.live(Output(folder)), execution=ONE)


@pytest.mark.slow
@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_a_whole_page(tmp_path: Path) -> None:
    moments, seen = random.Random(0), []
    for attempt in range(10):
        (folder := tmp_path / str(attempt)).mkdir()
        process = start(run_watched, folder, moments.uniform(2, 7))
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        seen.append(read(folder / "report.html").one("progress").attributes["value"])
    assert len(set(seen)) > 2
