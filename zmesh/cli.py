"""`zmesh`: verbs at a terminal. A user's mistake is one line on stderr and an exit code, never a traceback of ours.

Exit codes: 0 fine, 1 could not start, 2 usage, 3 a stage never became ready, 4 the drain ran out of time, 5 what was
measured cannot be used. Nothing but click and the table of options is imported before a verb needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from zmesh.config import LARGEST, OPTIONS, STATUS_URL, Option, Settings
from zmesh.errors import StartError, UsageError

if TYPE_CHECKING:
    from zmesh.config import Plan

__all__ = ["main", "parse_known", "show_plan"]

INTERRUPTED = 130
# How near a word must be to one of ours, from 0 to 1, to be taken for a slip. `python app.py --name x` is none.
NEARNESS_OF_VERBS, NEARNESS_OF_OPTIONS = 0.6, 0.75


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Do what the command line says and exit."""
    own, user_args = _split(sys.argv[1:] if args is None else args)
    try:
        code = zmesh.main(own, prog_name="zmesh", standalone_mode=False, obj=user_args)
        sys.exit(code)
    except StartError as error:
        if detail := getattr(error, "detail", ""):
            click.echo(detail, err=True, nl=False)
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        _fail(_readable(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)


def _split(args: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What is ours, and what follows `--`: the app file's own."""
    end = args.index("--") if "--" in args else len(args)
    return list(args[:end]), tuple(args[end + 1 :])


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"zmesh: {text}", err=True)
    sys.exit(code)


def _readable(error: click.ClickException) -> str:
    """One line: what is wrong, and where to read more."""
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error.option_name, error.ctx.command if error.ctx else zmesh)
    said = " ".join(error.format_message().split())
    said = (said[:1].lower() + said[1:]).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{said}; see {context.command_path} --help" if context is not None else said


def _unknown_option(name: str, command: click.Command) -> str:
    if verbs := _verbs_of(name):
        return f"{name} is an option of {' and '.join(f'zmesh {verb}' for verb in verbs)}; see zmesh --help"
    return f"there is no option {name};{_meant_option(name, command)} options of the file itself follow --"


def _verbs_of(name: str) -> tuple[str, ...]:
    """The verbs that take this option of ours; none for what is no option of ours."""
    return next((tuple(one.verbs) for one in OPTIONS if name in (one.flag, *one.aliases)), ())


def _meant_option(name: str, command: click.Command) -> str:
    flags = [flag.removeprefix("--") for parameter in command.params for flag in parameter.opts if "--" in flag]
    return _meant(name.removeprefix("--"), flags, "--", NEARNESS_OF_OPTIONS)


def _meant(name: str, known: Iterable[str], before: str, nearness: float) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), 1, nearness)
    return f" did you mean {before}{close[0]}?" if close else ""


# ── the table of options, for every verb that starts something ────────────────────────────────────────────────────


def _parameters(verb: str = "run") -> list[click.Parameter]:
    defaults = Settings()
    return [_parameter(option, getattr(defaults, option.name)) for option in OPTIONS if verb in option.verbs]


def _parameter(option: Option, default: object) -> click.Parameter:
    kinds: dict[str, Any] = {"int": int, "choice": click.Choice(option.choices)}
    notes = [option.help]
    if option.kind == "flag":
        return click.Option(
            [option.flag, option.name], is_flag=True, default=None, help=f"{option.help} [{option.variable}]"
        )
    if option.unit in ("ms", "bytes"):
        notes.append(f"in {option.unit}")
    if default not in ("", ()):
        notes.append(f"default {default}")
    return click.Option(
        [option.flag, *option.aliases, option.name],
        type=kinds.get(option.kind, str),
        multiple=option.kind == "list",
        metavar=option.metavar or None,
        help=f"{'; '.join(notes)} [{option.variable}]",
    )


def _given(values: Mapping[str, Any]) -> dict[str, object]:
    """Only what stood on the command line."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def parse_known(args: Sequence[str], program: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """The options of `python app.py …`: what was given of ours, and all other arguments, which are the file's own.

    Shows the help and exits when it is asked for. Raises UsageError for a value that cannot be read, and for what looks
    like a slip in one of ours: it would start with a setting that nobody wanted.
    """
    own, user_args = _split(args)
    tolerant = {"ignore_unknown_options": True, "allow_extra_args": True}
    help = "Serve the stages of this file over HTTP. Other arguments are left to the file."
    command = click.Command(program, params=_parameters(), context_settings=tolerant, help=help)
    try:
        context = command.make_context(program, own)
    except click.ClickException as error:
        raise UsageError(_readable(error)) from error
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    for arg in context.args:
        name = arg.partition("=")[0]
        if name.startswith("--") and (_verbs_of(name) or _meant_option(name, command)):
            raise UsageError(_unknown_option(name, command))
    if any(arg.startswith("-") for arg in context.args):
        click.echo(f"zmesh: not options of zmesh, left to {program}: {' '.join(context.args)}", err=True)
    return _given(context.params), (*context.args, *user_args)


# ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HELP = {"help_option_names": ["--help", "-h"], "max_content_width": 120}
OUTPUT = click.Option(["-o", "--output", "output"], type=click.Choice(["text", "json"]), default="text")
app_argument = click.argument("app", required=False)


class _Verbs(click.Group):
    """Says of an unknown verb what may have been meant."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            hint = _meant(name, self.list_commands(context), "", NEARNESS_OF_VERBS)
            if name.endswith(".py"):
                hint = f" to serve a file: zmesh run {name}"
            raise UsageError(f"there is no command {name};{hint or ' see zmesh --help'}")
        return super().resolve_command(context, args)


