"""Draws rooms.svg: the folders and rooms of the tree, and which imports which. `python docs/images/rooms.py`."""

from pathlib import Path

Point = tuple[float, float]
FILE = Path(__file__).with_name("rooms.svg")
SIZE = (780, 560)
WIDTH, HEIGHT = 190, 52  # of a box

# Name: what is in it, and its left upper corner.
ROOMS: dict[str, tuple[str, Point]] = {
    "experiments/*.py": ("one question each", (60, 30)),
    "experiments/questions/": ("what is too long for a script", (530, 30)),
    "reporting/": ("terminal, decisions, the page", (60, 180)),
    "conditions/": ("controls, rates, gap closed", (295, 180)),
    "training/": ("data, networks, the loop", (530, 180)),
    "statistics/": ("estimates, effects, margins", (177, 290)),
    "running/": ("run, grid, store, workers", (412, 290)),
    "figures/": ("table in, axes out; no torch", (60, 460)),
    "probes/": ("torch and pandas alone", (295, 460)),
    "models/": ("torch, torchvision", (530, 460)),
}
ENGINE = (30, 140, 720, 232)  # x, y, width, height

ARROWS: list[tuple[Point, Point]] = [
    ((250, 56), (528, 56)),  # scripts -> questions
    ((155, 82), (155, 138)),  # scripts -> engine
    ((625, 82), (625, 138)),  # questions -> engine
    ((485, 206), (528, 206)),  # conditions -> training
    ((200, 232), (240, 288)),  # reporting -> statistics
    ((235, 232), (440, 288)),  # reporting -> running
    ((350, 232), (310, 288)),  # conditions -> statistics
    ((420, 232), (480, 288)),  # conditions -> running
    ((600, 232), (560, 288)),  # training -> running
    ((100, 232), (100, 458)),  # reporting -> figures
    ((390, 372), (390, 458)),  # all but reporting -> probes
    ((625, 372), (625, 458)),  # training, conditions -> models
    ((530, 486), (487, 486)),  # models -> probes
]

LABELS: dict[str, Point] = {  # of arrows that begin at the engine's frame: which of its rooms import
    "reporting": (136, 420),
    "all but reporting": (450, 420),
    "training, conditions": (695, 420),
}


def box(name: str, content: str, corner: Point) -> str:
    """A room with its name and what is in it."""
    x, y = corner
    middle = x + WIDTH / 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#e6eef8" stroke="#3f6ea5"/>'
        f'<text x="{middle}" y="{y + 22}" class="name">{name}</text><text x="{middle}" y="{y + 40}">{content}</text>'
    )


def arrow(start: Point, end: Point) -> str:
    """An import: from who imports to what is imported."""
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#444" stroke-width="1.4" marker-end="url(#head)"/>'


def draw() -> str:
    """The picture, on a light ground of its own, so that it reads on dark pages too."""
    x, y, width, height = ENGINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE[0]} {SIZE[1]}" font-family="sans-serif" '
        'font-size="12" text-anchor="middle" fill="#222">',
        "<title>Rooms and their imports</title>",
        "<style>.name{font-weight:bold;font-size:14px}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>',
        f'<rect width="{SIZE[0]}" height="{SIZE[1]}" rx="10" fill="#fafafa"/>',
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#fff" stroke="#999" '
        'stroke-dasharray="5 4"/>',
        f'<text x="{x + width / 2}" y="{y + 22}" class="name">experiments/engine/</text>',
        *(arrow(*ends) for ends in ARROWS),
        *(box(name, content, corner) for name, (content, corner) in ROOMS.items()),
        *(f'<text x="{x}" y="{y}" font-style="italic">{label}</text>' for label, (x, y) in LABELS.items()),
        f'<text x="{SIZE[0] / 2}" y="{SIZE[1] - 18}">an arrow points to what is imported; scripts and questions '
        "also import probes, models and figures</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(draw())
