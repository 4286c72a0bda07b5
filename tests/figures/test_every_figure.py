"""Figures: what is drawn equals what plain pandas gives for the same tiny table."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

import figures
from figures import ARMS

NAMES = list(ARMS)
FIGURES: dict[str, tuple[Callable[..., Any], str]] = {
    "learning_curves": (figures.learning_curves, "curves"),
    "accuracy_by_depth": (figures.accuracy_by_depth, "outcomes"),
    "gradient_norms": (figures.gradient_norms, "gradients"),
    "gradient_split": (figures.gradient_split, "gradients"),
    "path_lengths": (figures.path_lengths, "paths"),
    "residual_magnitudes": (figures.residual_magnitudes, "magnitudes"),
    "interaction": (figures.interaction, "outcomes"),
}
SHORTCUT_BACK = {"residual", "gradient-only", "shortest-path"}
SHORTCUT_FORWARD = {"residual", "stop-gradient", "shortest-path"}


def number(*key: Any) -> float:
    """Some number between 0.1 and 1, the same for the same key."""
    return 0.1 + 0.9 * (sum(7 * (i + 1) * ord(letter) for i, letter in enumerate(str(key))) % 101) / 101


def tables(
    arms: Iterable[str] = NAMES, depths: Iterable[int] = (20, 56), seeds: Iterable[int] = (0, 1, 2)
) -> dict[str, pd.DataFrame]:
    """Small tables of every kind; networks have 4 junctions, epochs are 0, 1, 2."""
    made: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("outcomes", "curves", "gradients", "magnitudes", "paths")
    }
    for arm, depth_total, seed in product(arms, depths, seeds):
        cell = {"experiment": "toy", "arm": arm, "depth_total": depth_total, "seed": seed}
        for split, quantity in product(("train", "validation", "test"), ("loss", "accuracy")):
            value = number(arm, depth_total, seed, split, quantity)
            made["outcomes"].append(cell | {"split": split, "quantity": quantity, "value": value})
        for epoch in range(3):
            now = cell | {"step": 10 * epoch, "epoch": epoch}
            for split, quantity in product(("train", "validation"), ("loss", "accuracy")):
                value = number(arm, depth_total, seed, epoch, split, quantity)
                made["curves"].append(now | {"split": split, "quantity": quantity, "value": value})
            for depth in range(4):
                here = now | {"block": f"layer1.{depth}", "depth": depth}
                base = 10 ** (-5 * number(arm, depth_total, seed, epoch, depth))
                parts = {"total": base, "other": 0.0}
                parts["shortcut"] = base / 2 if arm in SHORTCUT_BACK else 0.0
                parts["branch"] = base / 3 if arm != "shortest-path" else 0.0
                made["gradients"] += [here | {"quantity": name, "value": value} for name, value in parts.items()]
                forward = arm in SHORTCUT_FORWARD
                sizes = {"branch": base, "shortcut": 2.0 * forward, "ratio": base / 2 if forward else np.nan}
                made["magnitudes"] += [here | {"quantity": name, "value": value} for name, value in sizes.items()]
            lengths = {"stop-gradient": [4], "plain": [4], "shortest-path": [0]}.get(arm, list(range(5)))
            for length in range(5):
                norm = 10 ** (-5 * number(arm, depth_total, seed, epoch, "length", length)) * (length in lengths)
                share = (length in lengths) / len(lengths)
                made["paths"] += [
                    now | {"path_length": length, "quantity": "norm", "value": norm},
                    now | {"path_length": length, "quantity": "share", "value": share},
                ]
    return {name: pd.DataFrame(rows) for name, rows in made.items()}


@pytest.fixture(scope="module")
def full() -> dict[str, pd.DataFrame]:
    return tables()


def lines_of(axis: Axes, arm: str) -> tuple[list[Line2D], list[Line2D]]:
    """The arm's lines in a panel, told by their colour: the seeds' thin ones and the means' thick ones."""
    lines = [line for line in axis.lines if to_hex(line.get_color()) == to_hex(ARMS[arm].colour)]
    thin = [line for line in lines if line.get_linewidth() < 1]
    return thin, [line for line in lines if line.get_linewidth() >= 1]