@click.group(cls=_Verbs, context_settings=HELP, invoke_without_command=True)
@click.option("--version", is_flag=True, help="Show the version.")
@click.pass_context
def zmesh(context: click.Context, version: bool) -> int:
    """Serve machine-learning pipelines over HTTP.

    zmesh run app.py starts everything on this host; what follows -- is left to app.py.
    """
    if version:
        _say_version()
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(UsageError.exit_code)
    return 0


@zmesh.command("run", params=_parameters())
@app_argument
@click.pass_obj
def run(user_args: tuple[str, ...], /, app: str | None, **options: Any) -> int:
    """Serve APP on this host: gateway, broker, workers. With --bind, workers on other hosts may join.

    APP is a Python file that makes a Server; by default $ZMESH_APP, or ./app.py.
    """
    return _execute("run", app, user_args, _given(options))


@zmesh.command("worker", params=_parameters("worker"))
@app_argument
@click.pass_obj
def worker(user_args: tuple[str, ...], /, app: str | None, **options: Any) -> int:
    """Run workers of APP on this host, for a broker on another one.

    It may be started before its broker. APP is the same file as there.
    """
    return _execute("worker", app, user_args, _given(options))


@zmesh.command("broker", params=_parameters("broker"))
@app_argument
@click.pass_obj
def broker(user_args: tuple[str, ...], /, app: str | None, **options: Any) -> int:
    """Run the broker of APP alone, for gateways and workers elsewhere."""
    return _execute("broker", app, user_args, _given(options))


@zmesh.command("gateway", params=_parameters("gateway"))
@app_argument
@click.pass_obj
def gateway(user_args: tuple[str, ...], /, app: str | None, **options: Any) -> int:
    """Run the HTTP side of APP alone, for a broker elsewhere."""
    from zmesh.pipe import child_pipe

    pipe = child_pipe()  # before any code of the user: if an agent started us, we end when it does
    if pipe is None:
        return _execute("gateway", app, user_args, _given(options))
    try:
        return _execute("gateway", app, user_args, _given(options), pipe=pipe)
    except StartError as error:
        pipe.send(say="failed", text=getattr(error, "detail", ""), line=str(error))  # and the agent tells the user
        return error.exit_code


@zmesh.command("check", params=[OUTPUT, *(one for one in _parameters() if one.name != "dry_run")])
@click.option("--run", "is_run", is_flag=True, help="make every stage and try the examples; show what takes how long")
@app_argument
@click.pass_obj
def check(user_args: tuple[str, ...], /, app: str | None, output: str, is_run: bool, **options: Any) -> int:
    """Show the stages and routes of APP; start nothing, or with --run one worker of each stage for a moment.

    Of a file that imports mosec: what to change in it.
    """
    from zmesh import migration

    if not is_run and (changes := migration.report(_app_path(app), output)):
        click.echo(changes)
        return StartError.exit_code
    return _execute("check", app, user_args, {**_given(options), "dry_run": is_run}, output=output)


@zmesh.command("status", params=[OUTPUT])
@click.argument("url", default=STATUS_URL)
def status(url: str, output: str) -> int:
    """Show the stages, workers and queues of the mesh at URL."""
    from zmesh.status import fetch, status_text

    text, snapshot = fetch(url)
    click.echo(text if output == "json" else status_text(snapshot))
    return 0


@zmesh.command("drain")
@click.option("--connect", metavar="tcp://HOST:PORT", default="", help="the broker to ask, as it was told to bind")
@click.option("--path", metavar="DIR", default="", help="the sockets of a run on this host, as it was told")
@click.option("--host", metavar="NAME", help="only what runs on this host, as zmesh status names it")
@click.option("--insecure", is_flag=True, help="allow an address on another machine, although nothing there is locked")
@click.option(
    "--drain-timeout",
    type=click.IntRange(0, LARGEST),
    default=0,
    help="time to finish in; in ms; default 0: as long as they were started with, and we wait for 60 s",
)
def drain(connect: str, path: str, host: str | None, insecure: bool, drain_timeout: int) -> int:
    """Have a mesh, or one host of it, finish what it has accepted and go, and wait until it is gone.

    It does what SIGTERM does to the command that started it.
    """
    from zmesh import draining

    if host == "":  # a variable of a script that is not set, and all hosts would go
        raise UsageError("--host needs a name; without --host the whole mesh is drained")

    errand = draining.errand(connect, path, host or "", insecure=insecure, seconds=drain_timeout / 1000)
    click.echo(draining.drain(errand))
    return 0


