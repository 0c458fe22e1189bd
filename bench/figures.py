"""Measured figures and their presentation as a plain-text table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from attrs import frozen


@frozen(kw_only=True)
class Row:
    """The measurement of one contender; *ratio* is its median relative to the reference's."""

    what: str
    contender: str
    unit: str
    n: int
    median: float
    min: float
    max: float
    ratio: float | None = None


def row(
    what: str, contender: str, unit: str, values: Sequence[float], reference: Sequence[float] = ()
) -> Row:
    middle = median(values)
    return Row(
        what=what,
        contender=contender,
        unit=unit,
        n=len(values),
        median=middle,
        min=min(values),
        max=max(values),
        ratio=middle / median(reference) if reference else None,
    )


def milliseconds(
    what: str, contender: str, seconds: Sequence[float], reference: Sequence[float] = ()
) -> Row:
    return row(what, contender, "ms", [value * 1000 for value in seconds], _scaled(reference))


def _scaled(seconds: Sequence[float]) -> list[float]:
    return [value * 1000 for value in seconds]


def table(title: str, rows: Sequence[Row]) -> str:
    lines = [
        f"\n{title}",
        f"  {'':28}{'':26}{'unit':>7}{'n':>6}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}",
    ]
    for one in rows:
        ratio = "" if one.ratio is None else f"{one.ratio:8.2f}"
        lines.append(
            f"  {one.what:28}{one.contender:26}{one.unit:>7}{one.n:6}"
            f"{one.median:9.2f}{one.min:9.2f}{one.max:9.2f}{ratio}"
        )
    return "\n".join(lines)
