"""A recording's numbers without its graph, tensors or model: what a file holds, and several forwards put together."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from .discovery.graph import Edge
from .discovery.junctions import Junction
from .files import read_zip
from .recording import FORMAT, OWN, Recording, measurement_name
from .sites import JunctionSite, Site


class MeasuredRecording(Recording):
    """The numbers of a recording: measurements that need norms and sizes alone are taken of it as of the recording."""

    def __init__(self, sites: Sequence[Site], source: str, tables: dict[str, pd.DataFrame] | None = None) -> None:
        super().__init__(keep=False, names={})
        self._sites = list(sites)
        self._source = source
        self._tables = tables or {}

    def __repr__(self) -> str:
        tables = f"; tables {', '.join(self._tables)}" if self._tables else ""
        return f"{super().__repr__()[:-1]}; {self._source}{tables})"

    def tables(self, *measurements: Callable[[Recording], pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """As of any recording, with all tables that were saved with it; these are not measured again."""
        missing = [m for m in measurements if measurement_name(m) not in self._tables]
        return super().tables(*missing) | {name: table.copy() for name, table in self._tables.items()}

    @property
    def is_bypassed(self) -> bool:
        raise self._missing("what is known of routes around the junctions", "the graph")

    def gradient(self, site: Site, name: str) -> Tensor:
        raise self._missing(f"the gradient {name!r} of {site.name!r}", "the tensors")

    def kept_sites(self, wanted_by: str) -> list[Site]:
        raise self._missing(wanted_by, "the tensors")

    def loss_gradients(self) -> dict[Edge, Tensor]:
        raise self._missing("what the loss sends into the model", "the tensors")

    def chain(self) -> list[JunctionSite]:
        raise self._missing("what follows paths", "the graph")

    def _missing(self, what: str, needed: str) -> ValueError:
        return ValueError(
            f"{what} needs {needed} of the forward, and this recording holds numbers alone ({self._source}): measure "
            "while the recording itself is there; recording.save(file, path_contributions) saves such a table, too"
        )


class _NoGraph:
    """Stands where a junction has its place in autograd's graph."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.metadata: dict[str, bool] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(
            "this recording holds numbers alone, not the graph of the forward, which is asked for here: measure while "
            "the recording itself is there"
        )


def _measured_site(
    name: str, depth: int, kind: str | None, norms: Mapping[str, float], sizes: Mapping[str, float]
) -> Site:
    as_tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in norms.items()}
    if kind is None:
        return Site(name, depth, as_tensors)
    place, junction = cast(Any, _NoGraph(kind)), Junction(name, depth, cast(Any, kind))
    sizes_as_tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in sizes.items()}
    return JunctionSite(name, depth, as_tensors, junction=junction, add=place, match=place, sizes=sizes_as_tensors)


def load(file: str | os.PathLike[str]) -> MeasuredRecording:
    """What ``Recording.save`` wrote.

    Args:
        file: The zip file.

    Returns:
        A recording of numbers: ``gradient_norms``, ``residual_magnitudes`` and ``Recording.tables`` give tables equal
        to those of the recording that was saved, and so does its picture in a notebook. What needs its tensors or its
        graph says so; tables of such measurements that were saved are in ``tables()``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no saved recording, it is damaged, or a later version of this package wrote it.

    Example::

        with record(model) as recording:
            F.cross_entropy(model(images), labels).backward()
        recording.save("step_0.zip")
        gradient_norms(load("step_0.zip"))
    """
    path = Path(file)
    tables, about = read_zip(path)
    if not isinstance(about, dict) or about.get("format") not in range(1, FORMAT + 1):
        found = about.get("format") if isinstance(about, dict) else None
        raise ValueError(
            f"{str(path)!r} has the format {found!r}, and this version of the package reads {FORMAT}: install a newer "
            'one, or read the tables alone, pandas.read_csv(zipfile.ZipFile(file).open("gradient_norms.csv"))'
        )
    norms, sizes = (_by_block(tables.pop(name, None), path) for name in OWN)
    for of_block in sizes.values():
        of_block.pop("ratio")
    sites = []
    for depth, site in enumerate(about["sites"]):
        name = site["block"]
        sites.append(_measured_site(name, depth, site["shortcut"], norms.get(name, {}), sizes.get(name, {})))
    return MeasuredRecording(sites, f"loaded from {path.name!r}", tables)


