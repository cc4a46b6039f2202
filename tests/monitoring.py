"""What is in deploy/monitoring and docs/metrics.md, for tests: the queries, and the families they ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from zmesh.catalogue import CATALOGUE, Family

__all__ = ["MONITORING", "NEED_PROMETHEUS", "dashboard_queries", "families_of", "promtool"]

MONITORING = Path(__file__).parent.parent / "deploy" / "monitoring"
NEED_PROMETHEUS = "prometheus and its promtool are not installed: apt-get install prometheus"

Need = Callable[[object, str], None]


def dashboard_queries(folder: Path = MONITORING) -> list[str]:
    """As Grafana would send them, for a while of five seconds, one target and all stages."""
    dashboard = json.loads((folder / "grafana-dashboard.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    values = {"$__rate_interval": "5s", "$seen": ".*", "$stage": ".*"}
    for variable, value in values.items():
        found = [query.replace(variable, value) for query in found]
    return found


def families_of(query: str) -> list[Family]:
    """What a query asks for. Raises KeyError for a name that zmesh does not show."""
    known = {}
    for family in CATALOGUE:
        ends = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        known.update({f"zmesh_{family.name}{end}": family for end in ends})
    return [known[name] for name in re.findall(r"\bzmesh_\w+", query)]


def promtool(need: Need, *arguments: str, text: bytes = b"") -> tuple[int, str]:
    """Its exit code and what it says."""
    need(shutil.which("promtool"), NEED_PROMETHEUS)
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, timeout=30, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()
