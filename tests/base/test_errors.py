"""Problems, collected and said together."""

from __future__ import annotations

import pytest

from modpo.base.errors import MOST_PROBLEMS_SHOWN, InputError, Problem, Problems


def bad(row: int) -> InputError:
    return InputError(Problem(f"rows.jsonl:{row}", "chosen", "is empty", "drop it"))


def test_problems_are_collected_and_raised_together() -> None:
    problems, good = Problems(), []
    problems.raise_any()  # nothing so far
    for row in range(5):
        with problems:
            if row % 2:
                raise bad(row)
            good.append(row)
    with pytest.raises(InputError) as caught:
        problems.raise_any()
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert good == [0, 2, 4]


def test_collecting_stops_at_as_many_as_are_shown() -> None:
    problems = Problems()

    def collect(rows: int) -> None:
        for row in range(rows):
            with problems:
                raise bad(row)

    collect(MOST_PROBLEMS_SHOWN - 1)
    with pytest.raises(InputError) as caught:
        collect(1)
    assert len(caught.value.problems) == MOST_PROBLEMS_SHOWN


def test_other_errors_are_not_collected() -> None:
    problems = Problems()
    with pytest.raises(ZeroDivisionError), problems:
        raise ZeroDivisionError
    problems.raise_any()
