"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from zmesh.config import Plan, RoutePlan, StagePlan
from zmesh.openapi import CONTENT_SECURITY_POLICY, PAGE_FILES, STATIC, metadata, page_file
from zmesh.schemas import Body, RouteSchema

PLAN = Plan(
    stages=(
        StagePlan(name="Read", worker="Read"),
        StagePlan(name="Draw", worker="Draw", mime_type="image/png"),
        StagePlan(name="Talk", worker="Talk", mime_type="text/event-stream", sse=True),
    ),
    routes=(
        RoutePlan(path="/draw", stages=("Read", "Draw"), mime_type="image/png"),
        RoutePlan(path="/v1/talk", stages=("Talk",), mime_type="text/event-stream", sse=True),
        RoutePlan(path="/v1_talk", stages=("Read",)),
    ),
)


def operation(path, schemas=None):
    return metadata(PLAN, schemas)["paths"][path]["post"]


def test_the_document_is_openapi_3_1_with_our_version():
    document = metadata(PLAN, version="1.2.3")
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"


def test_every_route_is_a_post_and_nothing_else_is_there():
    paths = metadata(PLAN)["paths"]
    assert {path: list(methods) for path, methods in paths.items()} == {
        "/draw": ["post"],
        "/v1/talk": ["post"],
        "/v1_talk": ["post"],
    }


def test_a_route_lists_every_status_a_client_can_get():
    assert list(operation("/draw")["responses"]) == ["200", "400", "405", "408", "413", "422", "429", "500", "503"]


def test_a_result_has_the_content_type_of_its_route():
    assert operation("/draw")["responses"]["200"]["content"] == {"image/png": {}}


def test_a_stream_is_events():
    assert list(operation("/v1/talk")["responses"]["200"]["content"]) == ["text/event-stream"]


def test_a_request_has_the_content_type_of_its_first_stage_or_is_any_bytes():
    assert operation("/draw")["requestBody"] == {
        "required": True,
        "content": {"application/json": {}, "application/octet-stream": {}},
    }


def test_schemas_and_their_components_go_where_they_belong():
    taken = Body({"$ref": "#/components/schemas/In"}, {"In": {"type": "object"}})
    document = metadata(PLAN, {"/draw": RouteSchema(taken, Body({"type": "string"}))})
    draw = document["paths"]["/draw"]["post"]
    assert draw["requestBody"]["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/In"}}}
    assert draw["responses"]["200"]["content"] == {"image/png": {"schema": {"type": "string"}}}
    assert document["components"]["schemas"]["In"] == {"type": "object"}


def test_what_reads_json_and_draws_takes_json():
    content = operation("/draw", {"/draw": RouteSchema(Body(media_type="application/json"))})["requestBody"]["content"]
    assert list(content) == ["application/json", "application/octet-stream"]
    content = operation("/draw", {"/draw": RouteSchema(Body({}, media_type="image/png"))})["requestBody"]["content"]
    assert content == {"image/png": {"schema": {}}}


def test_one_example_stands_there_as_it_is_and_several_have_numbers():
    one = Body({"type": "integer"}, examples=(1,))
    several = Body({"type": "integer"}, examples=(1, 2))
    paths = metadata(PLAN, {"/draw": RouteSchema(one), "/v1_talk": RouteSchema(several)})["paths"]
    assert paths["/draw"]["post"]["requestBody"]["content"]["application/json"]["example"] == 1
    said = paths["/v1_talk"]["post"]["requestBody"]["content"]["application/json"]
    assert said["examples"] == {"1": {"value": 1}, "2": {"value": 2}} and "example" not in said


def test_a_class_of_a_user_that_is_called_problem_keeps_its_name():
    theirs = Body({"$ref": "#/components/schemas/Problem"}, {"Problem": {"type": "integer"}})
    document = metadata(PLAN, {"/draw": RouteSchema(theirs)})
    assert document["components"]["schemas"]["Problem"] == {"type": "integer"}
    failed = document["paths"]["/draw"]["post"]["responses"]["500"]["content"]["application/problem+json"]
    assert failed["schema"] == {"$ref": "#/components/schemas/Problem_2"}
    assert "RFC 9457" in document["components"]["schemas"]["Problem_2"]["description"]


def test_errors_are_text_or_problem_details():
    for code, response in operation("/draw")["responses"].items():
        if code != "200":
            assert list(response["content"]) == ["text/plain", "application/problem+json"]


def test_headers_a_client_may_send_are_listed():
    assert [(header["name"], header["in"]) for header in operation("/draw")["parameters"]] == [
        ("x-request-timeout", "header"),
        ("x-request-id", "header"),
        ("traceparent", "header"),
    ]


def test_operation_ids_are_unique_words():
    ids = [methods["post"]["operationId"] for methods in metadata(PLAN)["paths"].values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"\w+", name) for name in ids)


def test_every_reference_leads_somewhere():
    document = metadata(PLAN)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_the_document_is_the_same_every_time_and_shares_nothing():
    first = metadata(PLAN)
    first["components"]["schemas"]["Problem"].clear()
    first["components"]["schemas"]["Mine"] = {}
    assert metadata(PLAN) == metadata(PLAN)
    assert "Mine" not in metadata(PLAN)["components"]["schemas"]


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_taken_over_is_what_the_manifest_says():
    manifest = json.loads((STATIC / "MANIFEST.json").read_text())
    assert manifest["package"] == "swagger-ui-dist"
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"])
    sums = {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in manifest["sha256"]}
    assert sums == manifest["sha256"]


def test_every_file_is_ours_or_in_the_manifest():
    there = {path.name for path in STATIC.iterdir()}
    assert there == set(json.loads((STATIC / "MANIFEST.json").read_text())["sha256"]) | {
        "MANIFEST.json",
        "index.html",
        "start.js",
    }
    assert "LICENSE" in there


def test_only_listed_files_are_given():
    for name in PAGE_FILES:
        assert page_file(name)
    for name in ("MANIFEST.json", "../../openapi.py", "", "index.htm"):
        with pytest.raises(KeyError):
            page_file(name)


def test_the_page_refers_only_to_our_own_files_and_has_nothing_inline():
    page = page_file("index.html").decode()
    used = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert set(used) - {"../metadata.json"} == set(PAGE_FILES) - {"index.html"}
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)
    for name in ("index.html", "start.js"):
        assert "//" not in page_file(name).decode().replace(" // ", "")


def test_the_policy_allows_scripts_and_connections_only_to_ourselves():
    rules = dict(rule.strip().split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "eval" not in CONTENT_SECURITY_POLICY
