"""Figures of the experiments: each a pure function from a long table (one value a row) to axes. No torch in here."""

from figures.accuracy_by_depth import accuracy_by_depth
from figures.alignment import alignment, alignment_over_epochs
from figures.budget import budget
from figures.conditions import conditions, recovery_scores
from figures.copying import copying
from figures.degradation import degradation
from figures.depth_centres import depth_centres
from figures.dose_and_timing import dose_and_timing
from figures.ensemble import ensemble
from figures.gradient_norms import gradient_norms
from figures.gradient_split import gradient_split
from figures.insertion import insertion
from figures.interaction import interaction
from figures.layer_responses import layer_responses
from figures.layer_use import layer_use
from figures.learning_curves import learning_curves
from figures.learning_rates import learning_rates
from figures.lesions import lesions_by_block, lesions_by_count
from figures.path_lengths import path_lengths
from figures.profiles import profiles
from figures.residual_magnitudes import residual_magnitudes
from figures.saliency_maps import saliency_maps
from figures.sampled_paths import sampled_paths
from figures.save import save
from figures.short_path_changes import short_path_changes
from figures.short_paths import short_paths
from figures.style import ARMS, Look
from figures.training_speed import training_speed
from figures.variants import variants
from figures.verdict import verdict

__all__ = [
    "ARMS",
    "Look",
    "accuracy_by_depth",
    "alignment",
    "alignment_over_epochs",
    "budget",
    "conditions",
    "copying",
    "degradation",
    "depth_centres",
    "dose_and_timing",
    "ensemble",
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
    "recovery_scores",
    "residual_magnitudes",
    "saliency_maps",
    "sampled_paths",
    "save",
    "short_path_changes",
    "short_paths",
    "training_speed",
    "variants",
    "verdict",
]
