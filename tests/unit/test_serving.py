"""The programs beside the workers: they do what their agent says, and end with it."""

import pytest

from zmesh import serving
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


def test_a_broker_started_by_hand_says_what_to_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ZMESH_PIPE", raising=False)
    assert serving.main() == 2
    assert "zmesh broker app.py" in capsys.readouterr().err
