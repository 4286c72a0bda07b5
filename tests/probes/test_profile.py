"""A model's profile is what the probes give by hand, for one set of weights and over a training."""

from functools import cache

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from probes import gradient_norms, path_contributions, record, residual_magnitudes
from probes.profile import Profile, describe, describe_checkpoints, measure, one_table, summarise
from tests.support.networks import Residual, perceptron


def network(blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Residual(perceptron(3)) for _ in range(blocks))).eval()


@cache
def profile(scale: float = 1.0) -> Profile:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return measure(model, {"": torch.ones(2, 3, dtype=torch.float64)})


def test_tables_are_those_of_the_probes() -> None:
    model, x = network(), torch.ones(2, 3, dtype=torch.float64)
    with record(model) as recording:
        model(x).float().square().mean().backward(retain_graph=True)
    for probe in (gradient_norms, residual_magnitudes, path_contributions):
        pd.testing.assert_frame_equal(profile().tables[probe.__name__], probe(recording))
    junctions = profile().junctions
    assert list(junctions["shortcut"]) == ["identity"] * 3
    norms = profile().tables["gradient_norms"].query("quantity == 'total'")["value"]
    assert list(junctions["gradient norm"]) == list(norms)
    assert f"goes from {norms.iloc[-1]:.3g} to {norms.iloc[0]:.3g}." in summarise(profile())
    assert profile().notes == []


def test_labels_make_the_loss_a_cross_entropy() -> None:
    model, x, labels = network(), torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    with record(model) as recording:
        F.cross_entropy(model(x).float(), labels).backward()
    found = measure(model, {"": x}, labels, most_junctions=2)
    pd.testing.assert_frame_equal(found.tables["gradient_norms"], gradient_norms(recording))
    assert "path_contributions" not in found.tables
    assert found.notes == ["path lengths: not taken of 3 junctions; raise --paths to have them"]
    assert "path length" not in describe(found)


def test_a_training_is_one_table() -> None:
    profiles = {"first.pt": profile(), "last.pt": profile(0.5)}
    table = one_table(profiles)
    assert list(table.columns) == [
        *("checkpoint", "probe", "block", "depth", "module", "path_length", "quantity", "value")
    ]
    for name, of_one in profiles.items():
        for probe, expected in of_one.tables.items():
            rows = table[(table["checkpoint"] == name) & (table["probe"] == probe)]
            found = rows[list(expected.columns)].reset_index(drop=True)
            pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_text_says_every_number_and_bars_are_logarithms() -> None:
    lines = describe(profile()).splitlines()
    assert lines[0] == "3 junctions: 3 identity; 0 other adds"
    norms = profile().tables["gradient_norms"].query("quantity == 'total'")["value"]
    for depth, value in enumerate(norms):
        (row,) = [line.split() for line in lines if line.split()[1:3] == [str(depth), "identity"]]
        assert row[3] == f"{value:.2e}"
    found = Profile(profile().adds, {name: table.copy() for name, table in profile().tables.items()}, [])
    total = found.tables["gradient_norms"]["quantity"] == "total"
    found.tables["gradient_norms"].loc[total, "value"] = [1e-4, 0.0, 1e-2]  # from 1e-5 to 1e-1 are 16 signs
    rows = [line.split() for line in describe(found).splitlines() if " identity " in line]
    assert [row[3] for row in rows] == ["1.00e-04", "0.00e+00", "1.00e-02"]
    assert [row[4].count("#") for row in (rows[0], rows[2])] == [4, 12]
    assert set("".join(rows[1][4:5])) != {"#"}  # no bar: the ratio follows
    found.tables["gradient_norms"] = found.tables["gradient_norms"].query("block != '1'")  # no gradient came there
    assert [line.split()[3] for line in describe(found).splitlines() if " identity " in line][1] == "-"


def test_text_over_a_training_has_six_checkpoints_at_most() -> None:
    profiles = {f"step_{k}.pt": profile(0.5 + k / 20) for k in range(11)}
    text = describe_checkpoints(profiles)
    assert "6 of 11 checkpoints; the table has all of them" in text
    heads = [line.split() for line in text.splitlines() if line.startswith("depth")]
    assert heads == [["depth", "block", *(f"step_{k}.pt" for k in range(0, 11, 2))]] * 2
    (first, _) = [line.split() for line in text.splitlines() if line.split()[:2] == ["0", "0"]]
    value = profile(0.5 + 4 / 20).tables["gradient_norms"].query("block == '0' and quantity == 'total'")["value"].item()
    assert first[2 + 2] == f"{value:.2e}"


def test_errors_name_the_shape_and_the_cure() -> None:
    with pytest.raises(ValueError, match=r"fails on an input of shape \(2, 4\) \(change it by --shape, .*RuntimeError"):
        measure(network(), {"": torch.ones(2, 4, dtype=torch.float64)})
    with pytest.raises(
        ValueError, match=r"none of the model's 0 adds is a residual junction; .*record\(model, blocks="
    ):
        measure(nn.Linear(3, 3), {"": torch.ones(2, 3)})
