"""Probes for residual networks: record one forward and backward of any PyTorch model, then measure it.

.. code-block:: python

    from probes import record, gradient_norms

    with record(model) as recording:
        F.cross_entropy(model(images), labels).backward()
    gradient_norms(recording)

`recording` keeps what happened at every junction; `discovery` finds the junctions, `gradients` follows and changes what
passes through them, `measurements` turns a recording into tables. Imports point this way alone: `tables`, `norms` and
`scaling`, then `discovery`, `gradients`, `sites` and `recording`, `measurements`, `tracking`.
"""

from importlib import metadata

from .comparison import compare
from .discovery.junctions import Junction, find_junctions
from .gradients.gate import gate
from .gradients.lesions import lesion, permute
from .gradients.path_limits import PathLimit, limit_paths
from .measured import load
from .measurements.attribution import branch_attribution
from .measurements.contributions import contributions
from .measurements.gradient_alignment import gradient_alignment
from .measurements.gradient_correlation import gradient_correlation
from .measurements.gradient_noise import gradient_noise
from .measurements.gradient_norms import gradient_norms
from .measurements.iterative_inference import iterative_inference
from .measurements.jacobian_spectrum import jacobian_spectrum
from .measurements.layer_responses import layer_responses
from .measurements.linear_probes import linear_probes
from .measurements.paths import path_contributions, path_gradients
from .measurements.precision import precision
from .measurements.read_out import read_out
from .measurements.residual_magnitudes import residual_magnitudes
from .measurements.sampled_paths import sample_paths
from .measurements.similarity import similarity
from .measurements.stream_statistics import stream_statistics
from .measurements.tangent_kernel import tangent_kernel
from .measurements.update_sizes import update_sizes
from .recording import Recording, record
from .scaling import scale_gradient
from .sites import Site
from .tracking.track import track

__all__ = [
    "Junction",
    "PathLimit",
    "Recording",
    "Site",
    "branch_attribution",
    "compare",
    "contributions",
    "find_junctions",
    "gate",
    "gradient_alignment",
    "gradient_correlation",
    "gradient_noise",
    "gradient_norms",
    "iterative_inference",
    "jacobian_spectrum",
    "layer_responses",
    "lesion",
    "limit_paths",
    "linear_probes",
    "load",
    "path_contributions",
    "path_gradients",
    "permute",
    "precision",
    "read_out",
    "record",
    "residual_magnitudes",
    "sample_paths",
    "scale_gradient",
    "similarity",
    "stream_statistics",
    "tangent_kernel",
    "track",
    "update_sizes",
]

try:
    __version__ = metadata.version("residual-probes")
except metadata.PackageNotFoundError:  # a copy of this folder, perhaps under another name
    __version__ = "unknown"