def xy(line: Line2D) -> "pd.Series[float]":
    """A line's points as a series, y against x, without gaps."""
    return pd.Series(np.asarray(line.get_ydata(), float), np.asarray(line.get_xdata(), float)).dropna()


def drawn_y(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata(), float).tolist()


def texts(figure: Any) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def pick(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def close(drawn: "pd.Series[float]", expected: "pd.Series[float]") -> None:
    np.testing.assert_allclose(drawn.index.to_numpy(float), expected.index.to_numpy(float))
    np.testing.assert_allclose(drawn.to_numpy(float), expected.to_numpy(float), rtol=1e-12)


def geometric(rows: pd.DataFrame, by: str) -> "pd.Series[float]":
    return rows.groupby(by)["value"].apply(lambda values: np.prod(values) ** (1 / len(values)))


# Style


def test_every_arm_has_its_own_colour_marker_line_and_label() -> None:
    assert NAMES == ["residual", "stop-gradient", "gradient-only", "plain", "shortest-path"]
    for attribute in ("colour", "marker", "line", "label"):
        assert len({getattr(look, attribute) for look in ARMS.values()}) == len(ARMS)


@pytest.mark.parametrize("name", FIGURES)
def test_size_fonts_and_legend_suit_a_paper(name: str, full: dict[str, pd.DataFrame]) -> None:
    draw, kind = FIGURES[name]
    for table in (full[kind], full[kind][full[kind]["depth_total"] == 56]):
        axes = draw(table)
        figure = axes[0, 0].figure
        figure.draw_without_rendering()
        shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        legend = figure.legends[0].get_window_extent()
        assert figure.get_figwidth() == pytest.approx(5.5 if axes.shape[1] > 1 else 3.3)
        assert min(text.get_fontsize() for text in shown) >= 7
        assert {text.get_fontname() for text in shown} == {"STIXGeneral"}
        assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert all(legend.y0 >= axis.get_window_extent().y1 for axis in axes.flat)


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_leaves_the_users_settings_and_table_alone(name: str, full: dict[str, pd.DataFrame]) -> None:
    draw, kind = FIGURES[name]
    settings, table = matplotlib.rcParams.copy(), full[kind].copy()
    draw(table)
    assert matplotlib.rcParams.copy() == settings
    pd.testing.assert_frame_equal(table, full[kind])


def test_importing_figures_loads_no_torch_and_chooses_no_backend() -> None:
    code = "import sys, figures, matplotlib; print('torch' in sys.modules, matplotlib.get_backend(auto_select=False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": ""}, check=True)
    assert done.stdout.strip() == "False None"


# Each figure


def test_learning_curves_draw_every_seed_and_their_mean(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.learning_curves(full["curves"])
    assert [axis.get_title() for axis in axes[0]] == ["depth 20", "depth 56"]
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "linear"]
    for (row, (split, quantity)), (column, depth), arm in product(
        enumerate([("train", "loss"), ("validation", "accuracy")]), enumerate([20, 56]), NAMES
    ):
        rows = pick(full["curves"], split=split, quantity=quantity, depth_total=depth, arm=arm)
        thin, thick = lines_of(axes[row, column], arm)
        assert len(thin) == 3
        assert len(thick) == 1
        close(xy(thick[0]), rows.groupby("epoch")["value"].mean())
        for seed, line in enumerate(thin):
            close(xy(line), rows[rows["seed"] == seed].set_index("epoch")["value"])


def test_a_mean_ends_where_a_seed_does_and_a_cross_marks_it(full: dict[str, pd.DataFrame]) -> None:
    curves = full["curves"]
    curves = curves[~((curves["arm"] == "plain") & (curves["seed"] == 2) & (curves["epoch"] > 1))]
    axes = figures.learning_curves(curves)
    thin, thick = lines_of(axes[0, 0], "plain")
    assert [len(xy(line)) for line in thin if line.get_marker() != "x"] == [3, 3, 2]
    assert max(xy(thick[0]).index) == 1
    crosses = [line for line in axes[0, 0].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1]]
    assert "each of 2–3 seeds; ×: ended early" in texts(axes[0, 0].figure)


