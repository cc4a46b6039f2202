import pytest

from zmesh.core.routes import build, check_path, check_paths


@pytest.mark.parametrize(
    "path",
    ["/inference", "/v1/models/a.b-c_d~e:predict", "/a/b", "/metrics2", "/openapis", "/meshes", "/docsy", "/(1)"],
)
def test_a_plain_path_is_taken_as_it_is(path: str):
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/livez", "/readyz", "/openapi", "/openapi/metadata.json", "/mesh", "/mesh/x", "/docs", "/docs/"],
)
def test_what_the_gateway_answers_itself_is_reserved(path: str):
    with pytest.raises(ValueError, match=f"^'{path}' is reserved, try another one$"):
        check_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "must start with '/'"),
        ("inference", "must start with '/'"),
        ("/a b", "may not contain ' '"),
        ("/a?x=1", r"may not contain '\?'"),
        ("/a#b", "may not contain '#'"),
        ("/a/{id}", "may not contain '{'"),
        ("/a%20b", "may not contain '%'"),
        ("/é", "may not contain 'é'"),
        ("/a\n", r"may not contain '\\n'"),
        ("/a\\b", "may not contain"),
        ("/a/", "may not end with '/'"),
        ("//", "may not end with '/'"),
        ("/a//b", "may not contain '//'"),
        ("//a", "may not contain '//'"),
        ("/a/../b", "may not contain '.' or '..'"),
        ("/..", "may not contain '.' or '..'"),
        ("/a/.", "may not contain '.' or '..'"),
    ],
)
def test_a_path_that_has_two_spellings_or_means_something_else_is_refused(path: str, why: str):
    with pytest.raises(ValueError, match=why):
        check_path(path)


@pytest.mark.parametrize("path", [None, 5, b"/inference"])
def test_a_path_that_is_not_text_is_a_type_error(path: object):
    with pytest.raises(TypeError, match="a route is text such as '/inference'"):
        check_path(path)  # type: ignore[arg-type]


def test_the_paths_of_one_stage_are_checked_together():
    assert check_paths(["/a", "/b"]) == ("/a", "/b")
    with pytest.raises(ValueError, match="'/a' stands twice in one list"):
        check_paths(["/a", "/b", "/a"])
    with pytest.raises(ValueError, match="needs a route"):
        check_paths([])


def test_routes_may_share_stages_in_any_order():
    routes = {"/ab": ["A", "B"], "/ba": ["B", "A"], "/a": ["A"]}
    assert build(routes) == {"/ab": ("A", "B"), "/ba": ("B", "A"), "/a": ("A",)}
    assert build({}) == {}


def test_the_same_stage_twice_in_one_route_is_refused_by_its_name():
    with pytest.raises(ValueError, match="stage 'Resize' stands twice in route '/r'"):
        build({"/r": ["Resize", "Classify", "Resize"]})


def test_a_route_without_a_stage_and_a_reserved_one_are_refused():
    with pytest.raises(ValueError, match="route '/r' has no stage"):
        build({"/r": []})
    with pytest.raises(ValueError, match="'/mesh' is reserved"):
        build({"/mesh": ["A"]})
