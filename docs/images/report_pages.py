"""Photographs the pages of `make run`, `make answer ARGS=--quick` and `probe_model.py` for report.md, with Chromium.
`python -m docs.images.report_pages RESULTS`."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from tests.support.browser import browser

HERE = Path(__file__).parent
PAGES: dict[str, tuple[str, Literal["light", "dark"]]] = {
    "run": ("stopgrad_shortcut", "light"),
    "answer": ("answer", "light"),
    "probe": ("probe_model/torchvision-resnet18", "dark"),
}
HEIGHTS = {380: 1500, 1400: 1800}
"""How much of a page is shown, by its width in CSS pixels."""
SCALES = {380: 2, 1400: 1}
COLOURS = 256


def main(results: Path) -> None:
    """Write an image for each page and width."""
    with browser() as tab:
        for name, (folder, scheme) in PAGES.items():
            for width, height in HEIGHTS.items():
                tab.open(results / folder / "report.html", width=width, scheme=scheme, scale=SCALES[width])
                image = Image.open(BytesIO(tab.screenshot(height=height))).convert("RGB")
                small = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
                small.save(HERE / f"report_{name}_{width}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
