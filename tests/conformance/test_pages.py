"""What the pages for readers say in passing: links lead somewhere, and the Python in them is Python that runs."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "examples", "deploy", "benchmarks") for page in ROOT.glob(f"{folder}/**/*.md")),
    ]
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.*)", prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there.resolve())):
            lost.append(target)
    assert lost == []


def programs() -> list[tuple[str, str]]:
    """(where, source) of every Python block."""
    return [
        (f"{name_of(page)}-{number}", source)
        for page in PAGES
        for number, (language, source) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if language == "python"
    ]


@pytest.mark.parametrize(("where", "source"), programs(), ids=lambda value: value if "\n" not in value else "")
def test_python_in_a_page_runs(where: str, source: str, monkeypatch: pytest.MonkeyPatch):
    """What begins with an import and defines something is a file, and is imported; of the rest, the grammar."""
    code = compile(source, where, "exec")
    is_file = re.match(r"(import|from) ", source) and re.search(r"^(class|def) ", source, re.MULTILINE)
    if is_file:
        module = ModuleType(f"page_{where}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
        try:
            exec(code, module.__dict__)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("zmesh"):
                raise
            pytest.skip(str(error))  # an example that needs it says so
