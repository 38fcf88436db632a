"""The picture in README.md: parts of a demo's report, photographed by a headless chromium.

    python docs/pictures/take.py runs/demo docs/pictures/report.png
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image

SHOWN = """<style>
header, .facts, .player button, section, section > h3, figcaption, .maps ~ .maps, footer { display: none; }
body { max-width: none; padding: 1rem 1.5rem; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2.5rem; }
#p2-fields, #p1-series { display: block; padding: .6rem 0 0; border: 0; }
#p1-series figure { max-height: 340px; overflow: hidden; }
#p2 { order: -1; margin: 0; padding: 0; border: 0; }
:root { color-scheme: light; }
</style>"""
LATER = """<script>for (const slider of document.querySelectorAll("#p2-fields input")) {
  slider.value = 2; slider.dispatchEvent(new Event("input"));
}</script>"""
SIZE = (1400, 1200)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--browser", default="chromium", show_default=True)
def main(run: Path, out: Path, browser: str) -> None:
    """Photograph RUN/report.html: fields of the fine-tuned model, forecasts."""
    page = (run / "report.html").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "parts.html"
        page = page.replace("</head>", f"{SHOWN}</head>").replace("</body>", f"{LATER}</body>")
        parts.write_text(page, encoding="utf-8")
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
                        "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={folder}/shot.png",
                        parts.as_uri()], check=True, capture_output=True, timeout=120)
        trimmed(Image.open(f"{folder}/shot.png").convert("RGB")).quantize(128).save(out, optimize=True)


def trimmed(picture: Image.Image, margin: int = 24) -> Image.Image:
    """Without the empty rows at the bottom."""
    pixels = np.asarray(picture)
    inked = np.flatnonzero((pixels != pixels[0, 0]).any(axis=(1, 2)))
    return picture.crop((0, 0, picture.width, min(int(inked[-1]) + margin, picture.height)))


if __name__ == "__main__":
    main()