# Seconds, and requests per second, that are more than 0 and finite in practice.
SECONDS, RATE = click.FloatRange(0, 86_400, min_open=True), click.FloatRange(0, 1e6, min_open=True)


@zmesh.command("bench")
@click.argument("url")
@click.option("--rate", type=RATE, help="open loop: requests per second, by the clock; of a sweep, the first rate")
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), help="of an open loop; default poisson")
@click.option("--seed", type=int, default=0, help="of the arrivals; default 0")
@click.option("--clients", type=click.IntRange(1, 100_000), help="closed loop: clients that wait for their answers")
@click.option("--sweep", is_flag=True, help="raise the rate step by step, to the highest that the server carries")
@click.option("--slo-ms", type=SECONDS, help="of a sweep: the highest p99; in ms; default 5 x that of a client alone")
@click.option("--seconds", type=SECONDS, default=10.0, help="to measure, each step of a sweep; default 10")
@click.option("--warmup", type=click.FloatRange(0, 86_400), default=1.0, help="seconds not measured; default 1")
@click.option("--connections", type=click.IntRange(1, 100_000), help="of an open loop, at most; default 256")
@click.option("--timeout", type=click.IntRange(1, LARGEST), default=10_000, help="of a request; in ms; default 10000")
@click.option("--method", default="", help="default POST with --data, else GET")
@click.option("-H", "--header", metavar="'NAME: VALUE'", multiple=True, help="repeatable")
@click.option("-d", "--data", metavar="TEXT|@FILE|@FOLDER", multiple=True, help="a body; several are sent in turn")
@click.option("--json", "json_path", metavar="FILE|-", default="", help="all figures for a program; - is stdout, alone")
def bench(url: str, json_path: str, **options: Any) -> int:
    """Load the HTTP server at URL and say how fast it answers, and whether to believe it.

    \b
    zmesh bench http://127.0.0.1:8000/inference --rate 500 --data '{"x": 1}'
    zmesh bench http://127.0.0.1:8000/inference --clients 64 --data @image.png
    zmesh bench http://127.0.0.1:8000/inference --sweep --data @bodies/
    """
    from zmesh.bench import command

    say = _over_and_over if sys.stderr.isatty() else None
    outcome = command.bench(url, json_path=json_path, say=say, **options)
    click.echo(outcome.document if json_path == "-" else outcome.text)
    return outcome.exit_code


def _over_and_over(line: str) -> None:
    click.echo(f"\r{line}\x1b[K", err=True, nl=False)


@zmesh.command("version")
def version() -> int:
    """Show the version."""
    _say_version()
    return 0


def _say_version() -> None:
    from zmesh import __version__

    click.echo(f"zmesh {__version__}")


def _execute(verb: str, app: str | None, user_args: tuple[str, ...], given: dict[str, object], **more: Any) -> int:
    """Run the app file for this verb. If it ends without `run()`, its only Server is run."""
    from zmesh import loader

    path = _app_path(app)
    loader.current_verb.become(verb, app_path=path, given=given, user_args=user_args, **more)
    module = loader.run_as_main(path, user_args)
    if not loader.current_verb.has_started:
        from zmesh.server import Server

        loader.find_one(module, Server, path).run()
    return 0


def _app_path(app: str | None) -> str:
    path = app or os.environ.get("ZMESH_APP") or "app.py"
    if app is None and path == "app.py" and not os.path.exists(path):
        raise UsageError("which app? name its file (zmesh run app.py), set ZMESH_APP, or stand where an app.py is")
    return path


# ── what they show ────────────────────────────────────────────────────────────────────────────────────────────────


def show_plan(plan: Plan, output: str) -> None:
    """What `zmesh check` says."""
    from zmesh.status import table

    if output == "json":
        click.echo(plan.to_json())
        return
    stages = [
        (
            stage.name,
            stage.num,
            stage.max_batch_size,
            f"{stage.max_wait_ms:g} ms" if stage.max_batch_size > 1 else "-",
            stage.worker.removeprefix("__zmesh_app__:"),
        )
        for stage in plan.stages
    ]
    routes = [(route.path, " → ".join(route.stages), route.mime_type) for route in plan.routes]
    click.echo(table(("STAGE", "WORKERS", "BATCH", "WAIT", "CLASS"), stages))
    click.echo()
    click.echo(table(("ROUTE", "STAGES", "ANSWERS"), routes))
