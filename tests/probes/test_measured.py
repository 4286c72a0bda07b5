"""A recording is a value: what it says of itself, what is saved of it, and several forwards put together."""

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn

from models import cifar_resnet
from probes import (
    Recording,
    contributions,
    gradient_norms,
    limit_paths,
    load,
    path_contributions,
    path_gradients,
    record,
    residual_magnitudes,
    sample_paths,
    similarity,
    stream_statistics,
)
from probes.measured import reduce, together
from tests.support.networks import (
    FLOAT64,
    Apply,
    Residual,
    chain,
    images,
    linear,
    one,
    perceptron,
    recorded,
    scalars,
    squares,
    values,
)


def resnet() -> Recording:
    return recorded(cifar_resnet(14, width=4).double(), images(), squares)


# What it says of itself


def test_it_says_what_it_holds() -> None:
    model = scalars(2.0, 3.0)
    with record(model, keep=True) as recording:
        assert repr(recording) == "Recording(nothing recorded)"
        out = model(one())
        assert repr(recording) == "Recording(2 junctions, '0' to '1'; forward; tensors kept)"
        out.sum().backward()
    assert repr(recording) == "Recording(2 junctions, '0' to '1'; forward and backward; tensors kept)"
    assert repr(recorded(scalars(2.0), one())) == "Recording(1 junction, '0'; forward and backward)"
    plain = perceptron(1)
    of_blocks = recorded(plain, one(), blocks=[plain[0], plain[2]])
    assert repr(of_blocks) == "Recording(2 blocks, '0' to '2'; forward and backward)"


def ends_early() -> Recording:
    """The backward reaches the first of two junctions alone."""

    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.get_submodule("first")(x)
        return self.get_submodule("last")(self.get_submodule("between")(hidden)), hidden

    model = Apply(forward, first=Residual(linear(2.0)), between=linear(1.0), last=Residual(linear(3.0)))
    return recorded(model, one(), lambda outputs: outputs[1].sum())


def test_it_says_what_a_backward_did_not_reach() -> None:
    recording = ends_early()
    assert "forward and backward, which reached 1 of them" in repr(recording)
    tables = recording.tables()
    assert list(tables) == ["gradient_norms", "residual_magnitudes"]
    assert tables["gradient_norms"]["block"].unique().tolist() == ["first"]
    assert len(tables["residual_magnitudes"]["block"].unique()) == 2


def test_tables_are_those_of_the_functions() -> None:
    recording = resnet()
    tables = recording.tables(path_contributions, partial(sample_paths, samples=2))
    assert list(tables) == ["gradient_norms", "residual_magnitudes", "path_contributions", "sample_paths"]
    pd.testing.assert_frame_equal(tables["gradient_norms"], gradient_norms(recording), check_exact=True)
    pd.testing.assert_frame_equal(tables["residual_magnitudes"], residual_magnitudes(recording), check_exact=True)
    pd.testing.assert_frame_equal(tables["path_contributions"], path_contributions(recording), check_exact=True)


def test_tables_of_blocks_and_of_a_forward_alone() -> None:
    plain = perceptron(1)
    of_blocks = recorded(plain, one(), blocks=[plain[0], plain[2]])
    ((name, found),) = of_blocks.tables().items()
    assert name == "gradient_norms"
    pd.testing.assert_frame_equal(found, gradient_norms(of_blocks), check_exact=True)
    with record(model := scalars(2.0, 0.0)) as forward_alone:
        model(one())
    ((name, found),) = forward_alone.tables().items()
    assert name == "residual_magnitudes"
    pd.testing.assert_frame_equal(found, residual_magnitudes(forward_alone), check_exact=True)


def test_two_measurements_of_one_name_and_an_empty_recording() -> None:
    recording = resnet()
    with pytest.raises(
        ValueError, match=r"two measurements of one name: \['path_contributions', 'path_contributions'\]"
    ):
        recording.tables(path_contributions, partial(path_contributions, max_length=1))
    for measure in (gradient_norms, residual_magnitudes):
        message = (
            f"{measure.__name__} is a table of every recording, of the whole batch: give what is measured otherwise"
        )
        with pytest.raises(ValueError, match=message):
            recording.save("never.zip", partial(measure, per="example"))
        assert list(recording.tables(measure)) == ["gradient_norms", "residual_magnitudes"]
    with record(scalars()) as nothing:
        pass
    for call in (nothing.tables, partial(nothing.save, "never.zip")):
        with pytest.raises(ValueError, match="nothing was recorded"):
            call()
    assert not Path("never.zip").exists()


