"""Two recordings, joined: a case done on paper, an exact factor of two, and the same table from files."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from models import cifar_resnet
from probes import Recording, compare, gradient_norms, load, path_contributions, record

COLUMNS = ["block", "depth", "quantity", "value"]


def rows(*values: tuple[str, int, str, float], **more: Any) -> pd.DataFrame:
    return pd.DataFrame(values, columns=COLUMNS).assign(**more)


A = rows(("x", 0, "total", 2.0), ("y", 1, "total", 4.0), ("w", 2, "total", 1.0), ("v", 3, "total", 0.0))
B = rows(("z", 0, "total", 3.0), ("y", 1, "total", 1.0), ("x", 2, "total", 3.0), ("v", 3, "total", 0.0))


def recorded(model: nn.Module, images: torch.Tensor, *, factor: float = 1.0) -> Recording:
    with record(model) as recording:
        (factor * model(images).logsumexp(1).sum()).backward()
    return recording


def test_rows_are_joined_by_block_wherever_it_stands() -> None:
    found = compare(A, B)
    assert list(found.columns) == ["block", "depth", "measurement", "quantity", "side", "value"]
    expected = [
        ("x", 0, "a", 2.0), ("x", 0, "b", 3.0), ("x", 0, "ratio", 1.5),
        ("y", 1, "a", 4.0), ("y", 1, "b", 1.0), ("y", 1, "ratio", 0.25),
        ("w", 2, "a", 1.0),
        ("v", 3, "a", 0.0), ("v", 3, "b", 0.0), ("v", 3, "ratio", math.nan),
        ("z", 0, "b", 3.0),
    ]  # fmt: skip
    wanted = pd.DataFrame(expected, columns=["block", "depth", "side", "value"])
    pd.testing.assert_frame_equal(found[list(wanted)].reset_index(drop=True), wanted, check_dtype=False)
    assert set(found["measurement"]) == {"table"}


def test_twice_the_loss_has_twice_the_gradient_and_the_same_addends() -> None:
    """Exactly: a factor of two changes exponents alone."""
    model, images = cifar_resnet(8, width=2).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model.eval()
    found = compare(recorded(model, images), recorded(model, images, factor=2.0))
    ratios = found[(found["side"] == "ratio") & found["value"].notna()].set_index("measurement")["value"]
    assert set(ratios["gradient_norms"]) == {2.0}
    assert set(ratios["residual_magnitudes"]) == {1.0}
    sizes = found.groupby("side")["value"].size()
    assert sizes["a"] == sizes["b"] == sizes["ratio"] > 10


def test_a_deeper_network_has_blocks_of_its_own() -> None:
    images = torch.randn(2, 3, 8, 8)
    found = compare(recorded(cifar_resnet(8, width=2), images), recorded(cifar_resnet(14, width=2), images))
    total = found[found["quantity"] == "total"]
    by_side = {side: list(part["block"]) for side, part in total.groupby("side")}
    assert by_side["a"] == by_side["ratio"] == ["layer1.0", "layer2.0", "layer3.0"]
    assert set(by_side["b"]) - set(by_side["a"]) == {"layer1.1", "layer2.1", "layer3.1"}


def test_files_and_folders_give_the_table_of_their_recordings(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 8, 8)
    pair = {side: recorded(cifar_resnet(8, width=2), images) for side in ("a", "b")}
    wanted = compare(pair["a"], pair["b"])
    for side, recording in pair.items():
        recording.save(tmp_path / f"{side}.zip")
        (tmp_path / side).mkdir()
        for name, table in recording.tables().items():
            table.to_csv(tmp_path / side / f"{name}.csv", index=False)
        (tmp_path / side / "wide.csv").write_text("arm,mean\nplain,1\n")  # is no long table
    pd.testing.assert_frame_equal(compare(tmp_path / "a.zip", str(tmp_path / "b.zip")), wanted)
    pd.testing.assert_frame_equal(compare(load(tmp_path / "a.zip"), pair["b"]), wanted)
    by_name = wanted.sort_values(["measurement"], kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(compare(tmp_path / "a", tmp_path / "b"), by_name)
    norms = wanted[wanted["measurement"] == "gradient_norms"].reset_index(drop=True)
    (tmp_path / "b" / "gradient_norms.csv").rename(tmp_path / "b" / "later.csv")
    one = compare(tmp_path / "a" / "gradient_norms.csv", tmp_path / "b" / "later.csv")  # two single tables
    pd.testing.assert_frame_equal(one, norms)


def test_what_two_tables_differ_in_is_no_part_of_the_join() -> None:
    residual, plain = A.assign(arm="residual", seed=0), B.assign(arm="plain", seed=0)
    found = compare(residual, plain)
    assert "arm" not in found
    assert set(found["seed"]) == {0}
    pd.testing.assert_frame_equal(found.drop(columns="seed"), compare(A, B))
    seeds = [pd.concat([table.assign(seed=seed) for seed in (0, 1)]) for table in (residual, plain)]
    assert len(compare(*seeds)) == 2 * len(found)
    pd.testing.assert_frame_equal(compare(A.assign(epoch=3), B), compare(A, B))  # which b does not say


def test_missing_values_match_and_stay_missing() -> None:
    more = {"epoch": [1.0, math.nan, 1.0, 1.0]}
    found = compare(A.assign(**more), A.assign(**more))
    assert (found["side"] == "ratio").sum() == 4
    assert found[(found["block"] == "y") & (found["side"] == "ratio")]["value"].item() == 1


def test_kinds_of_paths_are_columns_of_the_join(tmp_path: Path) -> None:
    by_kind, pair = partial(path_contributions, by=lambda junction: junction.name[:6]), {}
    for side, factor in (("a", 1.0), ("b", 2.0)):
        with record(model := cifar_resnet(8, width=2).double()) as recording:
            images = torch.ones(1, 3, 8, 8, dtype=torch.float64)
            (factor * model(images).sum()).backward(retain_graph=True)
        recording.save(tmp_path / f"{side}.zip", by_kind)
        pair[side] = by_kind(recording)
    found = compare(pair["a"], pair["b"])
    kinds = ["layer1", "layer2", "layer3"]
    assert list(found) == ["path_length", *kinds, "measurement", "quantity", "side", "value"]
    assert (found.groupby(["path_length", *kinds, "quantity"])["side"].agg(list).map(len) == 3).all()
    of_files = compare(tmp_path / "a.zip", tmp_path / "b.zip").query("measurement == 'path_contributions'")
    pd.testing.assert_frame_equal(
        of_files[list(found)].reset_index(drop=True).drop(columns="measurement"),
        found.drop(columns="measurement"),
        check_dtype=False,
    )


def test_depths_are_whole_numbers_also_where_rows_have_none() -> None:
    for depths in ([0.0, 1.0, math.nan, 3.0], pd.array([0, 1, None, 3], dtype="Int64")):
        a, b = A.assign(depth=depths), A.assign(depth=depths, value=1.0)
        found = compare(a, b)["depth"]
        assert found.dtype == "Int64"
        assert found.isna().tolist() == 6 * [False] + 3 * [True] + 3 * [False]
        assert found.dropna().tolist() == [0, 0, 0, 1, 1, 1, 3, 3, 3]
    with record(model := cifar_resnet(8, width=2)) as recording:
        model(torch.ones(1, 3, 8, 8)).sum().backward(retain_graph=True)
    tracked = pd.concat([gradient_norms(recording), path_contributions(recording)])
    found = compare(tracked, tracked)
    assert found.groupby("quantity")["depth"].count().to_dict() | {"norm": 0, "share": 0} == {
        **dict.fromkeys(["branch", "other", "shortcut", "total"], 9), "norm": 0, "share": 0,
    }  # fmt: skip
    assert compare(A.assign(depth=A["depth"] / 2), A)["depth"].unique().tolist() == [0, 0.5, 1, 1.5]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^compare: no row of a has one in b\. a has table: block x, y, w, …; b has"):
        compare(A, A.assign(block=[f"other.{k}" for k in range(4)]))
    with pytest.raises(ValueError, match=r"^compare: table of b has several values of seed, and the other has no"):
        compare(A, pd.concat([B.assign(seed=seed) for seed in (0, 1)]))
    with pytest.raises(ValueError, match=r"^compare: table of a has several values for block x, quantity total: "):
        compare(pd.concat([A, A]), B)
    with pytest.raises(ValueError, match=r"^compare: table of b lacks quantity, value: a long table has one"):
        compare(A, B[["block"]])
    with pytest.raises(ValueError, match=r"^compare: b is a folder without a CSV of the columns quantity and value: "):
        compare(A, tmp_path)
    with pytest.raises(FileNotFoundError):
        compare(A, tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"^unknown columns \['model'\]: the tables' columns are "):
        compare(pd.concat([A.assign(model=m) for m in "mn"]), pd.concat([B.assign(model=m) for m in "mn"]))
