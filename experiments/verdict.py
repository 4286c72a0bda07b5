"""Short gradient paths, a simpler residue, or a prior over path lengths: what do the finished runs say?

Reads what each hypothesis predicts from a verdict file, which was fixed before the runs, and the cells that the other
experiments have finished; runs nothing itself. Every prediction holds, fails or is undecided, also where cells are
missing. The headline needs all data sets to agree.

Writes the filled table and a figure to OUT/verdict.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.markdown import Markdown

import figures
from experiments.engine.command import BadInput, make_folder, run_script
from experiments.engine.ending import clear_figures, show_files, terminal
from experiments.engine.grid import write_aside
from experiments.engine.judging import judge, judged_table
from experiments.engine.measured import collect
from experiments.engine.verdict_ending import fares, page, sentence, standings
from experiments.engine.verdict_file import Verdicts, read_verdicts

EXPERIMENT = "verdict"
FILE = Path(__file__).with_name("verdict.md")


@dataclass(frozen=True)
class Settings:
    """Every setting of the verdict."""

    file: Path = FILE
    """The verdict file."""
    out: Path = Path("results")
    """The folder of all results."""


def main(settings: Settings) -> None:
    """Fill in the verdict."""
    verdicts = read_verdicts(settings.file)
    if not settings.out.is_dir():
        raise BadInput(f"--out {settings.out}: there is no such folder; run the experiments first (make answer)")
    cells = {source: collect(settings.out / source.folder) for source in verdicts.sources}
    effects = [judge(cells[source], source, verdicts.effects) for source in verdicts.sources]
    controls = [judge(cells[source], source, verdicts.controls) for source in verdicts.sources]
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    clear_figures(folder)
    console, filled = terminal(), page(verdicts, effects, controls)
    (folder / "verdict.md").write_text(filled)
    write_aside(folder / "controls.csv", judged_table([each for of_source in controls for each in of_source]))
    write_aside(folder / "effects.csv", found := judged_table([each for of_source in effects for each in of_source]))
    drawn = found[found["control"].isin(required(verdicts))]
    if drawn[drawn["quantity"] == "mean"]["value"].notna().any():
        margins = {claim.outcome.name: claim.outcome.margin for claim in verdicts.effects}
        bands = pd.DataFrame({"outcome": list(margins), "quantity": "margin", "value": list(margins.values())})
        drawn = pd.concat([drawn, bands], ignore_index=True)
        figures.save(figures.verdict(drawn), drawn, folder / "figures", EXPERIMENT)
    for part in (standings(verdicts, effects), fares(verdicts, effects)):
        console.print(Markdown("\n".join(part)))
    show_files(console, folder)
    console.print(sentence(verdicts, effects))


def required(verdicts: Verdicts) -> set[str]:
    """The names of the versions in which an effect must be read."""
    return {version.name for claim in verdicts.effects for version in claim.versions if version.required}


if __name__ == "__main__":
    run_script("experiments.verdict")
