"""What `pose validate` prints: figures in tables, with the protocol beside every one of them."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from model.package import Card, Evaluation
from training.pck import GROUPS

AP_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APM": "AP-M", "APL": "AP-L", "AR": "AR"}
PCK = "PCK@0.2"
PCKH = ("PCKh@0.5", "PCKh@0.1")
PART_COLUMNS = (*GROUPS, "mean")


def build_report(card: Card, engine: str, report: Sequence[Evaluation]) -> Group:
    """Tables for the terminal: COCO's figures, then the shares of joints near enough; intervals in brackets."""
    height, width = card.input_size
    title = Text(f"{card.name} {card.version} ({card.sha256[:12]}), {height}x{width}, engine {engine}", "bold")
    parts: list[Table | Text] = [title]
    scored = [entry for entry in report if "AP" in entry.metrics]
    if scored:
        parts.append(_precision(scored))
    rows = [entry for entry in report if any(_has_joints(entry, name) for name in (PCK, *PCKH))]
    if rows:
        parts.append(_joints(rows))
    if any(entry.intervals for entry in report):
        parts.append(Text("in brackets: 95 % bootstrap intervals, pictures drawn anew 1,000 times", "dim"))
    parts += [Text(f"{entry.data}: {note}", "dim") for entry in report for note in entry.notes]
    if any("PCKh@0.5 mean" in entry.metrics for entry in report):
        parts.append(Text("PCKh's mean counts every labelled joint but pelvis and thorax, as HRNet's", "dim"))
    return Group(*parts)


def _precision(report: Sequence[Evaluation]) -> Table:
    table = _table("people found, by OKS")
    for column in AP_COLUMNS.values():
        table.add_column(column, justify="right")
    for entry in report:
        table.add_row(*_protocol(entry), *(_figure(entry, name) for name in AP_COLUMNS))
    return table


def _joints(report: Sequence[Evaluation]) -> Table:
    """The paper's Table 1 order; columns that nobody has are left out."""
    table = _table("joints near enough")
    rows = [(entry, name) for entry in report for name in (PCK, *PCKH) if _has_joints(entry, name)]
    shown = [part for part in PART_COLUMNS if any(f"{name} {part}" in entry.metrics for entry, name in rows)]
    shown = shown or ["mean"]
    table.add_column("figure")
    for part in shown:
        table.add_column(part, justify="right")
    for entry, name in rows:
        keys = [name if name == PCK and part == "mean" else f"{name} {part}" for part in shown]
        table.add_row(*_protocol(entry), name, *(_figure(entry, key) for key in keys))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", header_style="dim")
    table.add_column("set")
    table.add_column("people", justify="right")
    table.add_column("boxes")
    table.add_column("flip test")
    return table


def _protocol(entry: Evaluation) -> tuple[str, ...]:
    return entry.data, f"{entry.people:,}", entry.boxes, "yes" if entry.flip_test else "no"


def _has_joints(entry: Evaluation, name: str) -> bool:
    return name in entry.metrics or f"{name} mean" in entry.metrics


def _figure(entry: Evaluation, name: str) -> str:
    """`18.7`, or `18.7 (16.9-20.4)` where the figure has an interval, or nothing."""
    if name not in entry.metrics:
        return ""
    text = f"{entry.metrics[name]:.1f}"
    if name not in entry.intervals:
        return text
    low, high = entry.intervals[name]
    return f"{text} ({low:.1f}-{high:.1f})"
