"""Short gradient paths, a simpler residue, or a prior over path lengths: what do the finished runs say?

Reads what each hypothesis predicts from a verdict file, which was fixed before the runs, and the runs that the other
experiments have finished; trains nothing itself. Every prediction holds, fails or is undecided, also where runs are
missing. The headline needs all data sets to agree.

Writes the filled tables and a figure to OUT/verdict.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.markdown import Markdown

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output, write_text
from experiments.questions.verdict.judging import judge, judged_table
from experiments.questions.verdict.measured import collect
from experiments.questions.verdict.verdict_ending import fares, page, sentence, standings
from experiments.questions.verdict.verdict_file import Verdicts, read_verdicts

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
    runs = {source: collect(settings.out / source.folder) for source in verdicts.sources}
    effects = [judge(runs[source], source, verdicts.effects) for source in verdicts.sources]
    controls = [judge(runs[source], source, verdicts.controls) for source in verdicts.sources]
    output = Output(settings.out / EXPERIMENT)
    output.clear()
    console, filled = show.terminal(), output.folder / "verdict.md"
    write_text(filled, page(verdicts, effects, controls))
    output.add([filled])
    output.table("controls", judged_table([judged for of_source in controls for judged in of_source]))
    output.table("effects", found := judged_table([judged for of_source in effects for judged in of_source]))
    drawn = found[found["control"].isin(required(verdicts))]
    if drawn[drawn["quantity"] == "mean"]["value"].notna().any():
        margins = {claim.outcome.name: claim.outcome.margin for claim in verdicts.effects}
        bands = pd.DataFrame({"outcome": list(margins), "quantity": "margin", "value": list(margins.values())})
        drawn = pd.concat([drawn, bands], ignore_index=True)
        show.save_figure(output, figures.verdict(drawn), drawn, EXPERIMENT)
    for part in (standings(verdicts, effects), fares(verdicts, effects)):
        console.print(Markdown("\n".join(part)))
    show.files(console, output)
    console.print(sentence(verdicts, effects))


def required(verdicts: Verdicts) -> set[str]:
    """The names of the versions in which an effect must be read."""
    return {version.name for claim in verdicts.effects for version in claim.versions if version.required}


if __name__ == "__main__":
    run_script("experiments.verdict")
