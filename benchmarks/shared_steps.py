"""The service's own steps and engines, as the peer frameworks carry them: several pictures in, their answers out."""

from dataclasses import replace

from app.images import Picture, decode
from app.pipeline import Pipeline
from app.schemas import ModelName, Options, PoseResponse
from app.settings import Settings

STAGES = ("decode", "detect", "pose", "queue", "total")  # of the answer's timings, which no framework here measures


class Steps:
    """The pipeline for batches that a framework has put together. `answer` belongs to one thread at a time."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.pipeline = Pipeline.load(self.settings)
        card = self.pipeline.package.card
        self.model = ModelName(name=card.name, version=card.version)
        self.options = self.pipeline.complete(Options())

    def decode(self, data: bytes) -> Picture:
        """A JPEG file as (H, W, 3) uint8 RGB; from any thread."""
        return decode(data, self.settings.max_pixels)

    def answer(self, pictures: list[Picture]) -> list[bytes]:
        """The service's JSON for each picture; the pose network runs on the people of all of them together."""
        pipeline, most = self.pipeline, self.settings.max_batch
        found = [pipeline.select(one, self.options) for one in pipeline.detect(pictures)]
        cuts = [pipeline.cut(picture, boxes, self.options) for picture, (boxes, _) in zip(pictures, found, strict=True)]
        crops = [crop for own, _ in cuts for crop in own]
        joints = [joint for i in range(0, len(crops), most) for joint in pipeline.pose(crops[i : i + most])]
        answers, taken = [], 0
        for picture, (boxes, scores), (own, affines) in zip(pictures, found, cuts, strict=True):
            people = joints[taken : taken + len(own)]
            taken += len(own)
            result = pipeline.assemble(picture, boxes, scores, people, affines, self.options)
            result = replace(result, timings=dict.fromkeys(STAGES, 0.0))
            response = PoseResponse.build(result, pipeline.package.skeleton.joints, self.model)
            answers.append(response.model_dump_json().encode())
        return answers
