"""The reliability diagram (DeGroot and Fienberg, 1983): keypoint scores against the OKS that they turned out to be."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.package import Package
from training.calibration import LEAST, Reliability, ScoredJoints, apply_table, cross_validated
from training.config import ConfigError
from training.measuring import Found

RAW, CALIBRATED = "#c2410c", "#1d4ed8"


def draw_reliability(path: Path, found: Sequence[Found], package: Package) -> None:
    """One panel a set, raw and calibrated scores in each, with the expected calibration error (ECE) of both.

    Where the package's own map was fitted on this very set, or there is none, maps are fitted half by half, so that no
    score is judged on pictures that its map was fitted on.

    Raises:
        ConfigError: the picture cannot be written.
    """
    figure = Figure((5.2 * len(found), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, one in zip(panels, found, strict=True):
        _draw(panel, one, package)
    flip = "flip test" if found[0].flip_test else "no flip test"
    figure.suptitle(f"{package.card.name} {package.card.version}\nkeypoint scores, {flip}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def _draw(panel: Axes, found: Found, package: Package) -> None:
    joints = ScoredJoints.of(found.people, found.raw, package.skeleton)
    panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    _line(panel, Reliability.of(joints.raw, joints.oks), RAW, "raw")
    scores, name = _calibrated(joints, found, package)
    if scores is not None:
        _line(panel, Reliability.of(scores, joints.oks), CALIBRATED, name)
    panel.set(
        xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="score", ylabel="OKS, mean of the joints",
        title=f"{found.entry.name}: {len(joints):,} labelled joints",
    )  # fmt: skip
    panel.legend(loc="upper left", frameon=False)


def _calibrated(joints: ScoredJoints, found: Found, package: Package) -> tuple[np.ndarray | None, str]:
    calibration = package.card.calibration
    if calibration is not None and calibration.data != found.entry.name:
        return apply_table(calibration.rows(package.skeleton), joints), f"calibrated on {calibration.data}"
    if len(joints) < LEAST or len(np.unique(joints.picture)) < 2:
        return None, ""
    return cross_validated(joints, package.skeleton), "calibrated, cross-validated"


def _line(panel: Axes, line: Reliability, color: str, name: str) -> None:
    panel.plot(line.score, line.oks, color=color, linewidth=1.5)
    sizes = 12 + 300 * line.count / line.count.sum()
    panel.scatter(line.score, line.oks, sizes, color=color, alpha=0.75, label=f"{name}: ECE {100 * line.error:.1f} %")
