"""What `pose validate` prints: figures in tables, with the protocol beside every one of them."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from model.card import Card, Evaluation
from training.pck import GROUPS

AP_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APM": "AP-M", "APL": "AP-L", "AR": "AR"}
PCK = "PCK@0.2"
PCKH = ("PCKh@0.5", "PCKh@0.1")
PART_COLUMNS = (*GROUPS, "mean")


def build_report(card: Card, engine: str, report: Sequence[Evaluation]) -> Group:
    """Tables for the terminal: COCO's figures, then the shares of joints near enough; intervals below."""
    height, width = card.input_size
    title = Text(f"{card.identity}, {height}x{width}, engine {engine}", "bold")
    parts: list[Table | Text] = [title]
    scored = [entry for entry in report if "AP" in entry.metrics]
    if scored:
        parts.append(_precision(scored))
    rows = [entry for entry in report if any(_has_joints(entry, name) for name in (PCK, *PCKH))]
    if rows:
        parts.append(_joints(rows))
    if any(entry.intervals for entry in report):
        parts.append(Text("below a figure: its 95 % bootstrap interval, pictures drawn anew 1,000 times", "dim"))
    parts += [Text(f"{entry.data}: {note}", "dim") for entry in report for note in entry.notes]
    if any("PCKh@0.5 mean" in entry.metrics for entry in report):
        parts.append(Text("PCKh's mean counts every labelled joint but pelvis and thorax, as HRNet's", "dim"))
    return Group(*parts)


def _precision(report: Sequence[Evaluation]) -> Table:
    table = _table("people found, by OKS", AP_COLUMNS.values())
    for entry in report:
        table.add_row(_protocol(entry, ", "), *(_figure(entry, name) for name in AP_COLUMNS))
        table.add_row()
    return table


def _joints(report: Sequence[Evaluation]) -> Table:
    """The paper's Table 1 order; columns that nobody has are left out."""
    rows = [(entry, name) for entry in report for name in (PCK, *PCKH) if _has_joints(entry, name)]
    shown = [part for part in PART_COLUMNS if any(f"{name} {part}" in entry.metrics for entry, name in rows)]
    shown = shown or ["mean"]
    table = _table("joints near enough", ["figure", *shown])
    for entry in report:
        names = [name for name in (PCK, *PCKH) if _has_joints(entry, name)]
        cells = []
        for part in shown:
            keys = [name if name == PCK and part == "mean" else f"{name} {part}" for name in names]
            cells.append("\n".join(_figure(entry, key) for key in keys))
        table.add_row(_protocol(entry, "\n"), "\n\n".join(names), *cells)
        table.add_row()
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", header_style="dim", box=SIMPLE, padding=0)
    table.add_column("set", min_width=13)
    for column in columns:
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    return table


def _protocol(entry: Evaluation, between: str) -> str:
    """`coco-val, 452 people`, and below it `ground truth, flip test`, or all of it line by line."""
    flip = "flip test" if entry.flip_test else "no flip test"
    return f"{entry.data}{between}{entry.people:,} people\n[dim]{escape(entry.boxes)}{between}{flip}[/dim]"


def _has_joints(entry: Evaluation, name: str) -> bool:
    return name in entry.metrics or f"{name} mean" in entry.metrics


def _figure(entry: Evaluation, name: str) -> str:
    """Two lines: `18.7`, and `16.9-20.4` where the figure has an interval."""
    if name not in entry.metrics:
        return "\n"
    low, high = entry.intervals.get(name, (None, None))
    return f"{entry.metrics[name]:.1f}\n" + ("" if low is None else f"[dim]{low:.1f}-{high:.1f}[/dim]")
