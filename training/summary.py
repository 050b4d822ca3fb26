"""What a run has come to so far: `results.csv`, and the same as a picture."""

import csv
from pathlib import Path
from typing import Any

FIGURES = ("AP", "AP50", "AP75", "PCKh@0.5 mean", "PCK@0.2")


def add_row(table: Path, row: dict[str, Any]) -> None:
    """Append a validation; a table that has other columns is kept aside as `<name>.old.csv`."""
    if table.exists():
        with table.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(row):
            table.replace(table.with_suffix(".old.csv"))
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def draw_summary(table: Path, picture: Path, title: str) -> None:
    """Draw loss and figures over samples, with the sizes of the crops, as the PNG `picture`."""
    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    samples = [int(row["samples"]) / 1000 for row in rows]
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name in FIGURES:
        if name in rows[0]:
            top.plot(samples, [float(row[name]) for row in rows], marker="o", label=name)
    for before, row, x in zip([None, *rows], rows, samples, strict=False):
        if before is None or before["size"] != row["size"]:
            for axes in (top, bottom):
                axes.axvline(x, color="0.85", zorder=0)
            top.annotate(row["size"], (x, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", color="0.5")
    top.set(title=title, ylabel="validation, %", ylim=(0, 100))
    top.legend(loc="upper left")
    bottom.plot(samples, [float(row["loss"]) for row in rows], color="0.3")
    bottom.set(xlabel="thousand samples", ylabel="loss")
    beside = picture.with_suffix(".partial.png")
    figure.savefig(beside)
    beside.replace(picture)