# Saved


def plain_with_blocks() -> Recording:
    model = perceptron(3)
    return recorded(model, torch.randn(2, 3, dtype=FLOAT64), squares, blocks=[model[0], model[2]])


def vanished() -> Recording:
    """Zeros, nan and what is not finite: shortcuts that carry nothing, a gradient that overflowed."""
    with record(model := scalars(2.0, 0.0)) as recording:
        (model(0 * one()) * math.inf).sum().backward(retain_graph=True)
    return recording


RECORDINGS = {
    "resnet": resnet,
    "torchvision": lambda: recorded(
        torchvision.models.resnet18(num_classes=4), images(2, 32, dtype=torch.float32), squares
    ),
    "names that look like numbers": lambda: recorded(chain(3), torch.randn(2, 3, dtype=FLOAT64), squares),
    "a name that looks like nan": lambda: recorded(
        Apply(lambda self, x: self.get_submodule("nan")(x), nan=Residual(perceptron(1))), one()
    ),
    "blocks": plain_with_blocks,
    "zeros and infinities": vanished,
    "an unfinished backward": ends_early,
}


@pytest.mark.parametrize("make", RECORDINGS.values(), ids=RECORDINGS)
def test_what_was_saved_gives_equal_tables_to_the_last_bit(make: Callable[[], Recording], tmp_path: Path) -> None:
    recording = make()
    recording.save(tmp_path / "a.zip")
    loaded = load(str(tmp_path / "a.zip"))
    assert [(site.name, site.depth) for site in loaded.sites] == [(site.name, site.depth) for site in recording.sites]
    wanted, found = recording.tables(), loaded.tables()
    assert list(found) == list(wanted)
    assert wanted
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)
    for probe in (gradient_norms, residual_magnitudes):
        if probe is gradient_norms and make is ends_early:
            for value in (recording, loaded):
                with pytest.warns(UserWarning, match="no gradient reached 'last'"):
                    pd.testing.assert_frame_equal(probe(value), wanted["gradient_norms"], check_exact=True)
        elif probe.__name__ in wanted:
            pd.testing.assert_frame_equal(probe(loaded), probe(recording), check_exact=True)
        else:
            for value in (recording, loaded):
                with pytest.raises(ValueError, match=r"no gradient reached|no residual junctions"):
                    probe(value)
    assert loaded._repr_html_().partition("<svg")[2] == recording._repr_html_().partition("<svg")[2]
    loaded.save(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as a, zipfile.ZipFile(tmp_path / "b.zip") as b:
        names = [name for name in a.namelist() if name.endswith(".csv")]
        assert all(a.read(name) == b.read(name) for name in names)


def test_names_that_look_like_numbers_are_text_in_every_column_of_names(tmp_path: Path) -> None:
    def pairs(recording: Recording) -> pd.DataFrame:
        return similarity(recording, recording)

    recording = recorded(chain(3), torch.randn(4, 3, dtype=FLOAT64), squares, keep=True)
    recording.save(tmp_path / "a.zip", pairs)
    pd.testing.assert_frame_equal(load(tmp_path / "a.zip").tables()["pairs"], pairs(recording), check_exact=True)


def test_a_loaded_recording_says_what_it_lacks(tmp_path: Path) -> None:
    recording = resnet()
    recording.save(tmp_path / "a.zip", path_contributions)
    loaded = load(tmp_path / "a.zip")
    assert repr(loaded) == f"{repr(recording)[:-1]}; loaded from 'a.zip'; tables path_contributions)"
    for probe in (path_contributions, path_gradients, sample_paths, contributions, stream_statistics):
        with pytest.raises(
            ValueError, match=r"needs the (graph|tensors) .* holds numbers alone \(loaded from 'a.zip'\)"
        ):
            probe(loaded)
    for ask in (lambda: loaded.is_bypassed, lambda: loaded.gradient(loaded.sites[0], "total"), loaded.loss_gradients):
        with pytest.raises(ValueError, match="holds numbers alone"):
            ask()
    with pytest.raises(ValueError, match="holds numbers alone, not the graph"):
        _ = loaded.junctions[0].match.fork
    wanted = path_contributions(recording)
    pd.testing.assert_frame_equal(loaded.tables()["path_contributions"], wanted, check_exact=True)
    pd.testing.assert_frame_equal(loaded.tables(path_contributions)["path_contributions"], wanted, check_exact=True)
    loaded.save(tmp_path / "b.zip")
    pd.testing.assert_frame_equal(load(tmp_path / "b.zip").tables()["path_contributions"], wanted, check_exact=True)


WITHOUT_US = """
import sys, zipfile, pandas
opened = zipfile.ZipFile(sys.argv[1]).open("gradient_norms.csv")
table = pandas.read_csv(opened, dtype={"block": str}, converters={"value": float})
assert "torch" not in sys.modules
print(table.to_json(double_precision=15, orient="values"))
print([value.hex() for value in table["value"]])
"""


def test_pandas_alone_reads_it_in_a_process_without_torch(tmp_path: Path) -> None:
    recording = resnet()
    recording.save(tmp_path / "a.zip")
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path / "a.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    rows, digits = done.stdout.splitlines()
    wanted = gradient_norms(recording)
    assert [row[:3] for row in json.loads(rows)] == wanted[["block", "depth", "quantity"]].to_numpy().tolist()
    assert digits == str([value.hex() for value in wanted["value"]])


def test_a_file_is_complete_or_what_it_was(tmp_path: Path) -> None:
    recording = resnet()
    recording.save(file := tmp_path / "a.zip")
    before = file.read_bytes()
    recording.save(file)
    assert file.read_bytes() == before, "the same tables make the same file"

    def fails(_: Recording) -> pd.DataFrame:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recording.save(file, fails)
    unwritable = {"gradient_norms": gradient_norms(recording), "fails": "no table"}
    recording.tables = lambda *_: unwritable  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        recording.save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("block,depth")
    with pytest.raises(ValueError, match="is no recording that was saved, or it is damaged"):
        load(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
    with pytest.raises(ValueError, match="is no recording that was saved, or it is damaged"):
        load(tmp_path / "other.zip")
    rows = "block,depth,quantity,value\n0,0,total,1.0\n0,0,total,2.0\n"
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("about.json", '{"format": 1, "sites": [{"block": "0", "depth": 0, "shortcut": null}]}')
        archive.writestr("gradient_norms.csv", rows)
    with pytest.raises(ValueError, match=r"twice.zip' has several values of 'total' at '0'"):
        load(tmp_path / "twice.zip")
    for about in ('{"format": 99, "sites": []}', "[]", '{"format": null}'):
        with zipfile.ZipFile(tmp_path / "later.zip", "w") as archive:
            archive.writestr("about.json", about)
        with pytest.raises(ValueError, match=r"has the format (99|None), and this version .* reads 1: install a newer"):
            load(tmp_path / "later.zip")


# In a notebook


def test_a_notebook_cell_of_27_junctions_is_small_and_shows_every_block() -> None:
    model = cifar_resnet(56, width=2)
    recording = recorded(model, images(2, 8, dtype=torch.float32), squares)
    html = recording._repr_html_()
    assert len(recording.junctions) == 27
    assert len(html.encode()) < 200_000
    assert html.count("<svg") == 2
    assert html.count("<tr>") == 28
    assert all(f"<td>{site.name}</td>" in html for site in recording.sites)
    total = gradient_norms(recording).query("quantity == 'total'")["value"]
    assert f"<td>{total.iloc[0]:.3g}</td>" in html
    assert "<script" not in html
    assert "projection" in html


def test_a_profile_is_drawn_to_scale() -> None:
    """Gradients 72, 24, 6 at forks of scalar blocks 2, 3, 5: on a scale from 1 to 100, logarithms are places."""
    html = recorded(scalars(), one())._repr_html_()
    points = html.split('points="')[1].split('"')[0]
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights == pytest.approx([160 - 136 * math.log10(value) / 2 for value in (72, 24, 6)], abs=0.06)


def test_names_from_outside_are_escaped() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self._modules["<script>"](x)  # pyright: ignore[reportOptionalCall]

    model = Named()
    model._modules["<script>"] = Residual(linear(2.0))
    html = recorded(model, one())._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("make", RECORDINGS.values(), ids=RECORDINGS)
def test_every_recording_can_be_shown(make: Callable[[], Recording]) -> None:
    html = make()._repr_html_()
    for nowhere in ('="nan', ",nan", "inf,", ',inf"'):
        assert nowhere not in html
    with record(scalars()) as nothing:
        pass
    assert nothing._repr_html_() == "<code>Recording(nothing recorded)</code>"


# Several forwards put together


def halves(x: Tensor) -> tuple[Tensor, ...]:
    return x[:1], x[1:4], x[4:]


def test_the_parts_of_a_batch_give_the_whole_batch() -> None:
    """In float64; sums in another order differ by its rounding."""
    model, x = chain(4), torch.randn(7, 3, dtype=FLOAT64)
    whole = recorded(model, x, squares).tables()
    parts = together([reduce(recorded(model, part, squares)) for part in halves(x)])
    for name, table in parts.tables().items():
        pd.testing.assert_frame_equal(table, whole[name], rtol=1e-12, atol=1e-15)
    assert "put together from 3 forwards" in repr(parts)


def test_one_part_is_itself_to_the_last_bit() -> None:
    for make in RECORDINGS.values():
        recording = make()
        parts = together([reduce(recording)])
        for name, table in recording.tables().items():
            found = parts.tables()[name]
            reached = found["block"].isin(table["block"])
            pd.testing.assert_frame_equal(found[reached].reset_index(drop=True), table, check_exact=True)
            assert found.loc[~reached, "value"].isna().all(), "put together, a missing row is nan"


def test_norms_are_right_where_their_squares_are_not() -> None:
    model, parts = scalars(2.0, 3.0), []
    for scale in (3e200, 4e200):
        parts.append(reduce(recorded(model, one() * scale, lambda out, scale=scale: (out * scale).sum())))
    found = together(parts)
    assert values(gradient_norms(found), "total") == pytest.approx([12 * 5e200, 4 * 5e200], rel=1e-15)
    assert values(residual_magnitudes(found), "branch") == pytest.approx([2 * 5e200, 9 * 5e200], rel=1e-15)
    assert values(residual_magnitudes(found), "cosine") == pytest.approx([1, 1], rel=1e-15)


def test_a_part_of_zeros_adds_nothing_and_zeros_alone_stay_zeros() -> None:
    model = scalars(2.0)
    some, none = (reduce(recorded(model, scale * one(), squares)) for scale in (1, 0))
    for parts in ([some, none], [none, some]):
        for name, table in together(parts).tables().items():
            pd.testing.assert_frame_equal(table, together([some]).tables()[name], check_exact=True)
    sizes = together([none, none]).tables()["residual_magnitudes"].set_index("quantity")["value"]
    assert sizes["branch"] == sizes["shortcut"] == 0
    assert math.isnan(sizes["cosine"])
    assert math.isnan(sizes["ratio"])


def test_what_is_not_finite_stays_so() -> None:
    model = scalars(2.0)
    some, broken = (reduce(recorded(model, scale * one())) for scale in (1.0, math.nan))
    found = together([some, broken]).tables()["residual_magnitudes"]
    assert found["value"].isna().all()


def test_loss_scales_are_divided_out_of_gradients_alone() -> None:
    model, x = chain(2), torch.randn(4, 3, dtype=FLOAT64)
    parts = [
        reduce(recorded(model, part, lambda out, s=scale: s * squares(out)))
        for part, scale in zip(x.split(2), (8, 2), strict=True)
    ]
    found, wanted = together(parts, [8, 2]).tables(), recorded(model, x, squares).tables()
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(found[name], table, rtol=1e-12, atol=1e-15)


def test_blocks_that_a_part_dropped_stand_where_others_ran_them() -> None:
    blocks = {name: Residual(perceptron(3)) for name in "abcd"}
    x, parts = torch.randn(2, 3, dtype=FLOAT64), []
    for ran in ("acd", "bd", "abd"):
        model = Apply(lambda self, x, ran=ran: [x := self.get_submodule(name)(x) for name in ran][-1], **blocks)
        parts.append(reduce(recorded(model, x, squares)))
    found = together(parts)
    assert [(site.name, site.depth) for site in found.sites] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    only_first = gradient_norms(parts[0]).query("block == 'c'")["value"].tolist()
    assert gradient_norms(found).query("block == 'c'")["value"].tolist() == only_first
    of_d = [values(gradient_norms(part), "total")[-1] for part in parts]
    assert values(gradient_norms(found), "total")[-1] == pytest.approx(math.hypot(*of_d), rel=1e-15)


def test_where_no_gradient_came_there_is_no_number() -> None:
    found = gradient_norms(together([reduce(ends_early())]))
    assert found[found["block"] == "first"]["value"].tolist() == [3, 1, 2, 0]
    assert found[found["block"] == "last"]["value"].isna().all()
    assert len(found) == 8


def test_gradients_of_limited_paths_stay_refused() -> None:
    model = scalars(2.0, 3.0)
    with limit_paths(model, at_most=1):
        with record(model) as recording:
            out = model(one())
        out.sum().backward()
    assert "gradient_norms" not in recording.tables()
