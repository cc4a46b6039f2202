"""A task's life: the table, and moving on to the next stage."""

import pytest

from tests.unit.core.world import World, stage
from zmesh.core.tasks import TASK_STEPS, Route, Step, Task, TaskState, move_on, take_together
from zmesh.messages import State, TaskId


def a_task(route: Route | None = None) -> Task:
    world = World(stage("embed"))
    gateway = world.mesh.directory.sessions[world.gateway().session]
    return Task(TaskId(1), route or Route("/go", (0,)), gateway, b"four", 0, 9.0, 1.0, None)


def test_every_state_is_in_the_table_and_only_done_has_no_way_out():
    assert set(TASK_STEPS) == set(TaskState)
    assert [state for state, steps in TASK_STEPS.items() if not steps] == [TaskState.DONE]


def test_every_step_is_taken_from_somewhere():
    assert {step for steps in TASK_STEPS.values() for step in steps} == set(Step)


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("step", Step)
def test_a_task_takes_the_steps_of_the_table_and_no_other(state: TaskState, step: Step):
    task = a_task()
    task.state = state
    following = TASK_STEPS[state].get(step)
    if following is None:
        with pytest.raises(AssertionError, match=f"task 1: no {step.name} from {state.name}"):
            task.take(step)
        assert task.state is state
    else:
        task.take(step)
        assert task.state is following


@pytest.mark.parametrize("step", Step)
def test_a_step_together_is_the_step_of_each(step: Step):
    """Whatever states they are in, and in whatever order these come."""
    states = [state for state in TaskState if step in TASK_STEPS[state]]
    states = [*states, *states, *reversed(states)]
    tasks = [a_task() for _ in states]
    for task, state in zip(tasks, states, strict=True):
        task.state = state
    take_together(tasks, step)
    assert [task.state for task in tasks] == [TASK_STEPS[state][step] for state in states]
    tasks[-1].state = TaskState.DONE
    with pytest.raises(AssertionError, match=f"task 1: no {step.name} from DONE"):
        take_together(tasks[-1:], step)


def test_flags_of_a_route_mark_the_first_and_the_last_stage():
    both = State.INGRESS | State.EGRESS
    assert Route("/one", (3,)).flags == (both,)
    assert Route("/three", (2, 0, 1)).flags == (State.INGRESS, State(0), State.EGRESS)


def test_moving_on_takes_the_result_along_and_forgets_what_belongs_to_the_stage():
    task = a_task(Route("/go", (4, 2)))
    assert (task.stage, task.is_last_hop, task.size) == (4, False, 4)
    task.take(Step.LEASE)
    task.attempt, task.deaths, task.alone_deaths, task.returns, task.queue_us = 4, 2, 1, 3, 50
    move_on([task], [b"result"], [1], now=7.0)
    assert (task.stage, task.is_last_hop) == (2, True)
    assert (task.payload, task.size, task.kind, task.arrived) == (b"result", 6, 1, 7.0)
    assert (task.attempt, task.deaths, task.alone_deaths, task.returns) == (1, 0, 0, 0)
    assert task.state is TaskState.QUEUED and task.lease is None
    assert task.queue_us == 50
