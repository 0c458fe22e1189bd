"""Draw the ratios measured by bench/linux.py as a bar chart for the documentation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

REFERENCE, DAEMON, ONE_PROCESS = "bridge (Go)", "userspace, daemon", "userspace, one process"

#: The bars: label, section, row, and whether more is better (as for requests per second).
_BARS = (
    ("ADD", "calls", "ADD", False),
    ("DEL", "calls", "DEL", False),
    ("ADD, 32 at once", "at_once", "ADD", True),
    ("DEL, 32 at once", "at_once", "DEL", True),
    ("ADD, {attachments:,} attachments there", "attachments", "last ADDs", False),
)

# Colours that are readable on white and on black; the background is transparent.
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#7a7f87",
    foreground_strong="#7a7f87",
    foreground_subtle="#7a7f8755",
    colors=("#9aa0a8", "#2f81f7"),
    font_family="sans-serif",
    label_font_size=15,
    major_label_font_size=15,
    legend_font_size=15,
    title_font_size=17,
    value_font_size=14,
    value_colors=("#ffffff", "#ffffff"),
    opacity=1,
    transition="0s",
)


def ratios(figures: dict[str, Any], contender: str) -> list[float]:
    """Return the time of *contender* relative to the reference for each bar."""
    found = []
    for _, section, what, more_is_better in _BARS:
        (row,) = (
            row
            for row in figures["sections"][section]
            if (row["what"], row["contender"]) == (what, contender)
        )
        found.append(1 / row["ratio"] if more_is_better else row["ratio"])
    return found


def draw(figures: dict[str, Any]) -> bytes:
    chart = pygal.HorizontalBar(
        style=_STYLE,
        width=800,
        height=420,
        js=[],
        title=f"Time by that of the plugin {REFERENCE}: lower is better",
        legend_at_bottom=True,
        legend_box_size=14,
        print_values=True,
        print_values_position="center",
        formatter=lambda value: f"{value:.2f}",
        range=(0, max(1.25, *ratios(figures, DAEMON))),
        order_min=-1,
        show_y_guides=True,
        margin=16,
    )
    # A horizontal chart draws its first bar at the bottom.
    chart.x_labels = [name.format_map(figures) for name, *_ in reversed(_BARS)]
    for contender in (REFERENCE, DAEMON):
        chart.add(contender, ratios(figures, contender)[::-1])
    drawn: bytes = chart.render()
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="the file that bench/linux.py --json wrote")
    parser.add_argument("image", type=Path, help="the SVG to write")
    options = parser.parse_args()
    options.image.write_bytes(draw(json.loads(options.figures.read_text())))


if __name__ == "__main__":
    main()
