"""What figures draw with: looks, the imports, points over seeds on log axes, and the files that are saved."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import figures
from figures import ARMS
from figures.parts.points import seed_points
from figures.parts.save import write
from figures.parts.style import looks_of
from tests.support.drawings import MAIN, NAMES, long, means_of, pick

FIGURES = {"accuracy_by_depth": "outcomes", "gradient_norms": "gradients", "path_lengths": "paths"}


def test_every_arm_has_its_own_colour_marker_line_and_label() -> None:
    assert NAMES == ["residual", "stop-gradient", "gradient-only", "plain", "shortest-path", "near-identity"]
    for attribute in ("colour", "marker", "line", "label"):
        assert len({getattr(look, attribute) for look in ARMS.values()}) == len(ARMS)


def test_unknown_names_get_looks_of_their_own_after_the_known_ones() -> None:
    others = [f"arm {i}" for i in range(100)]
    looks = looks_of([others[0], "plain", None, float("nan"), *others, "residual"])
    assert list(looks) == ["residual", "plain", *others]
    assert [looks[name].label for name in others] == others
    assert len({(look.colour, look.marker, look.line) for look in looks.values()}) == len(looks)
    assert not {look.marker for look in ARMS.values()} & {looks[name].marker for name in others}
    assert len({looks[name].colour for name in others[:5]} | {look.colour for look in ARMS.values()}) == 11


def lab(colour: str, matrix: np.ndarray) -> np.ndarray:
    """A colour in CIELAB, as an eye sees it whose linear RGB the matrix changes."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(matrix @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_stay_apart_under_every_kind_of_colour_blindness() -> None:
    """Machado et al. 2009, severity 1."""
    eyes = [
        np.eye(3),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
        np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
    ]
    for names, least in ((NAMES, 20), ([*NAMES, "a", "b"], 20), ([*NAMES, *"abcde"], 12)):
        colours = [look.colour for look in looks_of(names).values()]
        for eye, (one, other) in ((eye, pair) for eye in eyes for pair in combinations(colours, 2)):
            assert np.linalg.norm(lab(one, eye) - lab(other, eye)) > least, (one, other)


def test_the_folder_can_be_shipped_inside_another_package_and_chooses_no_backend(tmp_path: Path) -> None:
    """As the wheel does; the checkout is not on the path."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "__init__.py").touch()
    (tmp_path / "guest" / "figures").symlink_to(Path(figures.__file__).parent)
    code = f"import sys; sys.path[:] = [p for p in sys.path if p not in ('', {str(Path.cwd())!r})]; "
    code += f"sys.path.insert(0, {str(tmp_path)!r}); sys.modules['figures'] = None; import guest.figures as f; "
    code += "import matplotlib; print(f.save.__module__, matplotlib.get_backend(auto_select=False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "guest.figures.parts.save None", done.stderr


@pytest.mark.parametrize("log", [False, True])
def test_the_mean_over_seeds_is_geometric_on_a_log_axis(log: bool) -> None:
    rows = long(arm=("residual", "plain"), kind=("a", "b"), seed=range(3))
    axis = Figure().subplots()
    axis.set_yscale("log" if log else "linear")
    seed_points(axis, rows, looks_of(rows["arm"]), by="kind", order=["b", "a"])
    for arm in ("residual", "plain"):
        values = pick(rows, arm=arm).groupby("kind")["value"].apply(list)[["b", "a"]]
        means = [np.exp(np.mean(np.log(own))) if log else np.mean(own) for own in values]
        assert means_of(axis, arm) == pytest.approx(means)


def test_a_look_without_a_value_keeps_its_place_and_takes_no_room() -> None:
    rows = long(arm=("residual", "plain"), kind=("a", "b"), seed=range(3))
    figure = Figure(layout="constrained")
    above, below = figure.subplots(2)
    for axis in (above, below):
        seed_points(axis, pick(rows, arm="plain"), looks_of(rows["arm"]), by="kind", order=["a", "b"])
    figure.draw_without_rendering()
    (line,) = above.lines
    assert list(line.get_xdata()) == pytest.approx([0.2, 1.2])
    assert above.get_window_extent().height > 0.3 * figure.bbox.height


@pytest.mark.parametrize("name", FIGURES)
def test_save_writes_pdf_png_and_the_table(name: str, tmp_path: Path) -> None:
    table = pick(MAIN[FIGURES[name]], depth_total=20).reset_index(drop=True)
    axes = getattr(figures, name)(table)
    paths = figures.save(axes, table, tmp_path / "new" / "folder", name)
    assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
    pdf, png, csv = (path.read_bytes() for path in paths)
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # embedded TrueType
    assert b"/Type3" not in pdf
    assert int.from_bytes(png[16:20]) == round(200 * axes[0, 0].figure.get_figwidth())  # 200 dpi
    pd.testing.assert_frame_equal(pd.read_csv(paths[2]), table)
    assert csv.count(b"\n") == len(table) + 1


@pytest.mark.filterwarnings("ignore:The 'float_precision' argument is deprecated")
def test_a_figure_from_its_saved_table_has_the_same_bytes(tmp_path: Path) -> None:
    table = MAIN["outcomes"]
    for draw in (figures.interaction, figures.accuracy_by_depth):
        one = figures.save(draw(table), table, tmp_path / "a", "same")
        read = pd.read_csv(one[2], float_precision="round_trip")  # the default of older pandas loses bits
        other = figures.save(draw(read), read, tmp_path / "b", "same")
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(figure: Any, file: Path, **_: Any) -> None:
        file.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    (file := tmp_path / "fig.png").write_text("whole")
    with pytest.raises(OSError, match="the disk is full"):
        write(plt.subplots()[1], file)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"fig.png": "whole"}


def test_save_closes_a_figure_of_pyplot(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    with matplotlib.rc_context({"backend": "agg"}):
        figure, own = plt.subplots(1, 2, layout="constrained")
        figures.save(figures.interaction(MAIN["outcomes"], axes=own), MAIN["outcomes"], tmp_path, "own")
        assert not plt.fignum_exists(figure.number)


def test_fonts_would_be_type_3_without_the_style(tmp_path: Path) -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "a")
    with matplotlib.rc_context({"pdf.fonttype": 3}):
        figure.savefig(tmp_path / "plain.pdf")
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()
