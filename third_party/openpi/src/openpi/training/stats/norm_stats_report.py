"""Show normalization statistics, and the dimensions that will cause trouble."""

from collections.abc import Sequence

import numpy as np
import rich.table

from openpi.shared.normalize import NormStats
from openpi.training.stats.exact_stats import Distribution
from openpi.training.stats.norm_stats import Report

# A normalized value is divided by the range. Below this range, in the unit of the data, a dimension counts as constant.
TINY_RANGE = 1e-3


def findings(distribution: Distribution, min_range: float = 0.0) -> list[str]:
    """Say what is wrong with each dimension. An empty text means nothing."""
    span = distribution.stats.q99 - distribution.stats.q01
    texts = []
    for is_constant, is_tiny, is_raised in zip(
        distribution.low == distribution.high, span < TINY_RANGE, span < min_range, strict=True
    ):
        text = "constant" if is_constant else "tiny range" if is_tiny else ""
        texts.append(", ".join(part for part in (text, "floor applied" if is_raised else "") if part))
    return texts


def table(report: Report, key: str) -> rich.table.Table:
    """Draw the statistics of one key, with a row per dimension.

    Rows are in the model's order.
    """
    found = report.distributions[key]
    stats = report.stats[key]
    largest = np.maximum(_normalized(found.high, stats), -_normalized(found.low, stats))
    result = rich.table.Table(title=key, title_justify="left")
    for heading in ("", "mean", "std", "q01", "q99", "q99-q01", "outside +-1", "largest", "finding"):
        result.add_column(heading, justify="left" if heading in ("", "finding") else "right", no_wrap=True)
    columns = (found.stats.mean, found.stats.std, found.stats.q01, found.stats.q99, found.stats.q99 - found.stats.q01)
    for dim, finding in enumerate(findings(found, report.min_range)):
        numbers = [f"{column[dim]:.4g}" for column in columns]
        result.add_row(
            report.names[key][dim], *numbers, f"{found.outside[dim]:.2%}", f"{largest[dim]:.1f}", finding,
            style="yellow" if finding else None,
        )  # fmt: skip
    return result


def _normalized(values: np.ndarray, stats: NormStats) -> np.ndarray:
    return 2 * (values - stats.q01) / (stats.q99 - stats.q01 + 1e-6) - 1


def advice(report: Report) -> Sequence[str]:
    """Return one line for each key with dimensions that hardly move."""
    lines = []
    for key, found in report.distributions.items():
        texts = findings(found)
        named = [f"{report.names[key][dim]} ({text})" for dim, text in enumerate(texts) if text]
        if named and report.min_range < TINY_RANGE:
            lines.append(
                f"{key}: {', '.join(named)}: any deviation there is amplified more than a thousand times. Check the "
                "recordings ('make inspect'). If it is intended (an arm that is not used), set a floor: --min-range 0.05"
            )
    return lines
