"""Pictures of the data: `pose data check`'s sheet of people, and `pose data show`'s of what the network sees."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from model.codec import HeatmapCodec
from model.skeletons import SKELETONS
from training.checking import Report
from training.config import ConfigError, TrainConfig
from training.distributed import Workers
from training.labels import LabelledSet, Person
from training.loader import Crops, Draw, draw_weights
from training.people import keep_crops
from training.sheets import COLUMNS, LETTERS, TILE, caption, draw_joints, person_tile, skeleton_of, write_sections

RANDOM, SUSPICIOUS = 3 * COLUMNS, 2 * COLUMNS  # people on a sheet: drawn at random, and of each kind of finding
GLOW = 0.65  # how strongly targets cover the crop


def write_people_sheet(path: Path, labelled: LabelledSet, report: Report, seed: int = 0) -> None:
    """Random people of a set, then the suspicious ones kind by kind, each with its annotation's id.

    Raises:
        ConfigError: no picture of the set can be read, or `path` cannot be written.
    """
    skeleton = skeleton_of(labelled.joints)
    people = [person for person in labelled.people if str(person.picture) not in report.broken]
    by_id = {(person.annotation, str(person.picture)): person for person in people}
    rng = np.random.default_rng(seed)

    def tile(person: Person, text: str = "") -> np.ndarray:
        lines = [f"{person.annotation}  {person.picture.name}", *textwrap.wrap(text, LETTERS)]
        return caption(person_tile(person, skeleton), lines, 3)

    chosen = sorted(rng.permutation(len(people))[:RANDOM].tolist())
    sections = [(f"{len(chosen)} of {len(people)} people", [tile(people[index]) for index in chosen])]
    for kind, count in report.suspicions.items():
        findings = [f for f in report.findings if f.kind == kind and (f.annotation, f.picture) in by_id]
        shown = sorted(rng.permutation(len(findings))[:SUSPICIOUS].tolist())
        tiles = [tile(by_id[findings[i].annotation or 0, findings[i].picture], findings[i].text) for i in shown]
        sections.append((f"{kind}: {len(shown)} of {count}", tiles))
    write_sections(path, sections)


def write_training_sheet(path: Path, config: TrainConfig, people: Sequence[Person], count: int = 16) -> None:
    """The first `count` crops that each phase of `config` shows the network, each beside its targets.

    They are the very crops of a run with that seed: what is drawn depends on the seed and the sample's number alone.

    Args:
        people: as `training.loop.training_people` gives them.

    Raises:
        ConfigError: there are no people, or a picture is broken.
    """
    if not people:
        raise ConfigError(f"{config.name}: nobody to train on is left; see min_joints and min_height")
    config = config.resolve(len(people))
    chances = draw_weights(people, config)
    sections = []
    start = 0
    for number, phase in enumerate(config.phases, 1):
        height, width = phase.input_size
        draws = next(iter(Draw(chances, count, config.seed, start, Workers())))
        seen = [people[index] for index, _ in draws]
        kept = keep_crops(seen, config.largest_size)
        augmentation = phase.augmentation or config.augmentation
        crops = Crops(seen, kept, phase.input_size, SKELETONS[config.skeleton], augmentation, config.seed)
        tiles = _phase_tiles(config, crops, [number for _, number in draws])
        sections.append((f"phase {number}: {height}x{width}, crop and targets", tiles))
        start += phase.samples or 0
    write_sections(path, sections)


def _phase_tiles(config: TrainConfig, crops: Crops, samples: list[int]) -> list[np.ndarray]:
    codec = HeatmapCodec(crops.size, config.sigma_at(crops.size))
    tiles = []
    for index, (person, sample) in enumerate(zip(crops.people, samples, strict=True)):
        crop, keypoints, weights, _ = crops[index, sample]
        targets = codec.encode(torch.from_numpy(keypoints)[None])[0].numpy() * weights[:, None, None]
        size = (round(TILE[0] * crop.shape[1] / crop.shape[0]), TILE[0])
        scale = TILE[0] / crop.shape[0]
        large = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
        seen = draw_joints(np.asarray(large), (keypoints + 0.5) * scale - 0.5, weights, crops.skeleton)
        labelled = f"{int((weights > 0).sum())} of {len(weights)} joints in sight"
        text = [f"{config.data[person.set_index].name} {person.annotation}", labelled]
        tiles += [caption(seen, text, 2), caption(_glow(np.asarray(large), targets.sum(0)), ["", ""], 2)]
    return tiles


def _glow(crop: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """`crop` (h, w, 3) uint8 RGB, greyed, with `heatmap` (any size) over it from nothing through red to yellow."""
    height, width = crop.shape[:2]
    # UDP: the first and the last pixels' centres of map and crop coincide
    steps = np.array([[(width - 1) / (heatmap.shape[1] - 1), 0, 0], [0, (height - 1) / (heatmap.shape[0] - 1), 0]])
    heat = cv2.warpAffine(heatmap.astype(np.float32), steps, (width, height), borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    heat = np.clip(heat, 0, 1)[..., None]
    colour = np.concatenate([np.full_like(heat, 255), 255 * np.clip(2 * heat - 1, 0, 1), np.zeros_like(heat)], 2)
    strength = GLOW * np.clip(2 * heat, 0, 1)
    return np.asarray((1 - strength) * grey * 0.8 + strength * colour, np.uint8)
