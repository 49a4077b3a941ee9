"""The smallest network that searches as well as the chosen map: it learns that map's own results, on stored rows.

Rows without a new embedding are plenty, and the chosen map says what theirs should be. So a small network sees far more
rows than there are pairs, and is trained far longer than a map of pairs could be before it learns them by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.fitting.budget import Budget
from fct_infer.fitting.crossfit import CrossFit, is_within_noise, statistics_of
from fct_infer.fitting.measures import Measure
from fct_infer.fitting.pairs import Pairs
from fct_infer.machine import usable_cpus
from fct_infer.maps import Recipe, Statistics
from fct_infer.maps.statistics import Float64Array
from fct_infer.measuring import Estimate
from fct_infer.transformation import Float32Array, Program, Transformation
from fct_infer.upgrade.estimate import rows_per_second

if TYPE_CHECKING:
    from fct_infer.fitting.network import Schedule

SHAPES = ((0, 0), (32, 2), (64, 2), (128, 2), (192, 2), (256, 2), (384, 2))
"""Width and number of hidden layers beside the linear map that every student has."""

STEPS = (24_000, 12_000, 6_000, 3_000)
TOLERATED = 0.005  # of the measure, where queries are so many that noise is less
MAX_STORED = 100_000
_WORTH_IT = 0.8  # of the teacher's arithmetic: what saves less is not tried
_ALPHA = 1e-3
_TIMED = 3


@dataclass(frozen=True)
class Stored:
    """Rows that h will transform, of which no new embedding is known: old (n, d_old) and side (n, d_side) or None."""

    old: Float32Array
    side: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.old)

    def check(self, pairs: Pairs) -> None:
        """Raise an ArrayError if the rows are not like those of the pairs."""
        for name, rows, like in (("old", self.old, pairs.old), ("side", self.side, pairs.side)):
            if like is None:
                continue
            wanted = f"wanted float32 ({len(self.old)}, {like.shape[1]})"
            if rows is None:
                raise ArrayError(f"stored {name} rows: there are none, {wanted}")
            if rows.dtype != np.float32 or rows.shape != (len(self.old), like.shape[1]):
                raise ArrayError(f"stored {name} rows: are {rows.dtype} {rows.shape}, {wanted}")
            if not (finite := np.isfinite(rows).all(axis=1)).all():
                raise NonFiniteError(f"stored {name} rows", int(np.argmin(finite)))


@dataclass(frozen=True)
class Judge:
    """What teacher and students are compared by: pairs that no teacher here was fitted on.

    Attributes:
        rows: (m,) numbers of the pairs.
        measure: of these rows, transformed.
        queries: of the measure; none of them reports.
    """

    rows: Int64Array
    measure: Measure
    queries: Int64Array


@dataclass(frozen=True)
class Sized:
    """A map and what it costs.

    Attributes:
        name: for people.
        flops: a row.
        rows_per_second: of the core here, in float32.
        scores: (queries,) of the judge.
    """

    name: str
    flops: int
    rows_per_second: float
    scores: Float64Array

    def as_dict(self, teacher: Sized) -> dict[str, Any]:
        """Return the map as strict JSON, with what it loses against its teacher."""
        return {
            "name": self.name,
            "flops_per_row": self.flops,
            "rows_per_second": self.rows_per_second,
            **asdict(Estimate.of(self.scores)),
            "difference": asdict(Estimate.of(self.scores - teacher.scores)),
        }


@dataclass(frozen=True)
class Compression:
    """How small a map may be.

    Attributes:
        measure: what all were compared by.
        teacher: the map that was chosen from the pairs.
        students: what learnt from it, the smallest first.
        chosen: the cheapest of all that is not worse; the teacher if there is none.
        stored, steps: how many rows were learnt from, and how long.
    """

    measure: str
    teacher: Sized
    students: tuple[Sized, ...]
    chosen: Sized
    stored: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON."""
        return {
            "measure": self.measure,
            "teacher": self.teacher.as_dict(self.teacher),
            "students": [student.as_dict(self.teacher) for student in self.students],
            "chosen": self.chosen.name,
            "stored_rows": self.stored,
            "steps": self.steps,
        }


@dataclass(frozen=True)
class Teachers:
    """The chosen map: fitted without the judge's pairs, to find the size, and on all of them, to be shipped."""

    name: str
    without_judge: Program
    on_all: Program


