"""`pose predict`: the pipeline over files, without a server."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from app.images import ImageError, decode, encode
from app.pipeline import Pipeline
from app.schemas import ModelName, Options, PoseResponse
from app.settings import Settings
from model.drawing import draw
from model.errors import UserError

logger = logging.getLogger(__name__)


def predict_files(
    settings: Settings, pictures: Sequence[Path], output: Path, *, flip_test: bool, max_persons: int | None
) -> int:
    """Write `<name>.json` and the annotated `<name>.jpg` of every picture to the folder `output`.

    A file that is no picture is logged and left out.

    Returns:
        The exit status: 0, or 1 where a file was left out.

    Raises:
        UserError: two pictures would be written to one name, or a picture would be written over itself.
    """
    check_names(pictures, output)
    pipeline = Pipeline.load(settings)
    package = pipeline.package
    options = Options(flip_test=flip_test, max_persons=max_persons)
    model = ModelName(name=package.card.name, version=package.card.version)
    output.mkdir(parents=True, exist_ok=True)
    persons = failed = 0
    for path in track(pictures, "estimating poses", console=Console(stderr=True)):
        try:
            picture = decode(path.read_bytes(), settings.max_pixels)
        except (OSError, ImageError) as error:
            logger.error("%s is left out: %s", path, error)
            failed += 1
            continue
        result = pipeline.predict(picture, options)
        response = PoseResponse.build(result, package.skeleton.joints, model)
        drawn = draw(picture, result, package.skeleton, options.draw, settings.keypoint_score)
        write(output / f"{path.stem}.json", (response.model_dump_json(indent=2) + "\n").encode())
        write(output / f"{path.stem}.jpg", encode(drawn, "image/jpeg"))
        persons += len(result.boxes)
    logger.info("%d persons in %d pictures, written to %s", persons, len(pictures) - failed, output)
    return int(failed > 0)


def check_names(pictures: Sequence[Path], output: Path) -> None:
    """Nothing may be written twice, and no picture over itself.

    Raises:
        UserError: names the pictures in the way.
    """
    taken: dict[str, Path] = {}
    for path in pictures:
        if path.stem in taken:
            raise UserError(f"{taken[path.stem]} and {path} would both become {output / path.stem}.jpg: rename one")
        if path.resolve() == (output / f"{path.stem}.jpg").resolve():
            raise UserError(f"{path} would be written over by its own annotated picture: choose another output folder")
        taken[path.stem] = path


def write(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader never meets half a file."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)
