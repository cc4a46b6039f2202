"""What `scripts/soak` takes for flat and what not, from made-up samples; and the plot of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.chaos.soak import TABLES, emptied, judged, series_of, write_csv, write_svg

Record = dict[str, Any]
SECONDS = 600


def sample(t: int, rss: int = 50_000, files: int = 40, pid: int = 1, **tables: int) -> Record:
    rows = {name: tables.get(name, 0) for name in TABLES}
    stage = {"queued": rows.pop("queued"), "suspects": rows.pop("suspects")}
    return {"e": "mesh", "t": float(t), "processes": [["broker", pid, rss, files]], "stages": [stage], **rows}


def grown(make: Callable[[int], Record]) -> list[str]:
    """What is not flat when second `t` of a run looks as `make(t)`."""
    verdicts = [judged(one) for one in series_of([make(t) for t in range(SECONDS)])]
    return [verdict.text.partition(":")[0] for verdict in verdicts if not verdict.is_flat]


def test_what_stays_as_it_is_is_flat() -> None:
    assert grown(lambda t: sample(t, rss=50_000 + t % 7 * 100, files=40 + t % 3, tasks=t % 20)) == []


def test_growth_is_found_in_size_in_files_and_in_each_table() -> None:
    assert grown(lambda t: sample(t, rss=50_000 + 50 * t)) == ["broker"]
    assert grown(lambda t: sample(t, files=40 + t // 20)) == ["broker"]
    for name in TABLES:
        assert grown(lambda t, name=name: sample(t, **{name: 4 * t})) == [name]


def test_growth_before_the_second_sixth_is_warming_up() -> None:
    assert grown(lambda t: sample(t, rss=50_000 + 500 * min(t, 90), files=40 + min(t, 90))) == []


def test_a_process_that_is_replaced_again_and_again_is_judged_over_its_own_life() -> None:
    """The role as a whole looks flat, since each life begins anew."""
    assert grown(lambda t: sample(t, rss=50_000 + 300 * (t % 200), pid=t // 200)) == [
        "broker 0",
        "broker 1",
        "broker 2",
    ]


def test_what_is_left_in_a_table_at_the_end_is_found() -> None:
    assert emptied([sample(0, tasks=3), sample(1)]).is_flat
    assert emptied([sample(0), sample(1, late_leases=7, peers=3)]).is_flat, "these are not emptied"
    verdict = emptied([sample(0), sample(1, kept=2)])
    assert not verdict.is_flat and "kept" in verdict.text


def test_the_plot_is_an_svg_and_the_csv_has_a_line_for_each_second(tmp_path: Path) -> None:
    all_series = series_of([sample(t) for t in range(20)])
    write_svg(tmp_path / "soak.svg", all_series, "a <title>", {"kill-broker": [7.0]})
    drawn = ElementTree.parse(tmp_path / "soak.svg").getroot()
    assert len(drawn.findall("{*}polyline")) == len(all_series)
    write_csv(tmp_path / "soak.csv", all_series)
    lines = (tmp_path / "soak.csv").read_text().splitlines()
    assert len(lines) == 21 and lines[0].startswith("seconds,broker rss,broker files,")
    assert lines[1].startswith("0.0,50000.0,40.0,")
