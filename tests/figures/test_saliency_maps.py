"""The saliency maps: one scale, in per cent, redrawn from their file."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import figures
from tests.support.drawings import suits_a_paper


def arrays(arms: tuple[str, ...] = ("residual", "plain"), images: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 255, (images, 4, 4, 1), dtype=np.uint8),
        "labels": np.array(["cat", "dog"])[:images],
        "arms": np.array(arms),
        "maps": random.normal(size=(len(arms), images, 4, 4)),
        "predictions": np.array([["cat", "dog"], ["dog", "dog"]])[: len(arms), :images],
    }


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
    suits_a_paper(axes)


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


def test_an_arm_that_figures_does_not_know_is_named() -> None:
    axes = figures.saliency_maps(arrays() | {"arms": np.array(["residual", "mine"])})
    assert [axis.get_title() for axis in axes[0]] == ["image", "residual", "mine"]
