"""One HTML page that opens from disk: its style, script and figures inside, nothing from a network.

Figures are drawn once, by matplotlib, and lie beside the page as SVG and PNG. On the page their ink takes the colour of
the text, so that they follow the reader's light or dark scheme.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posttrain import atomic
from posttrain.console import interval, percent
from posttrain.report.formulas import render_text, shorten, visible

matplotlib.use("Agg")  # files only, no display
TEMPLATES = Path(__file__).parent / "pages"
INK = "#23272e"  # on the page: the colour of the text
COLOURS = ("#3b78b5", "#d9822b", "#4a9d6e", "#a0589c", "#c0504d", "#7a8a99", "#b59b2e", "#2b9c9c")
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "posttrain",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.8, "legend.frameon": False, "axes.linewidth": 0.8,
    "axes.titlesize": 10, "axes.titlelocation": "left", "lines.linewidth": 1.7, "axes.prop_cycle":
    matplotlib.cycler(color=COLOURS), "text.parse_math": False,  # a directory may be called a$b$
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure on the page: the SVG to show, what it shows, and the files its numbers came from."""

    name: str
    svg: Markup
    caption: str
    sources: tuple[str, ...]


def draw(
    out: Path,
    name: str,
    caption: str,
    sources: Sequence[Path],
    paint: Callable[[Sequence[Axes]], None],
    size: tuple[float, float] = (8, 3.6),
    panels: tuple[int, int] = (1, 1),
) -> Drawing:
    """Let `paint` fill a figure of rows × columns of axes; writes `<name>.svg` and `<name>.png` into `out`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(list(figure.subplots(*panels, squeeze=False).flat))
        figure.savefig(out / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(out / f"{name}.png", dpi=150, facecolor="white")
        figure.savefig(out / f".{name}.svg", metadata={"Date": None}, transparent=True)
    inline = out / f".{name}.svg"
    svg = inline.read_text()
    inline.unlink()
    return Drawing(name, _inline(svg, name, caption), caption, tuple(str(path) for path in sources))


def _inline(svg: str, name: str, caption: str) -> Markup:
    """The `<svg>` element with ids of its own, without metadata, drawn in the colour of the page's text."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'((?:\bid|xlink:href)="#?|url\(#)', rf"\g<1>{name}-", svg).replace(INK, "currentColor")
    label = Markup('<svg role="img" aria-label="{}"').format(caption)
    return Markup(svg.replace("<svg", str(label), 1))


def write_page(out: Path, template: str, **content: Any) -> Path:
    """Fill a template of `pages/`, everything escaped, and write `index.html`; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=lambda value: visible(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {"math": render_text, "short": shorten, "percent": percent, "interval": interval}
    script, style = ((TEMPLATES / name).read_text() for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        script=Markup(script), script_digest=digest, style=Markup(style), **content
    )
    atomic.write_bytes(out / "index.html", page.encode())
    return out / "index.html"


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart: `tiny_sft`, or `a/tiny_sft` and `b/tiny_sft`."""
    paths = [path.resolve() for path in paths]
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            break
    return labels if paths else []
