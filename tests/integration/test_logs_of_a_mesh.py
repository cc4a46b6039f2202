"""What a supervisor or a container collects of a mesh: every line a record, and requests that can be followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.harness import running, wait_until

APP = Path(__file__).parent / "apps" / "talkative.py"


def test_every_line_of_all_processes_is_a_record_and_a_request_can_be_followed() -> None:
    with running(APP, "--log-level", "debug", env={"ZMESH_LOG_FORMAT": "json"}) as mesh:

        def records(**fields: Any) -> list[dict[str, Any]]:
            found = [json.loads(line) for line in mesh.log().splitlines(keepends=True) if line.endswith("\n")]
            for one in found:
                if one["role"] == "broker":  # which may have a process of its own
                    one["role"] = "gateway"
            return [one for one in found if fields.items() <= one.items()]

        for name in ("one", "two"):
            assert mesh.post("/measure", b'{"text": "wide"}', {"x-request-id": name}).body == b"2097152"
        assert mesh.post("/measure", b'{"text": "raise"}', {"x-request-id": "bad"}).status == 500
        wait_until(lambda: records(request_id="bad", level="ERROR"), 5, "the traceback")
        assert mesh.stop() == 0
        assert mesh.log().endswith("\n") and records(role="agent", level="INFO")

        (failed,) = records(request_id="bad", level="ERROR")
        forged = "2026-01-01T00:00:00.000Z INFO agent forged"
        assert failed["message"] == f"request bad failed: RuntimeError: no cheese {forged}"
        assert failed["exception"].startswith("Traceback") and failed["worker"].startswith("Widen/")

        (own,) = records(request_id="one", logger="__zmesh_app__")
        assert (own["level"], own["message"], own["source"]) == ("INFO", "widening wide", "talkative.py:15")
        (item,) = records(request_id="one", logger="zmesh.user")
        assert (item["message"], item["worker"]) == ("measuring", "Measure/1")
        imported = {one["worker"] for one in records(message="imported") if one["role"] == "worker"}
        assert imported == {"Widen/1", "Widen/2", "Measure/1"}

        said = [(one["role"], one["message"].split(":")[0].split()) for one in records(request_id="one", level="DEBUG")]
        first = next(words[1] for _, words in said if words[2:3] == ["TASKS"])
        signs = [(role, words[0], words[1]) for role, words in said]
        assert signs[0] == ("gateway", ">", "broker"), "the gateway submits it"
        assert {(role, sign) for role, sign, _ in signs} == {("gateway", ">"), ("gateway", "<"), ("worker", "<")}
        assert first.startswith("Widen/") and ("gateway", ">", "Measure/1") in signs
        assert {one["role"] for one in records(level="DEBUG") if one["message"].startswith("= ")} == {
            "agent",
            "gateway",
            "worker",
        }

        (heavy,) = [one for one in records(level="WARNING") if "copied through the broker" in one["message"]]
        assert heavy["role"] == "agent" and heavy["message"].startswith("stage Widen hands 2.0 MiB on")
        assert len([one for one in records(role="agent") if one["message"].startswith("zmesh is ready on")]) == 1
