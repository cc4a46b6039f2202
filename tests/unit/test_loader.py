import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zmesh.loader import (
    APP_MODULE,
    AppError,
    current_verb,
    find_one,
    load_worker_class,
    qualified,
    run_as_main,
)
from zmesh.worker import Worker

WORKER = """
    from zmesh import Worker

    class Echo(Worker):
        def forward(self, data):
            return data
"""

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """These tests run app files in this very process."""
    argv, path, modules = sys.argv, list(sys.path), dict(sys.modules)
    yield
    current_verb.become("")
    sys.argv, sys.path[:] = argv, path
    for name in set(sys.modules) - set(modules):
        if getattr(sys.modules[name], "__file__", None) and "pytest" in str(sys.modules[name].__file__):
            del sys.modules[name]
    sys.modules["__main__"] = modules["__main__"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(source: str, name: str = "app.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(source))
        return str(path)

    return write_file


# ── as __main__ ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_runs_as_python_would_run_it(write: Write):
    write("NAME = 'helper'", "a_helper.py")
    path = write("""
        import sys
        import a_helper
        seen = __name__, __file__, sys.argv, sys.modules["__main__"].__dict__ is globals(), a_helper.NAME
    """)
    module = run_as_main(path, ["--model", "x"])
    assert module.seen == ("__main__", path, [path, "--model", "x"], True, "helper")
    assert sys.modules["__main__"] is module
    assert sys.path[0] == str(Path(path).parent)


def test_a_future_import_of_ours_does_not_change_the_file(write: Write):
    assert run_as_main(write("def f(x: int): ...")).f.__annotations__ == {"x": int}


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(AppError, match=r"^there is no file .*app\.py; name the Python file that makes the Server$"):
        run_as_main(str(tmp_path / "app.py"))
    with pytest.raises(AppError, match="is a directory; name the Python file in it"):
        run_as_main(str(tmp_path))


def test_an_error_of_the_file_is_one_line_and_the_users_part_of_the_traceback(write: Write):
    path = write("x = 1\n\ndef load():\n    return undefined\n\nload()\n")
    with pytest.raises(AppError) as raised:
        run_as_main(path)
    assert str(raised.value) == f"{path} does not import: NameError: name 'undefined' is not defined (line 4)"
    assert raised.value.detail.startswith("Traceback (most recent call last):\n")
    assert "return undefined" in raised.value.detail and "load()" in raised.value.detail
    assert "loader.py" not in raised.value.detail


def test_an_error_in_another_file_names_the_line_of_the_app_that_led_there(write: Write):
    write("import missing_library_of_a_user\n", "b_helper.py")
    path = write("\nimport b_helper\n")
    with pytest.raises(AppError) as raised:
        run_as_main(path)
    assert str(raised.value).endswith("No module named 'missing_library_of_a_user' (line 2)")
    assert "b_helper.py" in raised.value.detail and "frozen" not in raised.value.detail


def test_a_syntax_error_names_its_line(write: Write):
    path = write("x = 1\ndef (:\n")
    with pytest.raises(AppError) as raised:
        run_as_main(path)
    assert str(raised.value) == f"{path} does not import: SyntaxError: invalid syntax (line 2)"
    assert "def (:" in raised.value.detail


@pytest.mark.parametrize("source", [b"x = '\xff'", b"x = 1\0", b"# coding: no-such\n"])
def test_bytes_that_are_not_python_are_an_error_of_the_file(tmp_path: Path, source: bytes):
    path = tmp_path / "app.py"
    path.write_bytes(source)
    with pytest.raises(AppError, match="does not import"):
        run_as_main(str(path))


def test_causes_are_shown_without_our_frames(write: Write):
    path = write("""
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise KeyError("several\\nlines") from error
    """)
    with pytest.raises(AppError, match=r"KeyError: .*\(line 5\)$") as raised:
        run_as_main(path)
    assert "\n" not in str(raised.value)
    assert "1 / 0" in raised.value.detail and "direct cause" in raised.value.detail
    assert "loader.py" not in raised.value.detail


def test_an_error_whose_text_is_broken_is_told_all_the_same(write: Write):
    path = write("""
        class Broken(Exception):
            def __str__(self):
                raise ValueError
        raise Broken
    """)
    with pytest.raises(AppError, match=r"Broken: \(its text cannot be shown: ValueError\) \(line 5\)"):
        run_as_main(path)


def test_a_declaration_we_refuse_is_a_sentence_with_its_line_and_no_traceback(write: Write):
    path = write(WORKER + "\n    from zmesh import Server\n    Server().append_worker(Echo, route='/metrics')\n")
    with pytest.raises(AppError) as raised:
        run_as_main(path)
    assert str(raised.value) == f"{path}, line 9: '/metrics' is reserved, try another one"
    assert raised.value.detail == ""


def test_an_exit_of_the_file_is_an_exit(write: Write):
    with pytest.raises(SystemExit, match="7"):
        run_as_main(write("raise SystemExit(7)"))


def test_what_fails_after_run_got_to_work_is_not_an_import_error(write: Write):
    path = write("from zmesh.loader import current_verb\ncurrent_verb.has_started = True\n1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        run_as_main(path)


# ── as a worker ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_class_is_found_without_the_main_block(write: Write):
    path = write(WORKER + "\n    if __name__ == '__main__':\n        raise SystemExit('never')\n")
    cls = load_worker_class(path, f"{APP_MODULE}:Echo")
    assert issubclass(cls, Worker) and cls.__module__ == APP_MODULE
    assert sys.modules[APP_MODULE].Echo is cls
    assert load_worker_class(path, "Echo") is cls  # imported once, and the app file is meant when no module is named
    assert current_verb.name == "import"


def test_dataclasses_with_text_annotations_work_in_the_app_file(write: Write):
    path = write(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Item:\n    x: int\n" + textwrap.dedent(WORKER)
    )
    assert load_worker_class(path, "Echo")


def test_a_nested_class_is_found_by_its_qualified_name(write: Write):
    path = write("""
        from zmesh import Worker
        class Models:
            class Small(Worker):
                def forward(self, data): ...
    """)
    assert load_worker_class(path, f"{APP_MODULE}:Models.Small").__qualname__ == "Models.Small"


def test_a_class_of_another_module_is_imported_from_there(write: Write):
    write(WORKER, "c_models.py")
    path = write("raise SystemExit('the app file is not needed')")
    cls = load_worker_class(path, "c_models:Echo")
    assert cls.__module__ == "c_models"
    with pytest.raises(AppError, match="there is no class Ecco in module c_models"):
        load_worker_class(path, "c_models:Ecco")


def test_a_server_run_at_module_level_starts_nothing_in_a_worker(write: Write):
    path = write(WORKER + "\n    from zmesh import Server\n    s = Server()\n    s.append_worker(Echo)\n    s.run()\n")
    cls = load_worker_class(path, "Echo")
    from zmesh.config import Settings

    (stage,) = sys.modules[APP_MODULE].s.plan(Settings()).stages
    assert stage.worker == f"{APP_MODULE}:Echo" and cls.__name__ == "Echo"


def test_a_file_that_fails_as_a_worker_leaves_no_half_made_module(write: Write):
    path = write("x = 1\nraise OSError('no weights')\n")
    with pytest.raises(AppError, match=r"does not import: OSError: no weights \(line 2\)$") as raised:
        load_worker_class(path, "Echo")
    assert APP_MODULE not in sys.modules
    assert "loader.py" not in raised.value.detail


def test_a_class_in_the_main_block_is_a_sentence_that_says_what_to_do(write: Write):
    path = write("""
        from zmesh import Worker
        if __name__ == "__main__":
            class Echo(Worker):
                def forward(self, data): ...
    """)
    with pytest.raises(AppError) as raised:
        load_worker_class(path, "Echo")
    assert str(raised.value) == (
        f"class Echo is made inside the main block of {path}, which workers do not run; move it to module level"
    )


def test_a_class_in_a_function_is_a_sentence_that_says_what_to_do(write: Write):
    with pytest.raises(AppError, match=r"class Echo is made inside a function of .*; move it to module level$"):
        load_worker_class(write("x = 1"), f"{APP_MODULE}:make.<locals>.Echo")


def test_what_is_not_a_worker_is_refused(write: Write):
    path = write("class Plain: ...\nnumber = 5")
    for name in ("Plain", "number"):
        with pytest.raises(AppError, match=rf"{name} of .*app.py is not a worker; make it a subclass of zmesh.Worker"):
            load_worker_class(path, name)


# ── names of classes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_app_file_stands_for_itself_under_every_name_it_has(write: Write):
    path = write(WORKER, "d_app.py")
    main = run_as_main(path)
    assert qualified(main.Echo) == f"{APP_MODULE}:Echo"
    again = importlib.import_module("d_app")  # as a helper of the app does that imports it back
    assert again.Echo is not main.Echo
    assert qualified(again.Echo) == f"{APP_MODULE}:Echo"
    assert qualified(load_worker_class(path, "Echo")) == f"{APP_MODULE}:Echo"


def test_a_class_of_another_module_keeps_its_module():
    assert qualified(Worker) == "zmesh.worker:Worker"


def test_a_hidden_class_is_refused_when_the_plan_is_made(write: Write):
    path = write("""
        from zmesh import Worker

        def make():
            class Inner(Worker):
                def forward(self, data): ...
            return Inner

        if __name__ == "__main__":
            class Block(Worker):
                def forward(self, data): ...

        class Renamed(Worker):
            def forward(self, data): ...
        first = Renamed
        class Renamed(Worker):
            def forward(self, data): ...
    """)
    main = run_as_main(path)
    with pytest.raises(AppError, match=r"^class Inner is made inside a function of app\.py, .*; move it to module"):
        qualified(main.make())
    with pytest.raises(AppError, match=r"^class Block is made inside the main block of app\.py, which workers do not"):
        qualified(main.Block)
    with pytest.raises(AppError, match=r"class Renamed is not what that name means in app\.py"):
        qualified(main.first)
    assert qualified(main.Renamed) == f"{APP_MODULE}:Renamed"


def test_a_class_defined_both_ways_is_found(write: Write):
    path = write("""
        from zmesh import Worker
        class Echo(Worker):
            def forward(self, data): ...
        if __name__ == "__main__":
            class Echo(Worker):
                def forward(self, data): ...
    """)
    assert qualified(run_as_main(path).Echo) == f"{APP_MODULE}:Echo"


# ── the one Server of a file ──────────────────────────────────────────────────────────────────────────────────────


def test_the_only_one_of_its_kind_is_found_under_several_names(write: Write):
    module = run_as_main(write("a = b = [1]\nc = 5"))
    assert find_one(module, list, "app.py") is module.a


def test_none_or_several_are_a_sentence(write: Write):
    module = run_as_main(write("a, b, c = [1], [2], 5"))
    with pytest.raises(AppError, match=r"app.py made more than one list \(a, b\); call run\(\) of one"):
        find_one(module, list, "app.py")
    with pytest.raises(AppError, match=r"app.py made no tuple that zmesh could run"):
        find_one(module, tuple, "app.py")
