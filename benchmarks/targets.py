"""What must come out of `benchmarks/serve.py`, as ratios within one run, and whether it did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]
FEW = 3.5  # people: the first target is about one to three


@dataclass(frozen=True)
class Target:
    """One ratio. Where there are several rows, `measured` is the worst of them.

    Attributes:
        measured: None where this run did not measure it.
        at_least: whether `limit` is the least that is allowed; else it is the most.
    """

    name: str
    measured: float | None
    limit: float
    at_least: bool
    where: str = ""

    @property
    def verdict(self) -> str:
        """`pass`, `miss` or `not measured`."""
        if self.measured is None:
            return "not measured"
        kept = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "pass" if kept else "miss"


def check_rows(rows: Sequence[Row], bound: Callable[[float], float] | None) -> list[Target]:
    """The targets that the rows alone can answer.

    Args:
        bound: seconds per picture that the engines need for so many people; None where it was not measured.
    """
    busy = [row for row in rows if row["server"] == "ours" and row["concurrency"] == 8]
    few = [row for row in busy if row["people"] <= FEW]
    peers = {row["server"] for row in rows} - {"ours", "naive"}
    targets = [
        _worst("pictures/s over naive, 1 to 3 people, 8 clients", few, _speed_ratio(rows, {"naive"}), 5),
        _worst("pictures/s over the best peer, likewise", few, _speed_ratio(rows, peers), 1.2),
        _worst("p95 over naive, likewise", few, _slowness(rows, {"naive"}), 1, at_least=False),
        _worst("p95 over the best peer, likewise", few, _slowness(rows, peers), 1, at_least=False),
    ]
    share = (lambda row: row["pictures_per_s"] * bound(row["people"])) if bound else (lambda _: None)
    targets.append(_worst("pictures/s over the compute bound, 8 clients", busy, share, 0.85))
    return targets


def check_crowd(seconds: float | None, limit: float | None) -> Target:
    """Median seconds of a picture with 20 people, against what the engines take for it (before the ten per cent)."""
    measured = round(seconds / limit, 3) if seconds and limit else None
    return Target("20 people over 20/8 x batch-8 pose time + detector", measured, 1.1, False)


def check_idle(rows: Sequence[Row], unbatched: Sequence[Row]) -> Target:
    """Median latency at concurrency 1 against the service with `POSE_MAX_BATCH=1`, one person."""
    ours = [row for row in rows if row["server"] == "ours" and row["concurrency"] == 1 and row["people"] <= 1.5]

    def ratio(row: Row) -> float | None:
        other = [r["p50_ms"] for r in unbatched if r["pictures"] == row["pictures"] and r["people"] == row["people"]]
        return row["p50_ms"] / other[0] if other else None

    return _worst("p50 over POSE_MAX_BATCH=1, one person, 1 client", ours, ratio, 1.05, at_least=False)


def show(targets: Sequence[Target]) -> Table:
    """A table for people."""
    table = Table("target", "worst row", "measured", "limit", "", title="ratios, within this run")
    for target in targets:
        measured = "" if target.measured is None else f"{target.measured:.2f}"
        sign = "at least" if target.at_least else "at most"
        table.add_row(target.name, target.where, measured, f"{sign} {target.limit:g}", target.verdict)
    return table


def as_json(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [asdict(target) | {"verdict": target.verdict} for target in targets]


def _worst(
    name: str, rows: Sequence[Row], value: Callable[[Row], float | None], limit: float, *, at_least: bool = True
) -> Target:
    found = [(measured, row) for row in rows if (measured := value(row)) is not None]
    if not found:
        return Target(name, None, limit, at_least)
    measured, row = (min if at_least else max)(found, key=lambda pair: pair[0])
    return Target(name, round(measured, 3), limit, at_least, f"{row['pictures']}, {row['people']:g} people")


def _rivals(rows: Sequence[Row], row: Row, servers: set[str]) -> list[Row]:
    alike = ("pictures", "people", "concurrency")
    return [other for other in rows if other["server"] in servers and all(other[key] == row[key] for key in alike)]


def _speed_ratio(rows: Sequence[Row], servers: set[str]) -> Callable[[Row], float | None]:
    def ratio(row: Row) -> float | None:
        best = max((other["pictures_per_s"] for other in _rivals(rows, row, servers)), default=None)
        return row["pictures_per_s"] / best if best else None

    return ratio


def _slowness(rows: Sequence[Row], servers: set[str]) -> Callable[[Row], float | None]:
    def ratio(row: Row) -> float | None:
        best = min((other["p95_ms"] for other in _rivals(rows, row, servers)), default=None)
        return row["p95_ms"] / best if best else None

    return ratio
