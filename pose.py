"""The `pose` command. This one file stands above `app` and `training`, which do not know each other.

Imports of PyTorch and friends happen inside the commands, so that `pose --help` answers at once.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from model.errors import UserError
from training.data_commands import add_data_parsers

EXAMPLES = """examples:
  pose serve                                  start the service on http://127.0.0.1:8000
  POSE_PORT=9000 pose serve                   every setting is an environment variable; see `pose info`
  pose prepare                                convert the networks now instead of at the first start
  pose predict photo.jpg -o out               annotated picture and JSON, no server needed
  pose predict holiday/*.jpg -o out --flip-test
  pose data check shared_small:lsp            look through a data set; also: fetch, pack, show
  pose train shared_small                     train, or go on with, a shipped configuration
  pose label mine photos -o people.json       labels for pictures that nobody labelled
  pose validate sdhrnet_w32_coco              score a weight package
  pose publish runs/sdhrnet_w32_coco          turn a run into a weight package
  pose quantise runs/packages/mine            add what POSE_PRECISION=int8 needs, and measure what it costs
  pose export sdhrnet_w32_coco -o out         one ONNX or OpenVINO file for other programs
  pose train-detector --minutes 60            train the person detector
  pose info                                   packages, settings, device
"""

LARGE = ("torch", "ultralytics", "yaml", "pycocotools")  # what an installation for serving on a CPU may lack
HEADLINES = ("AP", "AP50", "PCK@0.2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one line on stderr and status 2."""
    # PyTorch's threads wait for each other after each of a thousand operations. They spin there, by default thirty
    # times as long as this, and on cores that others want too that slows all of them down (benchmarks/waiting.py)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except UserError as error:
        print(f"pose {options.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in LARGE:
            raise
        print(f"pose {options.command}: {error}; this installation can serve, but not do that", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line: one sub-command per task, each with its own `--help`."""
    parser = argparse.ArgumentParser(
        prog="pose", description="Human pose estimation: serve it, run it, train it.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"pose {version('pose-server')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    command("serve", serve, "start the HTTP service", "POSE_PORT=9000 pose serve")

    command(
        "prepare", prepare, "convert the networks of the settings, so that no start has to: serving on OpenVINO needs "
        "no PyTorch then", "POSE_CACHE=/srv/pose/cache pose prepare",
    )  # fmt: skip

    sub = command("predict", predict, "estimate poses in pictures, without a server", "pose predict *.jpg -o out")
    sub.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder for annotated pictures and JSON")
    sub.add_argument("--flip-test", action="store_true", help="average with the mirror image: slower, a little better")
    sub.add_argument("--max-persons", type=int, help="at most this many people per picture")

    add_data_parsers(command("data", data, "fetch, check, pack and show training data", ""))

    sub = command("train", train, "train a pose network, or go on with a run", "pose train shared_small")
    sub.add_argument("config", help="a shipped configuration's name or a YAML file")
    sub.add_argument("-o", "--output", dest="folder", type=Path, help="run folder (default: $POSE_RUNS/<name>)")
    sub.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="change the configuration, such as learning_rate=0.001 or phases.0.samples=1000; repeatable",
    )  # fmt: skip
    sub.add_argument("--init", metavar="PACKAGE", help="start from a package's weights, joints matched by name")
    sub.add_argument("--threads", type=int, help="CPU threads")

    sub = command("validate", validate, "score a weight package on labelled people", "pose validate sdhrnet_w32_coco")
    sub.add_argument("package", help="a bundled package's name or a folder")
    sub.add_argument(
        "--set", dest="sets", action="append", metavar="NAME",
        help="coco-val, lspet-val, coco2017-val or mpii-val; repeatable (default: those in POSE_DATA that fit)",
    )  # fmt: skip
    sub.add_argument("--annotations", type=Path, metavar="FILE", help="score a set of your own: its labels")
    sub.add_argument("--images", type=Path, metavar="FOLDER", help="and its pictures (default: beside the labels)")
    sub.add_argument("--detections", type=Path, metavar="FILE", help="boxes from a file in HRNet's format")
    sub.add_argument(
        "--detector", nargs="?", const="bundled", metavar="PACKAGE", help="boxes from a detector (default: the bundled)"
    )
    sub.add_argument(
        "--box-score", type=float, help="least score of a detected box (default: the service's; 0 for a file)"
    )
    sub.add_argument("--engine", default="torch", help="torch or openvino (default: torch in float32, the reference)")
    sub.add_argument(
        "--precision", help="of the engine: auto, f16 (on a GPU), bf16, f32 or int8 (default: auto, as the service)"
    )
    sub.add_argument("--no-flip-test", action="store_true", help="leave out the mirrored crops, as the service does")
    sub.add_argument(
        "--gallery", type=Path, metavar="FOLDER", help="draw the people of the lowest OKS into this folder"
    )
    sub.add_argument("--reliability", type=Path, metavar="PICTURE", help="draw how far scores can be believed")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")

    sub = command(
        "label", label, "label people by a package's own predictions, to train on pictures that nobody labelled",
        "pose label sdhrnet_w32_coco photos -o photos/people.json",
    )  # fmt: skip
    sub.add_argument("package", help="a bundled package's name or a folder")
    sub.add_argument(
        "set", type=Path, metavar="SET", help="a folder of pictures, or a COCO-format json whose boxes are taken"
    )
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a COCO-format json")
    sub.add_argument("--images", type=Path, help="where SET is a json: its pictures (default: the folder beside it)")
    sub.add_argument("--least", type=float, default=0.3, help="worth of a joint to be labelled (default: %(default)s)")

    sub = command("publish", publish, "turn a run into a weight package", "pose publish runs/sdhrnet_w32_coco")
    sub.add_argument("folder", type=Path, metavar="RUN")
    sub.add_argument("-o", "--output", type=Path, help="folder of packages (default: the bundled ones)")
    sub.add_argument("--size", help="input size HxW to serve at (default: the last phase's)")
    sub.add_argument(
        "--mix", nargs=2, metavar=("PACKAGE", "SHARE"),
        help="publish weights between the run's and a package's, which has SHARE of them, such as 0.35",
    )  # fmt: skip
    sub.add_argument("--force", action="store_true", help="replace a package that scores higher")

    sub = command("quantise", quantise, "add int8 ranges to a weight package", "pose quantise packages/mine")
    sub.description = (
        "Find int8 ranges for a package on real crops, measure what int8 costs in accuracy, and keep both with the "
        "package: POSE_PRECISION=int8 needs them. Needs the extra `quantise`; takes minutes. Run it again after every "
        "`pose publish`, which leaves them out, as they belong to one set of weights."
    )
    sub.add_argument("package", help="a bundled package's name or a folder")
    sub.add_argument("--crops", type=int, default=300, help="people to find ranges on (default: 300)")
    sub.add_argument(
        "--annotations", type=Path, metavar="FILE", help="their labels (default: COCO's training pictures)"
    )
    sub.add_argument("--images", type=Path, metavar="FOLDER", help="and pictures (default: beside the labels)")
    sub.add_argument(
        "--set", dest="sets", action="append", metavar="NAME",
        help="validation set to measure on; repeatable (default: those in POSE_DATA that fit)",
    )  # fmt: skip
    sub.add_argument("--val-annotations", type=Path, metavar="FILE", help="measure on a set of your own: its labels")
    sub.add_argument("--val-images", type=Path, metavar="FOLDER", help="and its pictures (default: beside the labels)")

    sub = command("export", export, "write a network as an ONNX or OpenVINO file", "")
    sub.epilog = (
        "examples:\n  pose export sdhrnet_w32_coco -o out\n  pose export packages/mine --format openvino -o out\n\n"
        "The file holds joints, input size and all else that its user needs; it is kept only if its keypoints on real\n"
        "people are those of PyTorch. See docs/export.md."
    )
    sub.add_argument("package", help="a bundled package's name or a folder")
    sub.add_argument("--format", choices=["onnx", "openvino"], default="onnx", help="default: onnx")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the file")

    sub = command("train-detector", train_detector, "train the person detector", "pose train-detector --minutes 60")
    sub.add_argument("-o", "--output", dest="folder", type=Path, help="run folder (default: $POSE_RUNS/detector)")
    sub.add_argument("--minutes", type=float, help="stop, with the schedule complete, after this time")
    sub.add_argument("--size", type=int, help="input size in pixels; --publish: to serve at")
    sub.add_argument("--threads", type=int, help="CPU threads")
    sub.add_argument("--init", type=Path, metavar="PACKAGE", help="folder of a detector package to start from")
    sub.add_argument(
        "--mosaic", type=float, metavar="PART", help="of the pictures, made of four (default: 0; 1 is ultralytics' own)"
    )
    sub.add_argument("--publish", action="store_true", help="only turn the run's weights into the bundled package")
    sub.add_argument(
        "--pose", default="sdhrnet_w32_coco", metavar="PACKAGE",
        help="--publish: with this pose package the least score of a box is chosen, end to end (default: %(default)s)",
    )  # fmt: skip

    sub = command("info", info, "show packages, settings and device", "pose info")
    sub.add_argument("--json", action="store_true")
    return parser


def serve(_: argparse.Namespace) -> int:
    """`pose serve`."""
    from app.main import serve as run
    from app.settings import load_settings

    return run(load_settings())


def prepare(options: argparse.Namespace) -> int:  # noqa: ARG001 - all commands are called alike
    """`pose prepare`."""
    from app.pipeline import Pipeline
    from app.settings import load_settings

    settings = load_settings()
    pipeline = Pipeline.load(settings)
    card = pipeline.package.card
    print(
        f"{card.name} {card.version} and detector {pipeline.detector.name} are ready for {pipeline.runtime.engine}: "
        f"{settings.cache_folder}"
    )
    return 0


def predict(options: argparse.Namespace) -> int:
    """`pose predict`."""
    from app.predict import predict_files
    from app.settings import load_settings

    return predict_files(
        load_settings(), options.pictures, options.output, flip_test=options.flip_test, max_persons=options.max_persons
    )


def data(options: argparse.Namespace) -> int:
    """`pose data`; see `training/data_commands.py`."""
    text, status = options.action(options)
    print(text)
    return int(status)


def train(options: argparse.Namespace) -> int:
    """`pose train`."""
    from training.config import data_folder, load_config, runs_folder
    from training.loop import train as run
    from training.memory import keep_memory

    keep_memory()
    changes = list(options.changes)
    changes += [f"{key}={value}" for key in ("init", "threads") if (value := getattr(options, key)) is not None]
    config = load_config(options.config, changes)
    folder = options.folder or runs_folder() / config.name
    print(json.dumps(run(config, data_folder(), folder)))
    return 0


def validate(options: argparse.Namespace) -> int:
    """`pose validate`."""
    from rich.console import Console

    from app.engines import build_engine
    from app.settings import load_settings
    from model.package import load_package
    from training.boxes import load_detector
    from training.report import build_report
    from training.validation import Request, run_validation

    package = load_package(options.package)
    settings = load_settings({"POSE_ENGINE": options.engine, "POSE_PRECISION": options.precision or "auto"})
    reference = options.engine == "torch" and options.precision in (None, "f32")
    engine = None if reference else build_engine(package, settings.engine, settings.precision)
    detector, score = options.detections, options.box_score
    if options.detector:
        detector = load_detector(options.detector)
        score = settings.box_score if score is None else score
        score = detector.least_score if score is None else score
    request = Request(
        options.sets, options.annotations, options.images, detector, score or 0.0, not options.no_flip_test,
        options.gallery, options.reliability,
    )  # fmt: skip
    report = run_validation(package, request, engine)
    name = options.engine + (f" {options.precision}" if options.precision else "")
    Console().print(build_report(package.card, name, report))
    if options.json:
        options.json.write_text(json.dumps([entry.model_dump() for entry in report], indent=2) + "\n")
    return 0


def label(options: argparse.Namespace) -> int:
    """`pose label`."""
    from app.engines import build_engine
    from model.package import load_package
    from training.boxes import load_detector
    from training.labelling import boxed_pictures, label_set, read_boxes, write_set

    package = load_package(options.package)
    if options.set.is_dir():
        images, content = options.set, boxed_pictures(options.set, load_detector("bundled"))
    else:
        images, content = options.images or options.set.parent, read_boxes(options.set)
    labelled = label_set(content, images, package, build_engine(package, "auto"), options.least)
    write_set(labelled, options.output)
    people = [annotation for annotation in labelled["annotations"] if annotation.get("num_keypoints")]
    joints = sum(annotation["num_keypoints"] for annotation in people)
    print(f"labelled {joints} joints of {len(people)} people in {len(labelled['images'])} pictures: {options.output}")
    return 0


def publish(options: argparse.Namespace) -> int:
    """`pose publish`."""
    from rich.console import Console

    from model.package import BUNDLED, read_card
    from training.config import data_folder
    from training.mixing import Mix
    from training.publishing import parse_size, publish_run
    from training.report import build_report

    size = parse_size(options.size) if options.size else None
    mix = Mix.parse(*options.mix) if options.mix else None
    packages = options.output or BUNDLED
    folder = publish_run(options.folder, data_folder(), packages, size, mix=mix, force=options.force)
    card = read_card(folder)
    Console().print(build_report(card, "torch", card.evaluation))
    print(f"published {folder}")
    return 0


def quantise(options: argparse.Namespace) -> int:
    """`pose quantise`."""
    from app.engines import build_engine, find_pose_ranges
    from app.engines.int8 import nncf_version
    from app.settings import load_settings
    from model.package import find_package, load_package
    from training.quantising import Tools, describe_loss
    from training.quantising import quantise as run
    from training.validation import Request

    package, folder = load_package(options.package), find_package(options.package)
    cache = load_settings().cache_folder
    tools = Tools(
        f"nncf {nncf_version()}",
        lambda crops: find_pose_ranges(package, crops, cache),
        lambda one, precision: build_engine(one, "openvino", precision),
    )
    calibration = Request(annotations=options.annotations, images=options.images)
    validation = Request(options.sets, options.val_annotations, options.val_images)
    card = run(package, folder, calibration, validation, options.crops, tools)
    assert card.int8 is not None
    shift = card.int8.shift
    print(f"float32 -> int8\n{describe_loss(card.int8.before, card.int8.after)}")
    print(f"{shift.joints} keypoints move by {shift.mean:.2f} pixels on average, 99th percentile {shift.high:.1f}")
    print(f"{folder} can be served with POSE_PRECISION=int8")
    return 0


def export(options: argparse.Namespace) -> int:
    """`pose export`."""
    from app.export import export as run
    from app.settings import load_settings
    from model.package import load_package

    files = run(load_package(options.package), options.format, options.output, load_settings().cache_folder)
    print("\n".join(str(file) for file in files))
    return 0


def train_detector(options: argparse.Namespace) -> int:
    """`pose train-detector`."""
    from model.package import BUNDLED, load_package
    from training.config import data_folder, runs_folder
    from training.detector import DetectorConfig, publish_detector
    from training.detector import train_detector as run

    folder = options.folder or runs_folder() / "detector"
    if options.publish:
        pose = load_package(options.pose)
        package = BUNDLED / "person_yolo26n"
        print(f"published {publish_detector(folder, package, pose, data=data_folder(), size=options.size)}")
        return 0
    given = {
        **{"minutes": options.minutes, "image_size": options.size},
        **{"threads": options.threads, "init": options.init, "mosaic": options.mosaic},
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    resume = (folder / "weights" / "last.pt").is_file()
    run(DetectorConfig.check(data=data_folder(), run=folder, resume=resume, **chosen))
    print(f"trained {folder}; `pose train-detector --output {folder} --publish` makes it the bundled detector")
    return 0


def info(options: argparse.Namespace) -> int:
    """`pose info`."""
    from app.engines.choice import has_cuda
    from app.settings import Settings, count_cores, load_settings
    from model.package import bundled_packages, find_package, read_card

    settings = load_settings()
    packages = {name: read_card(find_package(name)).model_dump(mode="json") for name in bundled_packages()}
    device = f"CPU, {count_cores()} cores"
    if has_cuda():
        import torch

        device = torch.cuda.get_device_name()
    if options.json:
        print(
            json.dumps({"device": device, "packages": packages, "settings": settings.model_dump(mode="json")}, indent=2)
        )
        return 0
    print(f"device    {device}\n\npose packages")
    for name, card in packages.items():
        height, width = card["input_size"]
        print(f"  {name}  {card['version']}  {height}x{width}  {card['skeleton']}  sha256 {card['sha256'][:12]}")
        for entry in card["evaluation"]:
            figures = "  ".join(f"{key} {value:.1f}" for key, value in entry["metrics"].items() if key in HEADLINES)
            print(f"    {entry['data']}, {entry['people']} people, {entry['boxes']} boxes: {figures}")
    print("\ndetectors\n  " + "\n  ".join(bundled_packages(pose=False)))
    print("\nsettings (environment variables)")
    for name, field in Settings.model_fields.items():
        print(f"  POSE_{name.upper()} = {getattr(settings, name)}\n      {field.description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