def compress(
    cross_fit: CrossFit,
    judge: Judge,
    teachers: Teachers,
    stored: Stored,
    settings: tuple[Budget, int],
    progress: Callable[[int, int], None],
) -> tuple[Program, Compression] | str:
    """Train students of several sizes, and return the cheapest that is not worse, or say why there is none.

    Args:
        cross_fit: pairs and split.
        judge: see :class:`Judge`.
        teachers: see :class:`Teachers`.
        stored: rows to learn from, beside the old rows of the pairs.
        settings: the budget of all trainings together, and the seed.
        progress: told steps done, of all.
    """
    budget, seed = settings
    if find_spec("torch") is None:
        return "nothing was compressed: that needs PyTorch (pip install 'fct-infer[train]')"
    from fct_infer.fitting.network import Schedule, few_threads, first_steps

    lessons = _lessons(cross_fit, stored, teachers.without_judge)
    everything = np.arange(len(lessons))
    start = _start(lessons, everything)
    shapes = [shape for shape in SHAPES if _flops(start, shape) < _WORTH_IT * teachers.on_all.flops_per_row]
    if not shapes:
        return f"nothing was compressed: {teachers.name} is as small as any network"
    at_once = min(usable_cpus(), max(1, len(shapes) - 1))
    with few_threads(1):  # each, and as many trainings at once as there are cores
        rounds = 1 + -(-len(shapes) // at_once)
        largest = Schedule(shapes[-1][0], layers=shapes[-1][1])
        pace = rounds * first_steps(lessons, everything, start, largest)[0] if largest.layers else 0.0
        steps = next((steps for steps in STEPS if steps * pace <= budget.left), None)
        if steps is None:
            return f"nothing was compressed: {budget.refuse(STEPS[-1] * pace)}"
        schedules = [Schedule(width, steps, steps, seed, layers) for width, layers in shapes]
        total = (1 + len(shapes)) * steps
        students = []
        with ThreadPoolExecutor(at_once) as pool:
            for program in pool.map(lambda schedule: _student(lessons, start, schedule), schedules):
                students.append(program)
                progress(len(students) * steps, total)
        compression = _compared(cross_fit, judge, teachers, list(zip(schedules, students, strict=True)), len(lessons))
        if compression.chosen is compression.teacher:
            return teachers.on_all, compression
        schedule = schedules[compression.students.index(compression.chosen)]
        lessons = _lessons(cross_fit, stored, teachers.on_all)
        program = _student(lessons, _start(lessons, everything), schedule)
        progress(total, total)
    return program, compression


def _lessons(cross_fit: CrossFit, stored: Stored, teacher: Program) -> Pairs:
    """Return old rows and what the teacher makes of them, as it is shipped."""
    pairs = cross_fit.pairs
    old, side = np.concatenate([stored.old, pairs.old]), None
    if pairs.side is not None and "side" in teacher.dims:
        assert stored.side is not None
        side = np.concatenate([stored.side, pairs.side])
    h = Transformation(teacher.with_normalization() if cross_fit.unit_length else teacher, "fp32")
    return Pairs(old, h(old, side), side, np.arange(len(old)))


def _start(lessons: Pairs, rows: Int64Array) -> tuple[Recipe, Statistics]:
    recipe = Recipe(alpha=_ALPHA, side_alpha=None if lessons.side is None else _ALPHA)
    return recipe, statistics_of(lessons, rows)


def _student(lessons: Pairs, start: tuple[Recipe, Statistics], schedule: Schedule) -> Program:
    from fct_infer.fitting.network import train
    from fct_infer.training.models.folding import to_program

    recipe, statistics = start
    if not schedule.layers:
        return recipe.fit(statistics)
    return to_program(train(lessons, np.arange(len(lessons)), start, schedule))


def _flops(start: tuple[Recipe, Statistics], shape: tuple[int, int]) -> int:
    """Return what a student of that shape costs a row."""
    (_, statistics), (width, layers) = start, shape
    d_in, d_out = statistics.input_dim, len(statistics.yy)
    widths = [d_in, *[width] * layers, d_out] if layers else []
    return 2 * (d_in * d_out + sum(narrow * wide for narrow, wide in pairwise(widths)))


def _compared(
    cross_fit: CrossFit,
    judge: Judge,
    teachers: Teachers,
    students: Sequence[tuple[Schedule, Program]],
    stored: int,
) -> Compression:
    def sized(name: str, program: Program) -> Sized:
        scores = judge.measure.scores(cross_fit.apply(program, judge.rows), judge.queries)
        h = Transformation(program.with_normalization() if cross_fit.unit_length else program, "fp32")
        speed = max(rows_per_second(h) for _ in range(_TIMED))  # whatever else the machine does meanwhile
        return Sized(name, program.flops_per_row, speed, scores)

    teacher = sized(teachers.name, teachers.without_judge)
    found = tuple(sized(_name(schedule), program) for schedule, program in students)
    good = (student for student in found if is_as_good(student.scores, teacher.scores))
    chosen = min((*good, teacher), key=lambda each: each.flops)
    return Compression(judge.measure.name, teacher, found, chosen, stored, students[0][0].steps)


def is_as_good(scores: Float64Array, of_teacher: Float64Array) -> bool:
    """Return whether (queries,) scores lose less than the noise or than :data:`TOLERATED`."""
    lost = of_teacher - scores
    return is_within_noise(lost) or float(lost.mean()) <= TOLERATED


def _name(schedule: Schedule) -> str:
    return f"{schedule.layers} hidden layers of {schedule.hidden}" if schedule.layers else "linear map"
