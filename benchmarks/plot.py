"""Bars as an SVG, with nothing but text. Each panel has a scale of its own that starts at 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "bars"]

WIDTH, LEFT, RIGHT, TOP, ROW, GAP = 760, 190, 90, 34, 22, 44
OURS, OTHERS = "#1f77b4", "#9a9a9a"


@dataclass(frozen=True)
class Bar:
    """A value and how it is written; ours are blue."""

    label: str
    value: float
    shown: str
    is_ours: bool = False


def bars(title: str, panels: Mapping[str, Sequence[Bar]]) -> str:
    """A panel of bars for each of `panels`, one below the other."""
    height = TOP + sum(GAP + ROW * len(panel) for panel in panels.values())
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    top = TOP
    for name, panel in panels.items():
        parts += _panel(name, panel, top)
        top += GAP + ROW * len(panel)
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, panel: Sequence[Bar], top: int) -> list[str]:
    most = max((bar.value for bar in panel), default=1.0) or 1.0
    parts = [f'<text x="10" y="{top + 20}" font-weight="bold">{escape(name)}</text>']
    for number, bar in enumerate(panel):
        y, wide = top + 30 + number * ROW, bar.value / most * (WIDTH - LEFT - RIGHT)
        colour = OURS if bar.is_ours else OTHERS
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{wide:.1f}" height="{ROW - 5}" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + wide + 6:.1f}" y="{y + 13}">{escape(bar.shown)}</text>')
    return parts
