"""Print how far this implementation is from the original's numbers.

    python benchmarks/golden_table.py           # Prints Markdown, takes minutes on two cores.

The table has every comparison with a golden file.
It runs the tests that read `tests/golden`, slow ones included, and records what each hands to numpy's comparisons.
"""

from collections.abc import Iterator
import contextlib
import io
import os
import pathlib
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# A test of golden files has one of these words in its name.
WORDS = ("golden", "original", "formula_numbers")


class Comparisons:
    """A pytest plugin that records the numbers compared by each test.

    It also records the largest difference.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._test = ""
        self._allclose = np.testing.assert_allclose
        self._equal = np.testing.assert_array_equal

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep only the tests of golden files."""
        items[:] = [item for item in items if any(word in item.originalname for word in WORDS)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Record the comparisons of one test."""
        self._test = item.nodeid.removeprefix("tests/framework/")
        self.rows[self._test] = empty_row()
        patch = pytest.MonkeyPatch()
        patch.setattr(np.testing, "assert_allclose", self.allclose)
        patch.setattr(np.testing, "assert_array_equal", self.equal)
        outcome = yield
        patch.undo()
        if outcome.excinfo is not None:
            self.rows[self._test]["failed"] = 1

    def allclose(self, actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, **kwargs: Any) -> None:
        """Stand in for `numpy.testing.assert_allclose`."""
        wanted = np.asarray(desired, np.float64)
        difference = np.abs(np.asarray(actual, np.float64) - wanted)
        self._note(difference, difference / np.maximum(atol + rtol * np.abs(wanted), np.finfo(float).tiny))
        self._allclose(actual, desired, rtol=rtol, atol=atol, **kwargs)

    def equal(self, actual: Any, desired: Any, **kwargs: Any) -> None:
        """Stand in for `numpy.testing.assert_array_equal`."""
        if np.asarray(desired).dtype.kind in "biuf":
            self._note(np.zeros(np.shape(desired)), np.zeros(np.shape(desired)))
        self._equal(actual, desired, **kwargs)

    def _note(self, difference: np.ndarray, part: np.ndarray) -> None:
        row = self.rows[self._test]
        row["numbers"] += difference.size
        row["difference"] = max(row["difference"], float(np.max(difference, initial=0)))
        row["part"] = max(row["part"], float(np.max(part, initial=0)))


def empty_row() -> dict[str, float]:
    """Return the figures of a test before its first comparison."""
    return {"numbers": 0, "difference": 0.0, "part": 0.0, "failed": 0}


def main() -> int:
    """Run the tests, print the table, and return pytest's exit status."""
    os.chdir(ROOT)
    comparisons = Comparisons()
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", "tests/framework"], [comparisons])
    print("| test | numbers | largest difference | part of the tolerance |\n|---|---:|---:|---:|")
    for name, row in comparisons.rows.items():
        if row["numbers"]:
            print(f"| `{name}` | {row['numbers']:.0f} | {row['difference']:.2g} | {row['part']:.1%} |")
    whole = [name.split("[")[0] for name, row in comparisons.rows.items() if not row["numbers"]]
    print("\nTexts, bytes, shapes, types and names, which are equal or not (in brackets the number of cases):\n")
    for name in dict.fromkeys(whole):
        print(f"- `{name}` ({whole.count(name)})")
    for name, row in comparisons.rows.items():
        if row["failed"]:
            print(f"\nFAILED: `{name}`")
    print(report.getvalue().splitlines()[-1], file=sys.stderr)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
