"""Taking the files a data set needs out of its archive: only by their bare names, only into their own folder."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from training.archives import BLOCK, Archive, FetchError, Tick, need_room

PICTURES = (".jpg", ".jpeg", ".png")


def unpack(archive: Archive, path: Path, data: Path, tick: Tick) -> None:
    """Take what `archive` names out of the file `path`, into `data`; folders of pictures and files appear whole.

    A member's folder in the archive is ignored, so none can write elsewhere; links and devices are ignored too. All
    that is taken is read to its end, so that the archive's own checksums (CRC-32) are checked.

    Raises:
        FetchError: damaged, or something that should be in it is not; `path` is removed then. Or the disk is too small.
    """
    target = data / archive.target
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        found = _take(archive, path, beside, tick)
        missing = set(archive.files) - found if archive.files else set() if found else {"pictures"}
        if missing:
            raise FetchError(f"{path} has no {', '.join(sorted(missing))}: it is not the archive it should be")
        if archive.files:
            target.mkdir(exist_ok=True)
            for name in archive.files:
                (beside / name).replace(target / name)
        else:
            beside.rename(target)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        path.unlink()
        raise FetchError(f"{path} is damaged ({error}) and removed; run the command again") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take(archive: Archive, path: Path, folder: Path, tick: Tick) -> set[str]:
    """Write the wanted members to `folder`; returns their names."""
    names: set[str] = set()
    with _members(path) as (members, total):
        for member, size, done, stream in members:
            name = PurePosixPath(member).name
            wanted = name in archive.files if archive.files else name.lower().endswith(PICTURES)
            if wanted and not name.startswith("."):
                need_room(folder, size, name)
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(stream, file, BLOCK)
                names.add(name)
            tick(f"unpacking {path.name}", done, total)
    return names


@contextmanager
def _members(path: Path) -> Iterator[tuple[Iterator[tuple[str, int, int, IO[bytes]]], int | None]]:
    """Regular members as (name, bytes, bytes of the archive done, open stream), and the archive's bytes in all."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            yield _zipped(archive, infos), sum(info.compress_size for info in infos)
        return
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        yield _tarred(tar, raw), path.stat().st_size
        while plain.read(BLOCK):  # to the end, where gzip's checksum stands
            pass


def _zipped(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> Iterator[tuple[str, int, int, IO[bytes]]]:
    done = 0
    for info in infos:
        done += info.compress_size
        with archive.open(info) as stream:
            yield info.filename, info.file_size, done, stream


def _tarred(archive: tarfile.TarFile, raw: IO[bytes]) -> Iterator[tuple[str, int, int, IO[bytes]]]:
    for member in archive:
        stream = archive.extractfile(member) if member.isreg() else None
        if stream is not None:
            yield member.name, member.size, raw.tell(), stream
