"""What networks of different make have in common: their arms compared, and each compared with the ordinary ResNet."""

import pandas as pd

from experiments.engine.effects import Estimate, decide, errors_on_test, estimate
from probes.tables import table

MARGIN = 0.02  # of the test error: a smaller difference is none
DIFFERENCES = (("plain", "residual"), ("plain", "stop-gradient"), ("stop-gradient", "residual"))
REFERENCE = "resnet"
FIRST_TABLE = {  # He et al. 2016 (arXiv 1603.05027), Table 1: test error (%), gates' biases first 0
    "resnet": "6.61",
    "halved-shortcut": "over 20",
    "halved-sum": "12.35",
    "dropout-shortcut": "over 20",
    "exclusive-gate": "over 20",
    "shortcut-gate": "12.86",
    "projection-c": "12.22",
}
Effects = dict[tuple[str, str], Estimate]  # by network and difference


def final_errors(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Test errors (0..1): a row for each network and seed, a column for each arm."""
    return errors_on_test(outcomes).pivot_table(index=["network", "seed"], columns="arm", values="value", sort=False)


def measured(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The final test error (0..1) and training loss of every cell."""
    train = outcomes[(outcomes["split"] == "train") & (outcomes["quantity"] == "loss")]
    return pd.concat([errors_on_test(outcomes), train], ignore_index=True)


def between_arms(errors: pd.DataFrame) -> Effects:
    """Of each network, by how much the test error of one arm exceeds another's, paired by seed."""
    return {
        (str(network), f"{more} - {less}"): estimate(differences.to_numpy())
        for network in errors.index.unique("network")
        for more, less in DIFFERENCES
        if {more, less} <= set(errors.columns)
        and len(differences := (errors[more] - errors[less]).loc[network].dropna())
    }


def from_reference(errors: pd.DataFrame) -> Effects:
    """By how much each network's test error, with its shortcuts, exceeds that of the ResNet; paired by seed, which is
    the order of the data, since other weights are drawn."""
    if "residual" not in errors or REFERENCE not in errors.index.unique("network"):
        return {}
    wide = errors["residual"].unstack("network")
    return {
        (str(network), f"residual - {REFERENCE}"): estimate(differences.to_numpy())
        for network in wide.columns
        if network != REFERENCE and len(differences := (wide[network] - wide[REFERENCE]).dropna())
    }


def effect_table(found: Effects, depths: dict[str, int]) -> pd.DataFrame:
    """The differences as a long table: mean, ends of the interval where there is one, n."""
    return table(
        row
        for (network, effect), each in found.items()
        for row in each.rows(network=network, depth_total=depths[network], outcome="test error", effect=effect)
    )


def verdict(found: Estimate) -> str:
    """Whether the whole interval of a difference lies above the margin, or below it."""
    return decide(found, MARGIN, ("above", "below"))