def test_accuracy_by_depth_shows_every_seed_and_the_mean(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.accuracy_by_depth(full["outcomes"])
    assert [axis.get_ylabel() for axis in axes[0]] == ["training accuracy (%)", "test accuracy (%)"]
    for axis, split in zip(axes[0], ("train", "test"), strict=True):
        bars = {
            to_hex(np.asarray(bar.get_color())[0]): bar for bar in axis.collections if isinstance(bar, LineCollection)
        }
        for arm in NAMES:
            rows = pick(full["outcomes"], split=split, quantity="accuracy", arm=arm)
            points = [line for line in lines_of(axis, arm)[1] if line.get_marker() == ARMS[arm].marker]
            assert [drawn_y(line) for line in points] == [list(v) for _, v in rows.groupby("depth_total")["value"]]
            means = [segment[0, 1] for segment in bars[to_hex(ARMS[arm].colour)].get_segments()]
            np.testing.assert_allclose(means, rows.groupby("depth_total")["value"].mean())


def test_accuracy_by_depth_marks_what_is_missing(full: dict[str, pd.DataFrame]) -> None:
    outcomes = full["outcomes"].copy()
    outcomes.loc[(outcomes["arm"] == "plain") & (outcomes["depth_total"] == 56), "value"] = np.nan
    axes = figures.accuracy_by_depth(outcomes)
    crosses = [line for line in axes[0, 1].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [to_hex(line.get_color()) for line in crosses] == [to_hex(ARMS["plain"].colour)]
    assert "each of 3 seeds; ×: no value" in texts(axes[0, 0].figure)


def test_gradient_norms_draw_the_geometric_mean_at_the_start_and_at_the_end(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.gradient_norms(full["gradients"])
    assert {axis.get_yscale() for axis in axes.flat} == {"log"}
    assert "at initialisation" in texts(axes[0, -1])
    assert "after epoch 2" in texts(axes[1, -1])
    for (row, epoch), (column, depth), arm in product(enumerate([0, 2]), enumerate([20, 56]), NAMES):
        rows = pick(full["gradients"], quantity="total", epoch=epoch, depth_total=depth, arm=arm)
        thin, thick = lines_of(axes[row, column], arm)
        assert len(thin) == 3
        close(xy(thick[0]), geometric(rows, "depth"))


def test_zeros_are_left_out_of_log_axes(full: dict[str, pd.DataFrame]) -> None:
    gradients = full["gradients"].copy()
    zero = (gradients["arm"] == "plain") & (gradients["seed"] == 1) & (gradients["depth"] == 2)
    gradients.loc[zero, "value"] = 0.0
    axes = figures.gradient_norms(gradients)
    thin, thick = lines_of(axes[0, 0], "plain")
    assert [list(xy(line).index) for line in thin] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert list(xy(thick[0]).index) == [0, 1, 3]
    assert axes[0, 0].get_ylim()[0] > 1e-7
    assert "thin: each of 3 seeds; exact zeros left out" in texts(axes[0, 0].figure)
    assert "exact zeros" not in texts(figures.gradient_norms(full["gradients"])[0, 0].figure)
    assert "exact zeros" not in texts(figures.path_lengths(full["paths"])[0, 0].figure)
    assert "exact zeros" not in texts(figures.gradient_split(full["gradients"])[0, 0].figure)


def test_an_arm_without_values_is_named(full: dict[str, pd.DataFrame]) -> None:
    gradients = full["gradients"]
    gradients = gradients[
        ~((gradients["arm"] == "plain") & (gradients["epoch"] == 2) & (gradients["depth_total"] == 56))
    ]
    axes = figures.gradient_norms(gradients)
    assert "no value: plain" in texts(axes[1, 1])
    assert "no value" not in texts(axes[1, 0]) + texts(axes[0, 1])
    assert "no value" in texts(figures.gradient_split(gradients)[1, 3])


def test_an_arm_that_ended_early_has_fewer_epochs_of_magnitudes(full: dict[str, pd.DataFrame]) -> None:
    magnitudes = full["magnitudes"]
    magnitudes = magnitudes[~((magnitudes["arm"] == "residual") & (magnitudes["epoch"] == 2))]
    axes = figures.residual_magnitudes(magnitudes)
    drawn = [[len(xy(line)) for line in axis.lines if line.get_linewidth() > 1] for axis in axes[0]]
    assert drawn == [[4, 4], [4, 4, 4], [4, 4, 4]]


def test_gradient_split_draws_both_parts_of_the_deepest_network(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.gradient_split(full["gradients"])
    assert [axis.get_title() for axis in axes[0]] == NAMES
    for (row, epoch), (column, arm) in product(enumerate([0, 2]), enumerate(NAMES)):
        rows = pick(full["gradients"], epoch=epoch, depth_total=56, arm=arm)
        drawn = {name: pick(rows, quantity=name) for name in ("shortcut", "branch")}
        drawn = {name: part for name, part in drawn.items() if part["value"].any()}
        thick = lines_of(axes[row, column], arm)[1]
        assert len(thick) == len(drawn)
        for line, (name, part) in zip(thick, drawn.items(), strict=True):
            close(xy(line), geometric(part, "depth"))
            assert (line.get_linestyle() == "-") == (name == "shortcut")
    assert "shortcut = 0" in texts(axes[0, 1])
    assert "branch = 0" in texts(axes[1, 4])
    assert "depth 20" in texts(figures.gradient_split(full["gradients"], depth_total=20)[0, 0].figure)


def test_path_lengths_draw_curves_and_single_points(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.path_lengths(full["paths"])
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "log", "linear", "linear"]
    for (row, (quantity, epoch)), arm in product(enumerate(product(("norm", "share"), (0, 2))), NAMES):
        rows = pick(full["paths"], quantity=quantity, epoch=epoch, depth_total=56, arm=arm)
        rows = rows[rows["value"] != 0]
        thick = lines_of(axes[row, 1], arm)[1]
        if quantity == "share" and arm not in ("residual", "gradient-only"):
            assert not thick
            continue
        expected = geometric(rows, "path_length") if quantity == "norm" else rows.groupby("path_length")["value"].mean()
        close(xy(thick[0]), expected)
        assert thick[0].get_marker() == ARMS[arm].marker
    assert "no share curve: stop-gradient, plain, shortest-path (one length, share 1)" in texts(axes[0, 0].figure)


def test_shares_that_cancel_each_other_get_an_axis_for_both_signs(full: dict[str, pd.DataFrame]) -> None:
    paths = full["paths"].copy()
    large = (paths["quantity"] == "share") & (paths["arm"] == "residual") & (paths["path_length"] < 2)
    paths.loc[large, "value"] = np.where(paths.loc[large, "path_length"] == 0, -5000.0, 5001.0)
    axes = figures.path_lengths(paths)
    assert [axis.get_yscale() for axis in axes[:, 0]] == ["log", "log", "symlog", "symlog"]
    assert list(axes[2, 0].get_yticks()) == [0, -100, -1000, 100, 1000]


def test_residual_magnitudes_go_from_light_to_dark_for_arms_with_a_shortcut(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.residual_magnitudes(full["magnitudes"])
    assert [axis.get_title() for axis in axes[0]] == ["residual", "stop-gradient", "shortest-path"]
    for (row, depth), (column, arm) in product(
        enumerate([20, 56]), enumerate(["residual", "stop-gradient", "shortest-path"])
    ):
        thick = [line for line in axes[row, column].lines if line.get_linewidth() > 1]
        rows = pick(full["magnitudes"], quantity="ratio", depth_total=depth, arm=arm)
        for epoch, line in enumerate(thick):
            close(xy(line), geometric(rows[rows["epoch"] == epoch], "depth"))
        brightness = [sum(to_rgb(line.get_color())) for line in thick]
        assert brightness == sorted(brightness, reverse=True)
        assert to_hex(thick[-1].get_color()) == to_hex(ARMS[arm].colour)
    legend = texts(axes[0, 0].figure)
    assert all(f"epoch {epoch}" in legend for epoch in range(3))
    assert "no ratio: gradient-only, plain (the shortcut carries zeros)" in legend


def test_residual_magnitudes_draw_six_of_many_epochs() -> None:
    magnitudes = pd.concat(
        [tables(["residual"], [20], [0])["magnitudes"].query("epoch == 0").assign(epoch=e) for e in range(61)]
    )
    axes = figures.residual_magnitudes(magnitudes)
    assert [entry.get_text() for entry in axes[0, 0].figure.legends[0].get_texts()] == [
        f"epoch {epoch}" for epoch in (0, 1, 4, 11, 26, 60)
    ]


def test_arms_that_cannot_have_what_a_figure_shows_get_a_panel_that_says_so() -> None:
    magnitudes, outcomes = tables(["plain"])["magnitudes"], tables(["shortest-path"])["outcomes"]
    assert "no ratio: plain (the shortcut carries zeros)" in texts(figures.residual_magnitudes(magnitudes)[0, 0])
    assert "none of the arms\nstop-gradient, residual, plain, gradient-only" in texts(
        figures.interaction(outcomes)[0, 0]
    )


def test_interaction_joins_the_four_means(full: dict[str, pd.DataFrame]) -> None:
    axes = figures.interaction(full["outcomes"])
    mean = pick(full["outcomes"], split="test", quantity="accuracy").groupby(["depth_total", "arm"])["value"].mean()
    for axis, depth in zip(axes[0], (20, 56), strict=True):
        joins = [drawn_y(line) for line in axis.lines if list(line.get_xdata()) == [0, 1]]
        expected = [
            [mean[depth, a] for a in pair] for pair in (("stop-gradient", "residual"), ("plain", "gradient-only"))
        ]
        np.testing.assert_allclose(joins, expected)
        for arm, backward in {"plain": 0, "stop-gradient": 0, "gradient-only": 1, "residual": 1}.items():
            points = lines_of(axis, arm)[1][0]
            rows = pick(full["outcomes"], split="test", quantity="accuracy", depth_total=depth, arm=arm)
            assert drawn_y(points) == list(rows["value"])
            assert np.abs(np.asarray(points.get_xdata()) - backward).max() < 0.1
    assert "shortest-path" not in texts(axes[0, 0].figure)


# Any table


@pytest.mark.parametrize(
    ("arms", "depths", "seeds", "count"),
    [
        (NAMES, [20], [0], "1 seed"),
        (["residual", "plain"], [32, 110], [0, 1], "2 seeds"),
    ],
)
@pytest.mark.parametrize("name", FIGURES)
def test_one_seed_one_depth_or_a_few_arms_are_enough(
    name: str, arms: list[str], depths: list[int], seeds: list[int], count: str
) -> None:
    draw, kind = FIGURES[name]
    axes = draw(tables(arms, depths, seeds)[kind])
    assert isinstance(axes, np.ndarray)
    assert axes.ndim == 2
    assert count in texts(axes[0, 0].figure)
    assert all(axis.lines for axis in axes.flat)


@pytest.mark.parametrize("name", FIGURES)
def test_the_order_of_rows_and_the_index_do_not_matter(name: str, full: dict[str, pd.DataFrame]) -> None:
    draw, kind = FIGURES[name]
    shuffled = full[kind].sample(frac=1, random_state=0).set_axis([0] * len(full[kind]))
    for one, other in zip(draw(full[kind]).flat, draw(shuffled).flat, strict=True):
        for line, twin in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), twin.get_xydata())


def test_axes_of_the_caller_are_drawn_on(full: dict[str, pd.DataFrame]) -> None:
    own = Figure(layout="constrained").subplots(1, 2)
    axes = figures.accuracy_by_depth(full["outcomes"], axes=own)
    assert list(axes.flat) == list(own)
    with pytest.raises(
        ValueError, match=r"learning_curves draws 2 x 2 panels of this table; got 2 axes\. Leave axes out\?"
    ):
        figures.learning_curves(full["curves"], axes=own)


@pytest.mark.parametrize("name", FIGURES)
def test_errors_name_the_figure_and_what_is_missing(name: str, full: dict[str, pd.DataFrame]) -> None:
    draw, kind = FIGURES[name]
    table = full[kind]
    with pytest.raises(
        ValueError, match=rf"^{name}: the table lacks seed, value; its columns are experiment, arm, depth"
    ):
        draw(table.drop(columns=["seed", "value"]))
    with pytest.raises(ValueError, match=rf"^{name}: the table is empty; there is nothing to draw\.$"):
        draw(table[:0])
    with pytest.raises(
        ValueError, match=rf"^{name}: no finite value where .*quantity is .*, among {len(table)} rows\.$"
    ):
        draw(table.assign(value=np.nan))
    with pytest.raises(ValueError, match=rf"^{name}: several values for .*Draw one experiment at a time"):
        draw(pd.concat([table, table.assign(experiment="another")]))


def test_an_arm_needs_a_look(full: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    curves = full["curves"].replace({"arm": {"plain": "mine"}})
    with pytest.raises(
        ValueError, match=r"no look for the arm mine; known are residual, .*figures\.ARMS\[name\] = figures\.Look"
    ):
        figures.learning_curves(curves)
    monkeypatch.setitem(ARMS, "mine", figures.Look("my arm", "#E69F00", "P", "-"))
    assert "my arm" in texts(figures.learning_curves(curves)[0, 0].figure)


# Files


@pytest.mark.parametrize("name", ["accuracy_by_depth", "gradient_norms", "path_lengths"])
def test_save_writes_pdf_png_and_the_table(name: str, full: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    draw, kind = FIGURES[name]
    table = full[kind][full[kind]["depth_total"] == 20].reset_index(drop=True)
    axes = draw(table)
    paths = figures.save(axes, table, tmp_path / "new" / "folder", name)
    assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
    pdf, png, csv = (path.read_bytes() for path in paths)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # embedded TrueType
    assert b"/Type3" not in pdf
    assert int.from_bytes(png[16:20]) == round(200 * axes[0, 0].figure.get_figwidth())  # 200 dpi
    pd.testing.assert_frame_equal(pd.read_csv(paths[2]), table)
    assert csv.count(b"\n") == len(table) + 1


def test_saving_the_same_table_twice_gives_the_same_bytes(full: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    table = full["outcomes"]
    one, other = (figures.save(figures.interaction(table), table, tmp_path / run, "same") for run in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_save_closes_a_figure_of_pyplot(full: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    with matplotlib.rc_context({"backend": "agg"}):
        figure, own = plt.subplots(1, 2, layout="constrained")
        figures.save(figures.interaction(full["outcomes"], axes=own), full["outcomes"], tmp_path, "own")
        assert not plt.fignum_exists(figure.number)


def test_fonts_would_be_type_3_without_the_style(tmp_path: Path) -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "a")
    with matplotlib.rc_context({"pdf.fonttype": 3}):
        figure.savefig(tmp_path / "plain.pdf")
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()


def test_profiles_draw_what_the_probes_give() -> None:
    rows = [
        {"depth": depth, "quantity": quantity, "value": 10.0**-depth}
        for depth in range(3)
        for quantity in ("total", "shortcut", "branch", "ratio")
    ]
    rows += [{"depth": depth, "quantity": "other", "value": 0.0} for depth in range(3)]
    gradient, ratio, share = figures.profiles(pd.DataFrame(rows), title="toy").flat
    assert gradient.get_yscale() == "log"
    assert len(gradient.lines) == 2 * 3  # `other` is zero everywhere
    assert np.allclose(ratio.lines[0].get_ydata(), [1, 0.1, 0.01])
    assert "not measured" in " ".join(text.get_text() for text in share.texts)
    with pytest.raises(ValueError, match="profiles: the table has no quantity of branch, other, ratio"):
        figures.profiles(pd.DataFrame({"depth": [0], "quantity": ["loss"], "value": [1.0]}))
