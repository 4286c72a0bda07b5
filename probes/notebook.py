"""How a recording looks in a notebook: its profile as inline SVG, and its junctions as a table."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 190, 58, 150, 24, 30
LOOKS = {  # colours that are legible on white and on black; the dashes tell the lines apart without them
    "total": ("#7f7f7f", ""),
    "shortcut": ("#1f87c9", "6 3"),
    "branch": ("#d9730d", "2 3"),
    "ratio": ("#2a9d63", ""),
}
MOST_DOTS = 60
Series = dict[str, list[float]]


def recording_html(title: str, sites: Sequence[tuple[str, str]], tables: Mapping[str, pd.DataFrame]) -> str:
    """A recording in HTML: two profiles over depth, and a table with a row for each site.

    Args:
        title: The line above.
        sites: Name and kind (of its shortcut, or empty) of each site, by depth.
        tables: ``gradient_norms`` and ``residual_magnitudes``, as far as there are any.

    Returns:
        HTML without scripts, style sheets or files of its own; all texts are escaped.
    """
    found = {name: _by_quantity(table, [name for name, _ in sites]) for name, table in tables.items()}
    norms, sizes = found.get("gradient_norms", {}), found.get("residual_magnitudes", {})
    names = [name for name, _ in sites]
    lines = {name: norms[name] for name in ("total", "shortcut", "branch") if name in norms}
    parts = [f"<p><code>{escape(title)}</code></p>"]
    if lines:
        parts.append(_profile("norm of the gradient at each fork", lines, names))
    if "ratio" in sizes:
        parts.append(_profile("size of the branch beside the shortcut", {"ratio": sizes["ratio"]}, names))
    gradients = {f"gradient: {name}": values for name, values in norms.items()}
    addends = {name if name in ("ratio", "cosine") else f"size: {name}": values for name, values in sizes.items()}
    parts.append(_table(sites, gradients | addends))
    return "<div>" + "".join(parts) + "</div>"


def _by_quantity(table: pd.DataFrame, names: Sequence[str]) -> Series:
    wide = table.pivot(index="block", columns="quantity", values="value").reindex(list(names))
    return {quantity: wide[quantity].tolist() for quantity in table["quantity"].unique()}


def _table(sites: Sequence[tuple[str, str]], columns: Series) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("depth", "block", "shortcut", *columns))
    rows = []
    for depth, (name, kind) in enumerate(sites):
        cells = [str(depth), escape(name), escape(kind), *(f"{values[depth]:.3g}" for values in columns.values())]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _profile(title: str, lines: Series, names: Sequence[str]) -> str:
    """Lines over depth on a logarithmic scale; a 0 is a ring at the lower edge, what is not finite is left out."""
    positive = [value for values in lines.values() for value in values if 0 < value < math.inf]
    low = math.floor(math.log10(min(positive, default=1.0)))
    high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place(depth: int, value: float) -> tuple[float, float]:
        share = (math.log10(value) - low) / (high - low) if value else 0.0
        return LEFT + (right - LEFT) * depth / max(len(names) - 1, 1), bottom - (bottom - TOP) * share

    shapes = [_axes(low, high, title, len(names))]
    for row, (name, values) in enumerate(lines.items()):
        colour, dashes = LOOKS[name]
        drawn = [(depth, value) for depth, value in enumerate(values) if 0 <= value < math.inf]
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in drawn if point[1])
        stroke = f'stroke="{colour}" fill="none" stroke-width="1.5"'
        shapes.append(f'<polyline points="{points}" stroke-dasharray="{dashes}" {stroke}/>')
        for depth, value in drawn:
            if value and len(names) > MOST_DOTS:
                continue
            x, y = place(depth, value)
            look = f'fill="{colour}"' if value else stroke
            label = escape(f"{names[depth]}: {name} {value:.3g}")
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" {look}><title>{label}</title></circle>')
        y = TOP + 16 * row + 8
        shapes.append(f'<path d="M{right + 12} {y}h24" stroke-dasharray="{dashes}" {stroke}/>')
        shapes.append(f'<text x="{right + 42}" y="{y + 4}">{name}</text>')
    label = escape(f"{title}, from depth 0 to {len(names) - 1}")
    return (
        f'<svg role="img" aria-label="{label}" width="{WIDTH}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="max-width:100%" font-size="11" font-family="sans-serif" fill="currentColor">{"".join(shapes)}</svg>'
    )


def _axes(low: int, high: int, title: str, count: int) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    shapes = [f'<text x="{LEFT}" y="{TOP - 10}">{escape(title)}</text>']
    step = max(1, math.ceil((high - low) / 6))
    for power in range(low, high + 1, step):
        y = bottom - (bottom - TOP) * (power - low) / (high - low)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="currentColor" stroke-opacity="0.2"/>')
        shapes.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for depth in sorted({0, count // 2, count - 1}):
        x = LEFT + (right - LEFT) * depth / max(count - 1, 1)
        shapes.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{depth}</text>')
    shapes.append(f'<text x="{right + 12}" y="{bottom + 16}">depth</text>')
    return "".join(shapes)
