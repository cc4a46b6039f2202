"""The pages that benchmarks write: which section is made from which figures. Pure but for reading and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from types import ModuleType

from benchmarks import compare, echo, footprint, model, stages, tensors
from benchmarks.report import HERE, Data, Verdict, head_line, rewrite, table, verdict_table

__all__ = ["readme", "section", "verdicts", "write"]

MODULES: Mapping[str, ModuleType] = {
    "echo": echo,
    "model": model,
    "stages": stages,
    "tensors": tensors,
    "footprint": footprint,
    "compare": compare,
}
PLOTS = ("model", "compare")
README_COMMAND = "./scripts/bench all --write"


def verdicts(name: str, data: Data) -> list[Verdict]:
    return list(MODULES[name].verdicts(data))


def section(name: str, data: Data) -> str:
    """What stands in RESULTS.md, and on the screen."""
    parts = [head_line(data), str(MODULES[name].section(data))]
    if name in PLOTS:
        parts.append(f"![{MODULES[name].__name__.rpartition('.')[2]}]({name}.svg)")
    if judged := verdicts(name, data):
        parts.append(verdict_table(judged))
    parts += [f"Skipped: {why}." for what, why in data["skipped"].items() if what != "open loop"]
    return _filled("\n\n".join(parts))


def _filled(text: str) -> str:
    """Prose in lines as long as those of the pages; tables and pictures as they are."""
    parts = text.split("\n\n")
    return "\n\n".join(
        part if part.startswith(("|", "!")) else fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in parts
    )


def write(results: Mapping[str, Data]) -> list[str]:
    """Everything that the figures say, into the pages that say it; their names."""
    page = HERE / "RESULTS.md"
    text = page.read_text()
    for name in MODULES:
        if name in results:
            text = rewrite(text, name, section(name, results[name]))
    page.write_text(text)
    written = ["results.json", page.name]
    for name in PLOTS:
        if name in results:
            (HERE / f"{name}.svg").write_text(MODULES[name].plot(results[name]))
            written.append(f"{name}.svg")
    if summary := readme(results):
        front = HERE.parent / "README.md"
        front.write_text(rewrite(front.read_text(), "summary", summary))
        written.append(front.name)
    return written


def readme(results: Mapping[str, Data]) -> str:
    """The part of the README about speed; "" until all of it was measured beside mosec."""
    parts = (_echo_rows(results.get("echo")), _model_rows(results.get("model")), _stage_rows(results.get("stages")))
    if not all(parts):
        return ""
    machine = next(data["machine"] for name, data in results.items() if name in MODULES)
    head = (
        f"zmesh beside mosec on one machine ({machine}) that server and load generator share, rounds in turn, medians"
        f" (`{README_COMMAND}`). The echo is each in the best of its configurations, the rest are the same settings:"
    )
    rows = [row for part in parts for row in part]
    text = _filled(f"{head}\n\n{table(('what', 'zmesh', 'mosec', 'ratio'), rows)}")
    if "compare" in results:
        text += "\n\n![zmesh, mosec, FastAPI, LitServe, BentoML and Ray Serve](benchmarks/compare.svg)"
    return text


Rows = list[tuple[str, str, str, str]]


def _echo_rows(data: Data | None) -> Rows:
    if not data or "mosec" not in data["alone"]["none"] or "mosec" not in data["throughput"]:
        return []
    rows: Rows = []
    for clients in echo.CLIENTS:
        ours = echo.best(data, "zmesh", clients)[1]["rate"]
        name, cell = echo.best(data, "mosec", clients)
        settings = data["throughput"][name]["settings"]
        theirs = f"{cell['rate']:.0f} req/s ({settings})"
        rows.append((f"echo, {clients} clients", f"{ours:.0f} req/s", theirs, f"{ours / cell['rate']:.2f} x"))
    for kind, words in (("batching", "with batching"), ("none", "without batching")):
        ours, theirs = (data["alone"][kind][name]["p50"] for name in ("zmesh", "mosec"))
        what = f"echo, one client, {words}"
        rows.append((what, f"{ours * 1e3:.2f} ms", f"{theirs * 1e3:.2f} ms", f"{ours / theirs:.2f} x the wait"))
    return rows


def _model_rows(data: Data | None) -> Rows:
    rows: Rows = []
    for clients, cell in (data["cells"].get("10", {}) if data else {}).items():
        if cell["mosec"]:
            ours, theirs = cell["zmesh"]["rate"], cell["mosec"]["rate"]
            what = f"10 ms per batch of 32, {clients} clients"
            rows.append((what, f"{ours:.0f} req/s", f"{theirs:.0f} req/s", f"{ours / theirs:.2f} x"))
    return rows


def _stage_rows(data: Data | None) -> Rows:
    if not data:
        return []
    theirs = [kinds["two"]["rate"] for name, kinds in data["sides"].items() if name.startswith("mosec")]
    if not theirs:
        return []
    ours, most = data["sides"]["zmesh"]["two"]["rate"], max(theirs)
    what = f"echo through two stages, {data['clients']} clients"
    return [(what, f"{ours:.0f} req/s", f"{most:.0f} req/s", f"{ours / most:.2f} x")]
