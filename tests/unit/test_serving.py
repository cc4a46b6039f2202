"""The programs beside the workers: they do what their agent says, and end with it."""

from dataclasses import replace

import pytest

from zmesh import serving
from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.errors import StartError
from zmesh.pipe import Pipe, pipe_pair


class Ended(BaseException):
    pass


def test_a_program_drains_when_it_is_told_to_and_ends_with_its_agent(monkeypatch: pytest.MonkeyPatch):
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(serving.os, "_exit", end)
    drained: list[float] = []
    agents, ours = pipe_pair()
    ours_pipe = Pipe(ours)
    agents.send(say="hello")
    agents.send(say="drain", seconds="soon")
    agents.send(say="drain", seconds=2)
    serving.heed(ours_pipe, drained.append)
    assert drained == [2.0]
    agents.close()
    with pytest.raises(Ended, match="1"):
        serving.heed(ours_pipe, drained.append)
    ours_pipe.close()


def test_a_gateway_does_not_count_on_the_board_of_another_app():
    """The file was edited, and the gateway replaced: its routes would be taken for those of the others."""
    plan = Plan(stages=(StagePlan(name="A", worker="A"),), routes=(RoutePlan(path="/a", stages=("A",)),))
    edited = replace(plan, routes=(RoutePlan(path="/b", stages=("A",)), *plan.routes))
    agents, ours = pipe_pair()
    document = {"listen": -1, "fronts": [], "board": -1, "number": 0, "plan": plan.to_json()}
    with pytest.raises(StartError, match="have changed since zmesh started; stop it and start it again"):
        serving.serve_gateway(edited, Settings(gateways=2), Pipe(ours), document, None, {})
    agents.close()
    ours.close()


def test_a_broker_started_by_hand_says_what_to_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ZMESH_PIPE", raising=False)
    assert serving.main() == 2
    assert "zmesh broker app.py" in capsys.readouterr().err
