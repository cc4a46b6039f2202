"""The OpenAPI document of running apps: a validator accepts it, the page finds it, and requests made up from it by
schemathesis get no answer that it does not list."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.harness import REPOSITORY, RunningMesh, running

APPS = Path(__file__).parent / "apps"
TYPED = APPS / "typed.py"
EXAMPLES = REPOSITORY / "examples"
REF = "#/components/schemas/"
ROUTES = {"/sum", "/sell", "/v1/length", "/square", "/packed", "/speak", "/upper", "/anything"}  # of TYPED

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module", name="typed")
def typed_fixture() -> Iterator[RunningMesh]:
    with running(TYPED) as mesh:
        yield mesh


def document_of(mesh: RunningMesh) -> dict:
    return dict(mesh.get("/openapi/metadata.json").json())


@pytest.mark.parametrize(
    ("app", "routes"),
    [
        (EXAMPLES / "echo" / "app.py", {"/inference"}),
        (EXAMPLES / "msgpack" / "app.py", {"/square"}),
        (EXAMPLES / "sse" / "app.py", {"/inference"}),
        (APPS / "mosec_style" / "routes.py", {"/inference", "/v1/inference", "/tell", "/v1/tell"}),
    ],
    ids=["echo", "msgpack", "sse", "routes"],
)
def test_the_document_of_an_app_is_valid(app: Path, routes: set[str]) -> None:
    with running(app) as mesh:
        document = document_of(mesh)
        assert "has no schema" not in mesh.log()
    OpenAPIV31SpecValidator(document).validate()
    assert set(document["paths"]) == routes


def test_bodies_have_the_types_of_the_classes_that_read_and_write_them(typed: RunningMesh) -> None:
    document = document_of(typed)
    OpenAPIV31SpecValidator(document).validate()
    assert set(document["paths"]) == ROUTES
    assert "has no schema" not in typed.log()
    operations = {path: methods["post"] for path, methods in document["paths"].items()}
    taken = {path: one["requestBody"]["content"] for path, one in operations.items()}
    given = {path: one["responses"]["200"]["content"] for path, one in operations.items()}
    schemas = document["components"]["schemas"]
    assert set(schemas) == {"Leaf", "Node", "Total", "Order", "Line", "Receipt", "Span", "Problem"}
    assert schemas["Order"]["properties"]["lines"]["items"] == {"$ref": f"{REF}Line"}
    assert taken["/sell"]["application/json"]["schema"] == {"$ref": f"{REF}Order"}
    assert taken["/sell"]["application/json"]["examples"]["2"] == {
        "value": {"lines": [], "express": False, "note": None}
    }
    assert given["/sum"] == {"application/json": {"schema": {"$ref": f"{REF}Total"}}}
    assert taken["/v1/length"]["application/json"]["example"] == {"start": 1, "end": 4}
    assert list(taken["/square"]) == list(given["/square"]) == ["application/msgpack"]
    assert given["/packed"] == {"application/msgpack": {"schema": {"$ref": f"{REF}Total"}}}
    assert list(taken["/speak"]) == ["application/json"] and list(given["/speak"]) == ["text/event-stream"]
    assert list(given["/upper"]) == ["image/x-upper"]


def test_the_page_is_found_and_finds_its_files_and_the_document(typed: RunningMesh) -> None:
    asked = typed.get("/openapi/swagger")
    assert asked.status == 303
    there = urljoin("/openapi/swagger", asked.headers["location"])
    assert there == "/openapi/swagger/"
    page = typed.get(there)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name, kind in (
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("start.js", "text/javascript"),
    ):
        assert f'"{name}"' in page.body.decode()
        file = typed.get(urljoin(there, name))
        assert (file.status, file.headers["content-type"].partition(";")[0]) == (200, kind)
    assert b"../metadata.json" in page.body + typed.get(urljoin(there, "start.js")).body
    assert typed.get(urljoin(there, "../metadata.json")).json()["openapi"] == "3.1.0"


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_what_schemathesis_makes_of_the_document_gets_no_5xx_and_no_answer_that_is_not_listed(
    lane: str, tmp_path: Path
) -> None:
    """By its command: its plugin for pytest has warnings and settings of its own."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks", CHECKS, "--phases",
               "examples,coverage,fuzzing", "--max-examples", "5", "--generation-deterministic",
               "--suppress-health-check", "all", "--no-color"]  # fmt: skip
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(REPOSITORY)}
    with running(TYPED, "--lane", lane) as mesh:
        done = subprocess.run(
            [*command, "--url", mesh.url, f"{mesh.url}/openapi/metadata.json"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr + mesh.log()
        assert f"Tested: {len(ROUTES)}" in done.stdout and "No issues found" in done.stdout, done.stdout
        answered = mesh.get("/metrics").body.decode()
    for path in ROUTES:
        assert f'zmesh_throughput_total{{code="200",endpoint="{path}"}}' in answered, path
