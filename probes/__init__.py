"""Probes for residual networks: record one forward and backward of any PyTorch model, then measure it.

from probes import record, gradient_norms

with record(model) as recording:
    F.cross_entropy(model(images), labels).backward()
gradient_norms(recording)
"""

from probes.attribution import branch_attribution
from probes.gate import gate
from probes.gradient_norms import gradient_norms
from probes.junctions import find_junctions
from probes.layer_responses import layer_responses
from probes.lesions import lesion, permute
from probes.path_limits import PathLimit, limit_paths
from probes.paths import path_contributions, path_gradients
from probes.recording import Recording, record
from probes.residual_magnitudes import residual_magnitudes
from probes.sampled_paths import sample_paths
from probes.scaling import scale_gradient
from probes.sites import Site
from probes.watch import Junction

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
