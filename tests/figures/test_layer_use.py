"""The figures of layer use: what is drawn equals what plain pandas or numpy gives."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

import figures
from figures import ARMS
from figures.layer_use import PANELS
from tests.test_figures import NAMES, close, geometric, number, pick, texts, xy

MEASURES = ("weight movement", "gradient at initialisation", "reset cost, BatchNorm kept")


def blocks(arms: tuple[str, ...] = tuple(NAMES), seeds: int = 3) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for arm, seed, panel, depth in product(arms, range(seeds), PANELS, range(-1, 4)):
        if depth < 0 and panel.quantity != "read-out":
            continue
        if panel.quantity in ("read-out", "attribution") and arm in ("plain", "gradient-only"):
            continue
        about = {"arm": arm, "seed": seed, "epoch": 0 if panel.at_start else 10, "block": f"layer{1 + depth // 2}.0"}
        about |= {"statistics": panel.statistics or None, "depth": depth, "quantity": panel.quantity}
        rows.append(about | {"value": number(arm, seed, panel, depth)})
    for arm, seed, statistics in product(arms, range(seeds), ("kept", "re-estimated")):
        about = {"arm": arm, "seed": seed, "epoch": 10, "statistics": statistics, "quantity": "whole"}
        rows.append(about | {"value": number(arm, seed, statistics)})
    return pd.DataFrame(rows)


def centres(seeds: int = 3) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for arm, name in product(NAMES, MEASURES):
        about = {"arm": arm, "outcome": name}
        rows += [about | {"seed": s, "quantity": "centre", "value": number(arm, name, s)} for s in range(seeds)]
        rows += [about | {"quantity": "low", "value": 0.2}, about | {"quantity": "high", "value": 0.7}]
    return pd.DataFrame(rows)


def arrays(arms: tuple[str, ...] = ("residual", "plain"), images: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 255, (images, 4, 4, 1), dtype=np.uint8),
        "labels": np.array(["cat", "dog"])[:images],
        "arms": np.array(arms),
        "maps": random.normal(size=(len(arms), images, 4, 4)),
        "predictions": np.array([["cat", "dog"], ["dog", "dog"]])[: len(arms), :images],
    }


def suits_a_paper(figure: Any, width: float) -> None:
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert figure.get_figwidth() == pytest.approx(width)
    assert min(text.get_fontsize() for text in shown) >= 7
    for axis in figure.axes:
        label = axis.yaxis.label
        if label.get_rotation() == 90 and label.get_text():
            assert label.get_window_extent().height <= 1.1 * axis.get_window_extent().height


def test_every_panel_draws_each_seed_and_the_mean() -> None:
    table = blocks()
    axes = figures.layer_use(table)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        rows = pick(table, quantity=panel.quantity, epoch=0 if panel.at_start else 10)
        rows = pick(rows, statistics=panel.statistics) if panel.statistics else rows
        assert axis.get_yscale() == ("log" if panel.log else "linear")
        for arm in set(rows["arm"]):
            of_arm = pick(rows, arm=arm)
            lines = [k for k in axis.lines if to_hex(k.get_color()) == to_hex(ARMS[arm].colour)]
            (thick,) = [k for k in lines if k.get_linewidth() == 1]
            mean = geometric(of_arm, "depth") if panel.log else of_arm.groupby("depth")["value"].mean()
            close(xy(thick), mean)
            assert len([k for k in lines if k.get_linewidth() == 0.5]) == 3
            dotted = [k for k in lines if k.get_linewidth() == 0.6]
            if panel.unit == "test error (%)":
                whole = pick(table, arm=arm, quantity="whole", statistics=panel.statistics or "kept")["value"].mean()
                assert [float(np.asarray(k.get_ydata())[0]) for k in dotted] == [pytest.approx(whole)]
    suits_a_paper(axes[0, 0].figure, 5.5)
    assert "each of 3 seeds" in texts(axes[0, 0].figure)
    assert axes[0, 2].get_title() == "gradient, after epoch 10"


def test_what_no_arm_has_is_said() -> None:
    axes = figures.layer_use(blocks(("plain",), seeds=1))
    assert [("not measured" in texts(axis)) for axis in axes.flat] == [
        p.quantity in ("read-out", "attribution") for p in PANELS
    ]
    with pytest.raises(ValueError, match=r"^layer_use: the table lacks depth; its columns are"):
        figures.layer_use(blocks().drop(columns="depth"))
    with pytest.raises(ValueError, match=r"^layer_use: several values for arm residual"):
        figures.layer_use(pd.concat([blocks(), blocks()]))


def test_centres_draw_seeds_mean_and_interval_in_their_row() -> None:
    table = centres()
    (axis,) = figures.depth_centres(table).flat
    for (place, name), arm in product(enumerate(MEASURES), NAMES):
        lines = [k for k in axis.lines if to_hex(k.get_color()) == to_hex(ARMS[arm].colour)]
        here = [k for k in lines if abs(float(np.mean(np.asarray(k.get_ydata(), float))) - place) < 0.5]
        interval, points, mean = here
        values = pick(table, arm=arm, outcome=name, quantity="centre")["value"]
        assert list(points.get_xdata()) == values.tolist()
        assert list(mean.get_xdata()) == pytest.approx([values.mean()] * 2)
        assert list(interval.get_xdata()) == [0.2, 0.7]
    suits_a_paper(axis.figure, 3.3)
    assert "bars: 95 % t interval; points: each of 3 seeds" in " ".join(texts(axis.figure).split())
    bare = figures.depth_centres(table[table["quantity"] == "centre"])
    assert "interval" not in texts(bare[0, 0].figure)


def test_maps_are_in_per_cent_on_one_scale_and_say_what_was_predicted() -> None:
    given = arrays()
    given["maps"][1, 1] = 0
    axes = figures.saliency_maps(given)
    drawn = {axis.images[0].get_clim() for axis in axes[:, 1:].flat}
    assert len(drawn) == 1
    for arm, image in product(range(2), range(2)):
        shown = np.asarray(axes[image, 1 + arm].images[0].get_array())
        assert np.abs(shown).sum() == pytest.approx(100 if (arm, image) != (1, 1) else 0)
        assert (np.sign(shown) == np.sign(given["maps"][arm, image])).all()
    assert [axis.get_title() for axis in axes[0]] == ["image", "residual", "plain"]
    assert [axis.get_xlabel() for axis in axes[0]] == ["", "→ cat", "→ dog (wrong)"]
    suits_a_paper(axes[0, 0].figure, 5.5)


def test_maps_are_redrawn_from_their_file(tmp_path: Path) -> None:
    given = arrays()
    given["images"] = np.repeat(given["images"], 3, axis=-1)  # colour
    _, png, npz = figures.save(figures.saliency_maps(given), given, tmp_path, "maps")
    assert npz.name == "maps.npz"
    stored = np.load(npz)
    assert set(stored) == set(given)
    again, _, twin = figures.save(figures.saliency_maps(stored), stored, tmp_path, "again")
    assert again.read_bytes() == (tmp_path / "maps.pdf").read_bytes()
    assert png.read_bytes() == (tmp_path / "again.png").read_bytes()
    assert npz.read_bytes() == twin.read_bytes()


def test_errors_of_maps_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^saliency_maps: the arrays lack labels, maps; their names are images, "):
        figures.saliency_maps({k: v for k, v in arrays().items() if k not in ("labels", "maps")})
    with pytest.raises(ValueError, match=r"no look for the arm mine; known are residual"):
        figures.saliency_maps(arrays() | {"arms": np.array(["residual", "mine"])})
