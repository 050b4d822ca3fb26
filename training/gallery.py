"""The people a package does worst on, drawn: where a figure comes from is seen sooner than computed."""

from pathlib import Path

import numpy as np

from model.crop import Region, cut, transform
from model.package import Package
from training.measuring import Found
from training.oks import person_oks
from training.people import read_picture
from training.sheets import TILE, caption, draw_joints, write_sections

SHOWN = 24
# people with fewer labelled joints are shown only where nobody has more: most of them are out of sight
LEAST_JOINTS = 5


def write_gallery(path: Path, found: Found, package: Package, shown: int = SHOWN) -> Path:
    """Write the `shown` people of the lowest OKS to one picture, label and prediction side by side; returns `path`.

    Below each pair stand the OKS, how many joints are labelled, and the annotation's id.

    Raises:
        ConfigError: the picture cannot be written.
    """
    people, keypoints = found.people, found.raw.keypoints
    truth = np.stack([person.keypoints for person in people])
    labelled = np.stack([person.weights for person in people]) > 0
    areas = np.array([person.area for person in people])
    oks = person_oks(keypoints, truth, labelled, areas, np.array(package.skeleton.sigmas))
    everything = np.ones(len(package.skeleton))
    well_labelled = labelled.sum(1) >= LEAST_JOINTS
    if not well_labelled.any():
        well_labelled[:] = True
    tiles = []
    for index in np.argsort(np.where(well_labelled, oks, np.inf), kind="stable")[: min(shown, well_labelled.sum())]:
        person = people[index]
        affine = Region.around(person.box, TILE, package.card.padding).affine(TILE)
        crop = cut(read_picture(person.picture), affine, TILE)
        label = draw_joints(crop, transform(person.keypoints, affine), labelled[index], package.skeleton)
        guess = draw_joints(crop, transform(keypoints[index], affine), everything, package.skeleton)
        lines = f"OKS {oks[index]:.2f}, id {person.annotation}", f"labelled: {labelled[index].sum()} joints"
        tiles += [caption(label, lines, 2), caption(guess, ("", "found"), 2)]
    name = f"{package.card.name} {package.card.version}"
    least = labelled[well_labelled].sum(1).min()
    heading = f"{name} on {found.entry.name}: lowest OKS of people with {least} labelled joints or more"
    write_sections(path, [(heading, tiles)])
    return path