def _by_block(table: pd.DataFrame | None, path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    if table is not None:
        for block, quantity, value in zip(table["block"], table["quantity"], table["value"], strict=True):
            of_block = found.setdefault(block, {})
            if quantity in of_block:
                raise ValueError(
                    f"{str(path)!r} has several values of {quantity!r} at {block!r} (of examples or tokens): read its "
                    "tables alone, by pandas"
                )
            of_block[quantity] = value
    return found


def reduce(recording: Recording) -> MeasuredRecording:
    """A recording's numbers as they are now; the recording may be released."""
    sites = [(site, recording.norms(site) if site.norms else {}) for site in recording.sites]
    tensors = [value for site, norms in sites for value in (*norms.values(), *_sizes(site).values())]
    numbers = iter(torch.stack(tensors).tolist() if tensors else ())  # a device is waited for once
    found = []
    for depth, (site, tensors_of_site) in enumerate(sites):
        norms = {name: next(numbers) for name in tensors_of_site}
        sizes = {name: next(numbers) for name in _sizes(site)}
        kind = site.match.kind if isinstance(site, JunctionSite) else None
        found.append(_measured_site(site.name, depth, kind, norms, sizes))
    return MeasuredRecording(found, "of one forward")


def _sizes(site: Site) -> dict[str, Tensor]:
    return site.sizes if isinstance(site, JunctionSite) else {}


def together(parts: Sequence[MeasuredRecording], loss_scales: Sequence[float] | None = None) -> MeasuredRecording:
    r"""The recording of a batch from those of its parts, as if they had been one forward and backward.

    The norm of a whole is the root of the sum of its parts' squares, and a cosine is the parts' inner products, summed,
    over the norms of the wholes: exact, where no example's numbers depend on those beside it.

    Args:
        parts: One a forward. A site that a part did not run, or that no gradient reached there, adds nothing.
        loss_scales: What the loss of each was multiplied by; gradients' norms are divided by it.

    Returns:
        The sites of all parts, in execution order; their gradients' norms are nan where no part had any.
    """
    scales = loss_scales or [1.0] * len(parts)
    by_name = [{site.name: site for site in part.sites} for part in parts]
    found = []
    for depth, name in enumerate(_merged([list(sites) for sites in by_name])):
        pairs = [(sites[name], scale) for sites, scale in zip(by_name, scales, strict=True) if name in sites]
        site = pairs[0][0]
        kind = site.match.kind if isinstance(site, JunctionSite) else None
        reached = [{k: v.item() / scale for k, v in of.norms.items()} for of, scale in pairs if of.norms]
        norms = {k: _hypot(part[k] for part in reached) if reached else math.nan for k in site.quantities}
        sizes = _whole_sizes([{k: v.item() for k, v in _sizes(of).items()} for of, _ in pairs]) if kind else {}
        found.append(_measured_site(name, depth, kind, norms, sizes))
    scaled = ", under a loss scale" if set(scales) != {1.0} else ""
    return MeasuredRecording(found, f"put together from {len(parts)} forward{'s' * (len(parts) > 1)}{scaled}")


def _merged(orders: Sequence[list[str]]) -> list[str]:
    """The names of several forwards in execution order: most have the same, but blocks may be dropped at random."""
    merged, *others = sorted(orders, key=len, reverse=True)
    merged = list(merged)
    for names in others:
        if names == merged:
            continue
        place = 0
        for name in names:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def _whole_sizes(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    branch, shortcut = (_hypot(part[name] for part in parts) for name in ("branch", "shortcut"))
    if not (branch and shortcut):
        return {"branch": branch, "shortcut": shortcut, "cosine": math.nan}
    # Where one addend of a part is zero, its cosine is nan and its inner product zero.
    present = [part for part in parts if part["branch"] and part["shortcut"]]
    products = [part["cosine"] * (part["branch"] / branch) * (part["shortcut"] / shortcut) for part in present]
    return {"branch": branch, "shortcut": shortcut, "cosine": _sum(products)}


def _hypot(values: Any) -> float:
    """The root of the sum of squares, right over float64's whole range; nan where a value is."""
    known = list(values)
    return math.nan if any(map(math.isnan, known)) else math.hypot(*known)  # hypot(inf, nan) is inf


def _sum(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
