"""Weight packages: `<name>/weights.safetensors` (half precision) and `<name>/card.json`, checked when read. No pickle.

A package is all that serving needs: the card says how to build the network, cut its crops and read its heatmaps. It may
hold `int8.safetensors` as well, what int8 needs beside the weights (`pose quantise`).
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError

from model.card import Architecture, Card, Quantisation
from model.codec import HeatmapCodec
from model.errors import PackageError
from model.ranges import Ranges, read_ranges, write_ranges
from model.skeletons import SKELETONS, Skeleton

if TYPE_CHECKING:
    from torch import Tensor, nn

BUNDLED = Path(__file__).parent / "packages"
WEIGHTS, CARD, INT8 = "weights.safetensors", "card.json", "int8.safetensors"


@dataclass(frozen=True)
class Package:
    """A package on disk: its folder, its checked card, and what belongs to it. The network is read when it is asked
    for: an engine that has it converted already needs neither it nor PyTorch."""

    folder: Path
    card: Card
    skeleton: Skeleton
    codec: HeatmapCodec
    ranges: Ranges | None = None  # for int8

    @cached_property
    def network(self) -> "nn.Module":
        """In float32, evaluation mode, on the CPU.

        Raises:
            PackageError: the weights do not fit the architecture, or PyTorch is not installed.
        """
        return _read_network(self.folder, self.card.architecture)


def find_package(name_or_path: str) -> Path:
    """The folder of a bundled package's name, or of a path.

    Raises:
        PackageError: neither exists; names the bundled packages.
    """
    bundled = BUNDLED / name_or_path
    if bundled.parent == BUNDLED and (bundled / CARD).is_file():
        return bundled
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    raise PackageError(
        f"no weight package {name_or_path!r}: neither a bundled name ({', '.join(bundled_packages()) or 'none'}) "
        "nor a folder"
    )


def bundled_packages(*, pose: bool = True) -> list[str]:
    """Names of the pose packages that ship with the code, sorted; `pose=False` lists the detectors."""
    cards = sorted(BUNDLED.glob(f"*/{CARD}"))
    return [card.parent.name for card in cards if ("skeleton" in json.loads(card.read_text())) == pose]


def read_card(folder: Path) -> Card:
    """The package's card, checked against its own weights file and the code's networks and skeletons.

    Raises:
        PackageError: a file is missing, the card is malformed, or its checksum, architecture or skeleton do not fit.
    """
    for file in (CARD, WEIGHTS):
        if not (folder / file).is_file():
            raise PackageError(f"{folder} is no weight package: {file} is missing")
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PackageError(f"{folder / CARD}: {place}: {first['msg']}") from None
    if card.skeleton not in SKELETONS:
        raise PackageError(f"{folder / CARD}: unknown skeleton {card.skeleton!r}; known: {', '.join(SKELETONS)}")
    if card.architecture.joints != len(SKELETONS[card.skeleton]):
        raise PackageError(
            f"{folder / CARD}: the network has {card.architecture.joints} joints, "
            f"skeleton {card.skeleton} has {len(SKELETONS[card.skeleton])}"
        )
    found = hash_file(folder / WEIGHTS)
    if found != card.sha256:
        raise PackageError(
            f"{folder / WEIGHTS}: sha256 is {found}, the card says {card.sha256}: the file is damaged or not the "
            "card's; fetch the package again"
        )
    return card


def load_package(name_or_path: str) -> Package:
    """Read and check a package, its network too.

    Raises:
        PackageError: see `open_package` and `Package.network`.
    """
    package = open_package(name_or_path)
    _ = package.network
    return package


def open_package(name_or_path: str) -> Package:
    """Read and check a package, all but its network.

    Raises:
        PackageError: see `find_package` and `read_card`; or int8's ranges are missing, damaged or made for other
            weights.
    """
    folder = find_package(name_or_path)
    card = read_card(folder)
    try:
        rows = card.calibration.rows(SKELETONS[card.skeleton]) if card.calibration else ()
        codec = HeatmapCodec(card.input_size, card.codec.sigma, card.codec.activation, rows)
    except ValueError as error:
        raise PackageError(f"{folder / CARD}: {error}") from None
    ranges = _load_ranges(folder / INT8, card) if card.int8 else None
    return Package(folder, card, SKELETONS[card.skeleton], codec, ranges)


def _read_network(folder: Path, architecture: Architecture) -> "nn.Module":
    try:
        from safetensors.torch import load_file

        from model.networks import build
    except ModuleNotFoundError as error:
        raise PackageError(
            f"{folder}: this installation has no PyTorch ({error}), so it serves networks that are converted already, "
            "and this one is not: convert it where PyTorch is (`pose prepare`), and bring the cache folder"
        ) from None
    try:
        network: nn.Module = build(architecture.name, architecture.joints, **architecture.switches)
    except ValueError as error:
        raise PackageError(f"{folder / CARD}: {error}") from None
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()
        detail = " ".join(line.strip() for line in reason[:2])
        raise PackageError(f"{folder / WEIGHTS} does not fit {architecture.name}: {detail}") from None
    return network.eval()


def _load_ranges(path: Path, card: Card) -> Ranges:
    assert card.int8 is not None
    if not path.is_file() or hash_file(path) != card.int8.sha256:
        raise PackageError(f"{path} is missing or not the card's: fetch the package again, or run `pose quantise`")
    ranges = read_ranges(path)
    if ranges.weights != card.sha256:
        raise PackageError(f"{path} was made for other weights: run `pose quantise` again")
    return ranges


def write_package(folder: Path, fields: Mapping[str, Any], state: Mapping[str, "Tensor"]) -> Card:
    """Write a package beside its place, check it by reading it back, then move it there in one step.

    Args:
        folder: where the package shall stand; an older one there is replaced.
        fields: the card without `sha256`.
        state: the network's state dict; floating-point tensors are stored as float16.

    Raises:
        PackageError: what was written cannot be read back, or a weight does not fit half precision. The older
            package stays.
    """
    import torch
    from safetensors.torch import save_file

    half = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}
    for name, tensor in half.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise PackageError(f"{name} is not finite in half precision: this network cannot be published")
    with _written_beside(folder) as beside:
        save_file(half, beside / WEIGHTS)
        (beside / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone
        card = Card.model_validate({**fields, "sha256": hash_file(beside / WEIGHTS)})
        (beside / CARD).write_text(card.model_dump_json(indent=2) + "\n")
    return card


def add_ranges(folder: Path, ranges: Ranges, fields: Mapping[str, Any]) -> Card:
    """The package with int8's ranges in place of any older ones, written as `write_package` does.

    Args:
        fields: `Quantisation` without `sha256`.

    Raises:
        PackageError: the package is damaged, or the ranges were made for other weights.
    """
    card = read_card(folder)
    with _written_beside(folder) as beside:
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        write_ranges(beside / INT8, ranges)
        (beside / INT8).chmod(0o644)
        card = card.model_copy(update={"int8": Quantisation(**fields, sha256=hash_file(beside / INT8))})
        (beside / CARD).write_text(card.model_dump_json(indent=2) + "\n")
    return card


@contextlib.contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """A new folder beside the package's, to write into; afterwards it is checked by reading it, and takes its place.

    Raises:
        PackageError: what was written cannot be read back. The older package stays, as with any other error.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        load_package(str(beside))
        beside.chmod(0o755)
        replace_folder(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Move `new` to `folder`; what stood there is kept aside until the move is done, then removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
