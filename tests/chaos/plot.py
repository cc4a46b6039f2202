"""Lines over time as an SVG, with nothing but text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Line = tuple[str, Sequence[float], Sequence[float]]  # name, seconds, values

WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 1000, 220, 40, 60, 180, 40
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
POINTS_MAX = 1500


def plot(title: str, panels: Mapping[str, Sequence[Line]], marks: Mapping[str, Sequence[float]]) -> str:
    """A panel for each of `panels`, one below the other, over the same time; `marks` are moments to be shown."""
    end = max((at[-1] for lines in panels.values() for _, at, _ in lines if at), default=1.0) or 1.0
    height = TOP + len(panels) * (PANEL + GAP)
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, lines) in enumerate(panels.items()):
        parts += _panel(name, lines, TOP + number * (PANEL + GAP), end, marks)
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, lines: Sequence[Line], top: int, end: float, marks: Mapping[str, Sequence[float]]) -> list[str]:
    wide, high = WIDTH - LEFT - RIGHT, PANEL - 20
    most = max((max(values) for _, _, values in lines if values), default=1.0) or 1.0
    bottom = top + high
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:.4g}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{top - 5}">{escape(name)}</text>',
        f'<text x="{LEFT + wide}" y="{bottom + 14}" text-anchor="end">{end:.0f} s</text>',
    ]
    for label, moments in marks.items():
        for moment in moments:
            x = LEFT + moment / end * wide
            parts.append(
                f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#bbb" stroke-dasharray="3"/>'
            )
            parts.append(f'<text x="{x + 3:.1f}" y="{bottom - 4}" fill="#888">{escape(label)}</text>')
    for number, (label, at, values) in enumerate(lines):
        colour, step = COLOURS[number % len(COLOURS)], len(at) // POINTS_MAX + 1
        points = " ".join(
            f"{LEFT + moment / end * wide:.1f},{bottom - value / most * high:.1f}"
            for moment, value in list(zip(at, values, strict=True))[::step]
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{LEFT + wide + 8}" y="{top + 12 + 14 * number}" fill="{colour}">{escape(label)}</text>')
    return parts
