"""A real Prometheus reads a real mesh as deploy/monitoring says, and answers every query of the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import RunningMesh, free_port, running, wait_until
from tests.monitoring import MONITORING, NEED_PROMETHEUS, dashboard_queries, promtool
from tests.readme import EXAMPLES

COUNTING = Path(__file__).parent / "apps" / "counting.py"

# Of the queries, those that are empty while all is well: they ask for what is above or at a bound.
EMPTY_WHEN_WELL = (" > 0", " == 0")


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            found = json.loads(answer.read())
        assert found["status"] == "success"
        return found["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=query)["result"]
        return result

    def number(self, query: str) -> float:
        (found,) = self.ask(query)
        return float(found["value"][1])


@contextmanager
def watching(mesh: RunningMesh, place: Path, folder: Path = MONITORING) -> Iterator[Prometheus]:
    """As the configuration in the folder says, but oftener, and with this mesh for a target."""
    config = (folder / "prometheus.yml").read_text()
    for ours, here in (("127.0.0.1:8000", f"127.0.0.1:{mesh.port}"), ("scrape_interval: 5s", "scrape_interval: 250ms")):
        assert config.count(ours) == 1
        config = config.replace(ours, here)
    config = re.sub(r"(?<=- )\S*alerts.yml", lambda found: str((folder / found[0]).resolve(strict=True)), config)
    (place / "prometheus.yml").write_text(config)
    port = free_port()
    command = ["prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(port)

        def is_up() -> bool:
            assert process.poll() is None, (place / "log").read_text()
            try:
                return bool(prometheus.ask('up{job="zmesh"} == 1'))
            except OSError:
                return False

        wait_until(is_up, 20, "Prometheus to have read /metrics")
        yield prometheus
    finally:
        process.kill()
        process.wait()


def test_prometheus_reads_a_mesh_and_answers_every_query_of_the_dashboard(
    need: Callable[[object, str], None], tmp_path: Path
) -> None:
    need(shutil.which("prometheus"), NEED_PROMETHEUS)
    with running(COUNTING) as mesh:
        assert promtool(need, "check", "metrics", text=mesh.get("/metrics").body) == (0, "")
        with watching(mesh, tmp_path) as prometheus:
            sent = 0

            def seen(query: str) -> bool:
                """Requests go on, so that rates are above nothing."""
                nonlocal sent
                assert mesh.post("/count", b"%d" % sent).status == 200
                sent += 1
                return bool(prometheus.ask(query)) or query.endswith(EMPTY_WHEN_WELL)

            for query in dashboard_queries():
                wait_until(lambda query=query: seen(query), 10, f"an answer to {query}")  # type: ignore[misc]
            wait_until(
                lambda: prometheus.number("sum(zmesh_served_total)") == 2 * sent, 10, "all of user code's counts"
            )
            assert prometheus.number('sum(zmesh_throughput_total{code="200"})') == sent
            assert prometheus.number("sum(zmesh_workers_ready)") == 4
            rules = prometheus.get("/api/v1/rules")["groups"][0]["rules"]
            assert [rule["health"] for rule in rules if rule["health"] != "unknown"] in ([], ["ok"] * len(rules))
            known = prometheus.get("/api/v1/metadata")
            (waits,) = known["zmesh_queue_wait_seconds"]
            assert (waits["type"], waits["unit"]) == ("histogram", "seconds"), "OpenMetrics has units"
            assert known["zmesh_served"][0]["type"] == "counter"
        assert mesh.stop() == 0, mesh.log()


def test_prometheus_answers_what_the_example_asks_of_its_own_metrics(
    need: Callable[[object, str], None], tmp_path: Path
) -> None:
    need(shutil.which("prometheus"), NEED_PROMETHEUS)
    folder = EXAMPLES / "own_metrics"
    told = re.findall(r"`([^`]*zmesh_summary\w+_(?:total|bucket)[^`]*\[5m\][^`]*)`", (folder / "README.md").read_text())
    assert len(told) == 2
    with running(folder / "app.py") as mesh, watching(mesh, tmp_path, folder) as prometheus:
        sent = 0

        def seen(query: str) -> bool:
            nonlocal sent
            sent += 1
            assert mesh.post("/summary", b'{"text": "It rains, %d times."}' % (sent // 3)).status == 200
            found = prometheus.ask(query)
            return bool(found) and found[0]["value"][1] != "NaN"

        for query in [*dashboard_queries(folder), *told]:
            wait_until(lambda query=query: seen(query), 10, f"an answer to {query}")  # type: ignore[misc]
        groups = prometheus.get("/api/v1/rules")["groups"]
        assert [group["name"] for group in groups] == ["zmesh", "summaries"]
        assert len(prometheus.ask("zmesh_summary_remembered")) == 2, "one for each worker"
        wait_until(
            lambda: prometheus.number("sum(zmesh_summary_lookups_total)") == sent + 2, 10, "all that was counted"
        )
