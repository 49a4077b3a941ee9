"""Which worker does which part: on a clock that stands still unless told, and under simulated bad luck."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate_scale import NothingWillHappenError, VirtualCrew, World, parts_of
from fct_infer.errors import GalleryError, ResourceError
from fct_infer.gallery import Part
from fct_infer.upgrade.crew import Policy
from fct_infer.upgrade.schedule import Schedule, run_parts

PARTS = [Part(f"{number:06d}", 100, 100 * number) for number in range(6)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def begun(schedule: Schedule, *workers: str) -> dict[str, str]:
    """Let workers come; return who begins what."""
    for worker in workers:
        schedule.came(worker)
    return {worker: part.name for worker, part in schedule.assignments()}


def test_parts_in_order_one_a_worker(clock):
    schedule = Schedule(PARTS, Policy(), clock)
    assert begun(schedule, "a", "b") == {"a": "000000", "b": "000001"}
    assert begun(schedule) == {}
    assert schedule.finished("b", PARTS[1])
    assert begun(schedule) == {"b": "000002"}


def test_of_a_lost_worker_its_part_alone_is_repeated_and_first(clock):
    schedule = Schedule(PARTS, Policy(), clock)
    begun(schedule, "a", "b")
    schedule.lost("a", "preempted")
    assert begun(schedule, "c") == {"c": "000000"}
    assert (schedule.counts.losses, schedule.workers) == (1, 2)


def test_idle_workers_may_go(clock):
    schedule = Schedule(PARTS[:1], Policy(), clock)
    begun(schedule, "a", "b")
    schedule.lost("b", "scaled down")
    assert schedule.counts.losses == 0
    assert schedule.finished("a", PARTS[0])
    assert schedule.is_finished


def test_what_failed_waits_and_another_worker_takes_it(clock):
    schedule = Schedule(PARTS[:1], Policy(first_wait=5), clock)
    begun(schedule, "a", "b")
    schedule.failed("a", PARTS[0], ResourceError("disk"))
    assert begun(schedule) == {}
    assert schedule.wake_at == 5
    schedule.failed("b", PARTS[0], ResourceError("disk"))  # of one that never had it: not counted
    clock.now = 5.0
    assert len(begun(schedule)) == 1


def test_waits_double_up_to_the_longest():
    policy = Policy(first_wait=1, longest_wait=10)
    assert [policy.wait(failures) for failures in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 10, 10]


def test_a_worker_that_fails_rests_while_others_work(clock):
    schedule = Schedule(PARTS, Policy(first_wait=5), clock)
    begun(schedule, "a", "b")
    schedule.failed("a", PARTS[0], ResourceError("disk"))
    schedule.finished("b", PARTS[1])
    assert begun(schedule) == {"b": "000002"}
    clock.now = 5.0
    assert set(begun(schedule)) == {"a"}


def test_the_last_attempt_ends_it_by_name(clock):
    schedule = Schedule(PARTS, Policy(attempts=2, first_wait=1), clock)
    begun(schedule, "a")
    schedule.failed("a", PARTS[0], ResourceError("disk full"))
    clock.now = 1.0
    assert begun(schedule) == {"a": "000001"}
    schedule.finished("a", PARTS[1])
    assert begun(schedule) == {"a": "000002"}
    for number in (2, 3, 4, 5):
        schedule.finished("a", PARTS[number])
        begun(schedule)
    with pytest.raises(ResourceError, match="part 000000 failed 2 times, the last time on a: disk full"):
        schedule.failed("a", PARTS[0], ResourceError("disk full"))


@pytest.mark.parametrize("error", [GalleryError("row 7 holds NaN"), ZeroDivisionError(), KeyboardInterrupt()])
def test_what_will_not_pass_is_not_tried_again(clock, error):
    schedule = Schedule(PARTS, Policy(), clock)
    begun(schedule, "a")
    with pytest.raises(type(error)):
        schedule.failed("a", PARTS[0], error)


def test_a_part_that_ends_its_workers_is_an_end(clock):
    schedule = Schedule(PARTS, Policy(losses=3), clock)
    for worker in "ab":
        assert begun(schedule, worker) == {worker: "000000"}
        schedule.lost(worker, "out of memory")
    begun(schedule, "c")
    with pytest.raises(ResourceError, match="part 000000: 3 workers were lost over it, the last, c: out of memory"):
        schedule.lost("c", "out of memory")


@pytest.mark.parametrize("before", [(), ("a",)])
def test_without_workers_patience_ends(clock, before):
    schedule = Schedule(PARTS, Policy(patience=600), clock)
    begun(schedule, *before)
    clock.now = 50.0
    for worker in before:
        schedule.lost(worker, "gone")
    ends = schedule.wake_at
    assert ends == 600 + (50 if before else 0)
    clock.now = ends - 1
    assert begun(schedule) == {}
    clock.now = ends
    with pytest.raises(ResourceError, match="no worker for 600 s, 6 parts are left"):
        schedule.assignments()


def slow(clock, **more) -> Schedule:
    """Five parts done in 10 s each; the sixth is in work at ``slow``, and ``idle`` has nothing to do."""
    schedule = Schedule(PARTS, Policy(slow_factor=3, slow_seconds=0, **more), clock)
    begun(schedule, "slow", "idle")
    for number in (1, 2, 3, 4, 5):
        clock.now += 10
        schedule.finished("idle", PARTS[number])
        begun(schedule)
    return schedule


def test_a_slow_part_is_begun_once_more_by_an_idle_worker_and_the_first_counts(clock):
    schedule = slow(clock)
    assert schedule.counts.repeated == 1  # begun at 0; slow from 30 on, idle at 50
    assert schedule.others_at(PARTS[0]) == ["idle", "slow"]
    assert begun(schedule, "third") == {}  # the copy is not slow yet
    clock.now += 30
    assert begun(schedule) == {"third": "000000"}
    schedule.lost("third", "gone")
    assert schedule.finished("slow", PARTS[0])
    assert schedule.others_at(PARTS[0]) == ["idle"]
    assert not schedule.finished("idle", PARTS[0])
    assert (schedule.is_finished, schedule.counts.wasted) == (True, 1)


def test_a_copy_that_fails_leaves_the_other_alone(clock):
    schedule = slow(clock)
    schedule.failed("idle", PARTS[0], ResourceError("disk"))
    schedule.lost("idle", "gone")
    clock.now += 1000
    assert begun(schedule) == {}
    assert schedule.finished("slow", PARTS[0])


def test_a_part_is_not_slow_before_its_time(clock):
    schedule = Schedule(PARTS, Policy(slow_factor=3, slow_seconds=0), clock)
    begun(schedule, "a", "b")
    for number in (0, 2, 3, 4):
        clock.now += 10
        schedule.finished("a", PARTS[number])
        begun(schedule)
    clock.now += 1
    schedule.finished("b", PARTS[1])
    assert begun(schedule) == {}
    assert schedule.wake_at == 40 + 30  # part 5 was begun at 40


WORLDS = st.builds(
    World,
    workers=st.integers(1, 9),
    parts=st.integers(1, 60),
    rows=st.just(100),
    row_seconds=st.just(0.1),
    spread=st.floats(0, 1),
    slow_share=st.floats(0, 0.3),
    preempted_every=st.sampled_from([0.0, 60.0, 1000.0]),
    replaced_after=st.floats(0, 100),
    store_seconds=st.floats(0, 20),
    store_error_share=st.floats(0, 0.2),
    hang_share=st.floats(0, 0.2),
)


@settings(max_examples=60, deadline=None)
@given(world=WORLDS, seed=st.integers(0, 1000))
def test_whatever_happens_every_part_is_recorded_once_or_the_end_is_said(world, seed):
    crew, policy = VirtualCrew(world, seed), Policy(attempts=20, losses=60)
    try:
        run_parts(parts_of(world), crew, crew.record, policy, crew.clock)
    except ResourceError as error:
        assert "what is done is kept" in str(error)
    except NothingWillHappenError:
        assert world.hang_share  # before any part was done nobody can tell how long one takes
        assert len(crew.recorded) < 3
    else:
        assert sorted(crew.recorded) == [part.name for part in parts_of(world)]
    assert len(set(crew.recorded)) == len(crew.recorded)


def test_hanging_parts_are_done_by_others():
    world = World(workers=20, parts=400, rows=100, row_seconds=0.1, hang_share=0.02)
    crew = VirtualCrew(world, seed=1)
    schedule = run_parts(parts_of(world), crew, crew.record, Policy(), crew.clock)
    assert sorted(crew.recorded) == [part.name for part in parts_of(world)]
    assert schedule.counts.repeated > 0


def test_a_single_worker_that_hangs_is_given_up():
    world = World(workers=1, parts=100, rows=100, row_seconds=0.1, hang_share=0.05)
    crew = VirtualCrew(world, seed=3)
    schedule = run_parts(parts_of(world), crew, crew.record, Policy(), crew.clock)
    assert len(crew.recorded) == 100
    assert schedule.counts.losses > 0


def test_an_outage_of_the_store_is_outlasted():
    world = World(workers=20, parts=400, rows=100, row_seconds=0.1, outage=(30.0, 90.0))
    crew = VirtualCrew(world, seed=1)
    schedule = run_parts(parts_of(world), crew, crew.record, Policy(), crew.clock)
    assert len(crew.recorded) == 400
    assert schedule.counts.failures >= 20


def test_an_error_of_the_crew_passes_through():
    class Refusing(VirtualCrew):
        def wait(self, until):
            raise GalleryError("no such file on any machine")

    with pytest.raises(GalleryError, match="no such file"):
        run_parts(PARTS, Refusing(World(workers=1), 0), lambda part, result: None)


def test_a_part_recorded_is_the_one_that_was_done():
    crew, seen = VirtualCrew(World(workers=2, parts=3), 0), []

    def record(part: Part, worker: str) -> None:
        seen.append((part.name, worker))

    run_parts(parts_of(crew.world), crew, record, clock=crew.clock)
    assert {worker for _, worker in seen} <= {"worker 0", "worker 1"}
