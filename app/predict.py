"""`pose predict`: the pipeline over files, without a server."""

import logging
from collections.abc import Sequence
from pathlib import Path

from app.drawing import draw
from app.images import ImageError, decode, encode
from app.pipeline import Pipeline
from app.schemas import ModelName, Options, PoseResponse
from app.settings import Settings

logger = logging.getLogger(__name__)


def predict_files(
    settings: Settings, pictures: Sequence[Path], output: Path, *, flip_test: bool, max_persons: int | None
) -> int:
    """Write `<name>.json` and the annotated `<name>.jpg` of every picture to the folder `output`.

    A file that is no picture is logged and left out.

    Returns:
        The exit status: 0, or 1 where a file was left out.
    """
    pipeline = Pipeline.load(settings)
    package = pipeline.package
    options = Options(flip_test=flip_test, max_persons=max_persons)
    name = ModelName(name=package.card.name, version=package.card.version)
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in pictures:
        try:
            picture = decode(path.read_bytes(), settings.max_pixels)
        except (OSError, ImageError) as error:
            logger.error("%s is left out: %s", path, error)
            failed += 1
            continue
        result = pipeline.predict(picture, options)
        response = PoseResponse.build(result, package.skeleton.joints, name)
        drawn = draw(picture, result, package.skeleton, options.draw, settings.keypoint_score)
        (output / f"{path.stem}.json").write_text(response.model_dump_json(indent=2) + "\n")
        (output / f"{path.stem}.jpg").write_bytes(encode(drawn, "image/jpeg"))
        logger.info("%s: %d persons", path, len(result.boxes))
    return int(failed > 0)
