"""What an agent needs of its host: the stages asked for, the HTTP socket, the words at the terminal, memory kills."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from zmesh import mixins
from zmesh.addresses import listen
from zmesh.config import Plan, RoutePlan, StagePlan
from zmesh.errors import StartError
from zmesh.hosting import HeavyBatches, announcement, chosen_stages, curl_data
from zmesh.processes import OutOfMemoryKills, signal_name

DECODE = StagePlan(
    name="decode", worker="__zmesh_app__:Decode", num=2, env=({"A": "1"}, {"A": "2"}), mime_type="image/png"
)
MODEL = StagePlan(name="model", worker="models:Outer.Model", max_batch_size=32, max_wait_ms=5.0)
PLAN = Plan(stages=(DECODE, MODEL), routes=(RoutePlan(path="/digits", stages=("decode", "model")),))


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ([], [("decode", 2), ("model", 1)]),
        (["model"], [("model", 1)]),
        (["model:4"], [("model", 4)]),
        (["model:4", "decode:1"], [("decode", 1), ("model", 4)]),
        (["decode:1", "decode:2"], [("decode", 2)]),
    ],
)
def test_stages_are_chosen_by_name_and_number(wanted: list[str], chosen: list[tuple[str, int]]):
    assert [(stage.name, stage.num) for stage in chosen_stages(PLAN, wanted)] == chosen


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("Model", "there is no stage 'Model'; the stages are: decode, model"),
        ("model:many", "there is no stage 'model:many'; the stages are: decode, model"),
        (":2", "there is no stage ''; the stages are: decode, model"),
        ("model:0", "--stage model:0: at least one worker, or leave the stage out"),
        ("decode:3", "--stage decode:3: the app file has an env for 2 workers of it only"),
    ],
)
def test_a_stage_that_cannot_be_chosen_is_one_sentence(wanted: str, words: str):
    with pytest.raises(StartError) as caught:
        chosen_stages(PLAN, [wanted])
    assert str(caught.value) == words


# ── the HTTP socket ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_a_free_port_is_listened_on(host: str, need: Callable[[object, str], None]):
    need(host != "::1" or Path("/proc/net/if_inet6").exists(), "this machine has no IPv6")
    with listen(host, 0) as listener:
        assert listener.getsockname()[1] > 0
        assert not listener.get_inheritable()
        with socket.create_connection(listener.getsockname()[:2]):
            pass


def test_a_name_that_nobody_knows_is_one_sentence():
    with pytest.raises(StartError, match="nobody knows the address"):
        listen("no.such.host.invalid", 0)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_announcement_is_aligned_and_can_be_tried():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert announcement(PLAN, PLAN.stages, listener, "--data-binary @FILE").splitlines() == [
            f"zmesh is ready on http://127.0.0.1:{port}",
            "",
            "stage   class        workers  batch  wait",
            "decode  Decode       2        1      -",
            "model   Outer.Model  1        32     5 ms",
            "",
            f"try it: curl -X POST http://127.0.0.1:{port}/digits --data-binary @FILE",
        ]


def test_a_listener_on_every_interface_is_announced_at_an_address_that_works():
    with listen("0.0.0.0", 0) as listener:
        said = announcement(PLAN, PLAN.stages, listener, "--data 1")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert said.startswith(f"zmesh is ready on {url}, and on every interface of this machine\n")
    assert said.endswith(f"curl -X POST {url}/digits --data 1")


@pytest.mark.parametrize("example", [b"\x89PNG\r\n", b"it's", b"x" * 500])
def test_an_example_that_does_not_read_well_in_a_line_is_sent_from_a_file(example: bytes, tmp_path: Path):
    assert curl_data(example, tmp_path) == f"--data-binary @{tmp_path}/example"
    assert (tmp_path / "example").read_bytes() == example


def test_a_short_text_example_is_in_the_line_itself(tmp_path: Path):
    assert curl_data(b'{"x": 1}', tmp_path) == "--data '{\"x\": 1}'"
    assert curl_data(None, tmp_path) == "--data-binary @FILE"


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-99, "signal 99")]
)
def test_an_end_in_words(code: int, words: str):
    assert signal_name(code) == words


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ours", "file"),
    [("0::/app\n", "app/memory.events"), ("8:pids:/\n4:memory:/app\n0::/\n", "memory/app/memory.oom_control")],
)
def test_a_kill_for_want_of_memory_is_told_from_any_other(tmp_path: Path, ours: str, file: str):
    cgroup, counter = tmp_path / "cgroup", tmp_path / "fs" / file
    cgroup.write_text(ours)
    counter.parent.mkdir(parents=True)
    counter.write_text("oom 7\noom_kill 2\noom_group_kill 9\n")
    kills = OutOfMemoryKills(str(tmp_path / "fs"), str(cgroup))
    assert not kills.rose()
    counter.write_text("oom 7\noom_kill 3\noom_group_kill 9\n")
    assert kills.rose()
    assert not kills.rose()


@pytest.mark.parametrize("ours", [None, "0::/gone\n"])
def test_where_nobody_counts_no_kill_is_for_want_of_memory(tmp_path: Path, ours: str | None):
    cgroup = tmp_path / "cgroup"
    if ours is not None:
        cgroup.write_text(ours)
    assert not OutOfMemoryKills(str(tmp_path), str(cgroup)).rose()


# ── large batches ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_batch_is_said_once_for_each_stage_with_a_way_out(caplog: pytest.LogCaptureFixture):
    batches = HeavyBatches(())
    for stage in ("decode", "decode", "model"):
        batches.say(stage, 3 * 1024**2, 8)
    first, second = [record.getMessage() for record in caplog.records]
    assert first == (
        "stage decode hands 3.0 MiB on to the next stage in a batch of 8; all of it is copied through the broker: "
        "return less, say a smaller dtype or the name of a file, or do both steps in one stage"
    )
    assert second.startswith("stage model ")


def test_only_a_stage_with_another_one_behind_it_hands_anything_on():
    assert PLAN.hands_on("decode") and not PLAN.hands_on("model")


def test_mixins_that_help_are_named_and_they_exist():
    assert (
        HeavyBatches(["OneIPCMixin", "TwoIPCMixin"])
        .text("a", 1, 1)
        .endswith(", or put OneIPCMixin or TwoIPCMixin before Worker")
    )
    assert [name for name in mixins.IPC_MIXINS if not hasattr(mixins, name)] == []
    carry = [name for name in mixins.__all__ if name.endswith("ShmIPCMixin") and name != "PlasmaShmIPCMixin"]
    assert carry == list(mixins.IPC_MIXINS)
