"""Probes for residual networks: record one forward and backward of any PyTorch model, then measure it.

from probes import record, gradient_norms

with record(model) as recording:
    F.cross_entropy(model(images), labels).backward()
gradient_norms(recording)
"""

from .measurements.attribution import branch_attribution
from .gradients.gate import gate
from .measurements.gradient_norms import gradient_norms
from .discovery.junctions import find_junctions
from .measurements.layer_responses import layer_responses
from .gradients.lesions import lesion, permute
from .gradients.path_limits import PathLimit, limit_paths
from .measurements.paths import path_contributions, path_gradients
from .recording import Recording, record
from .measurements.residual_magnitudes import residual_magnitudes
from .measurements.sampled_paths import sample_paths
from .scaling import scale_gradient
from .sites import Site
from .discovery.detection import Junction

__all__ = [
    "Junction",
    "PathLimit",
    "Recording",
    "Site",
    "branch_attribution",
    "find_junctions",
    "gate",
    "gradient_norms",
    "layer_responses",
    "lesion",
    "limit_paths",
    "path_contributions",
    "path_gradients",
    "permute",
    "record",
    "residual_magnitudes",
    "sample_paths",
    "scale_gradient",
]
