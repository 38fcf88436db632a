"""Pictures outside the page: one SVG file that brings its own colours and opens anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sciml.data.files import replacing
from sciml.report.charts import Picture

TITLE = 26


def write_svg(pictures: Sequence[Picture], path: Path) -> Path:
    """Pictures below one another, each under its title, in the page's light colours; written whole or not at all."""
    css = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    colours = re.search(r":root \{.*?\n\}", css, re.S)
    assert colours is not None
    parts, top, widest = [], 0.0, 0.0
    for picture in pictures:
        view = re.search(r'viewBox="([^"]+)"', picture.svg)
        assert view is not None
        width, height = (float(x) for x in view[1].split()[2:])
        inner = picture.svg.replace("<svg ", f'<svg x="0" y="{top + TITLE:.1f}" width="{width}" height="{height}" ', 1)
        title = f'<text x="4" y="{top + 17:.1f}" font-size="12" style="fill:var(--ink)">{escape(picture.title)}</text>'
        parts += [title, re.sub(r'style="max-width:[^"]*"', "", inner, count=1)]
        top, widest = top + height + TITLE, max(widest, width)
    whole = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {widest:.1f} {top:.1f}" width="{widest:.0f}pt">'
             f"<style>{colours[0]} text {{ font-family: var(--sans); }}</style>"
             f'<rect width="100%" height="100%" style="fill:var(--paper)"/>{"".join(parts)}</svg>\n')
    with replacing(path) as partial:
        partial.write_text(whole, encoding="utf-8")
    return path
