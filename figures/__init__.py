"""Figures of the experiments: each a pure function from a long table (one value a row) to axes. No torch in here.

All take a table, whose columns their docstrings name, and return the axes, rows by columns of panels. The table is an
experiment's or, where a probe gives what a figure draws, the probe's own. They also take

- `axes`: the Axes to draw on, whose fonts and figure stay as they are; by default those of a new figure, which is as
  wide as the `venue` says and as high as its panels need;
- `looks`: a `Look` (label, colour, marker, line) by the name of an arm (condition, treatment), for one's own names or
  instead of those in `ARMS`; these come first, in their order;
- `legend`: False leaves the legend out;

and raise ValueError where a column or every value is missing, a value is there twice, or `axes` are not as many as
panels. `caption` says in words what the lines and points of a figure are.
"""

from .accuracy import accuracy_by_depth, budget, interaction, learning_rates
from .alignment import alignment, alignment_over_epochs
from .answer import answer, answer_losses
from .compare import compare
from .conditions import conditions, gap_closed
from .degradation import degradation, layer_responses
from .dose_and_timing import dose_and_timing
from .ensemble import ensemble
from .explanations import explanations
from .gradient_norms import gradient_norms, gradient_split
from .identity_mapping import copying, insertion
from .layer_use import depth_centres, layer_use
from .learning_curves import learning_curves
from .lesions import lesions_by_block, lesions_by_count
from .parts.save import save
from .parts.sheet import caption
from .parts.style import ARMS, Look, venue
from .path_lengths import path_lengths, sampled_paths
from .profiles import checkpoints, profiles
from .residual_magnitudes import residual_magnitudes
from .saliency_maps import saliency_maps
from .short_paths import short_path_changes, short_paths
from .stream import stream
from .training_speed import training_speed
from .variants import variants

__all__ = [
    "ARMS",
    "Look",
    "accuracy_by_depth",
    "alignment",
    "alignment_over_epochs",
    "answer",
    "answer_losses",
    "budget",
    "caption",
    "checkpoints",
    "compare",
    "conditions",
    "copying",
    "degradation",
    "depth_centres",
    "dose_and_timing",
    "ensemble",
    "explanations",
    "gap_closed",
    "gradient_norms",
    "gradient_split",
    "insertion",
    "interaction",
    "layer_responses",
    "layer_use",
    "learning_curves",
    "learning_rates",
    "lesions_by_block",
    "lesions_by_count",
    "path_lengths",
    "profiles",
    "residual_magnitudes",
    "saliency_maps",
    "sampled_paths",
    "save",
    "short_path_changes",
    "short_paths",
    "stream",
    "training_speed",
    "variants",
    "venue",
]
