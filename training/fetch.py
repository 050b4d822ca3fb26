"""`pose data fetch`: the official archives of COCO 2017 and MPII, downloaded, checked and laid out for training.

A download is kept in `<data>/downloads/<name>.partial` until it is whole and its checksum is right, so a cut line costs
nothing but the bytes lost: it goes on from there by HTTP Range, now or in a later call, as long as the server still has
the same file (If-Range). Pictures are unpacked beside their folder, which is renamed when it is complete: what stands
at its final place is whole.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from training.archives import BLOCK, Archive, FetchError, Tick, need_room
from training.unpacking import unpack

TRIES = 5  # times in a row that a line may break before a single byte has come
PAUSE = 1.0  # seconds before the next try; doubled every time
TIMEOUT = httpx.Timeout(30.0)  # seconds without a byte


class _LineCutError(Exception):
    """The line broke; what came so far is kept."""


def fetch(
    archives: Sequence[Archive], data: Path, tick: Tick = lambda what, done, total: None  # noqa: ARG005
) -> dict[str, str]:  # fmt: skip
    """Download and unpack what is not there yet; returns `fetched` or `was there` by the archives' parts.

    Raises:
        FetchError: the disk is too small, the server does not answer or answers something else, the checksum is wrong,
            the archive is damaged. What is whole stays; a call once more goes on from there.
    """
    done = {archive.part: "was there" for archive in archives if archive.is_there(data)}
    wanted = [archive for archive in archives if archive.part not in done]
    downloads = data / "downloads"
    try:
        if wanted:
            downloads.mkdir(parents=True, exist_ok=True)
        for archive in wanted:
            path = download(archive, downloads, tick)
            unpack(archive, path, data, tick)
            path.unlink()
            done[archive.part] = "fetched"
        if downloads.is_dir() and not any(downloads.iterdir()):
            downloads.rmdir()
    except OSError as error:
        raise FetchError(f"{data} cannot be written: {error}; make room and run the same command to go on") from None
    return done


def download(archive: Archive, folder: Path, tick: Tick) -> Path:
    """The archive's file in `folder`, whole and with the right checksum; see `fetch` for the errors."""
    path = folder / archive.name
    if path.is_file():
        return path  # whole: it gets this name only then
    partial = path.with_name(path.name + ".partial")
    need_room(folder, (archive.size or 0) - _length(partial) + archive.unpacked, archive.name)
    tries, most = 0, _length(partial)
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"}) as client:
        while True:
            try:
                _receive(client, archive, partial, tick)
                break
            except (_LineCutError, httpx.RequestError) as error:
                tries = 1 if _length(partial) > most else tries + 1
                most = max(most, _length(partial))
                if tries >= TRIES:
                    raise FetchError(
                        f"{archive.url}: the line broke at byte {_length(partial)} and {TRIES} tries brought nothing "
                        f"more ({error or type(error).__name__}); run the same command later to go on from there"
                    ) from None
                time.sleep(PAUSE * 2 ** (tries - 1))
    _check_digest(archive, partial, tick)
    partial.replace(path)
    _notes(partial).unlink(missing_ok=True)
    return path


def _receive(client: httpx.Client, archive: Archive, partial: Path, tick: Tick) -> None:
    """Append what is missing of `partial`; returns when it is as long as the server says."""
    have = _length(partial)
    mark = _mark_of(partial) if have else None
    if have and mark is None and archive.digest is None:
        have = 0  # nothing would show that the server's file is still the same
    if have and archive.size == have:
        return
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if mark is not None:
            headers["If-Range"] = mark
    with client.stream("GET", archive.url, headers=headers) as response:
        start, total = _span(archive, response, have)
        if start is None:  # nothing is missing
            return
        if start and mark is not None and _mark_in(response) not in (None, mark):
            partial.unlink()
            raise _LineCutError("the server's file has changed and is fetched from the start")
        if archive.size is not None and total is not None and total != archive.size:
            raise FetchError(
                f"{archive.url}: the server has {total} bytes, {archive.size} are expected: its file has changed, or "
                "something between here and there answers in its place"
            )
        if total is None and archive.digest is None:
            raise FetchError(f"{archive.url}: the server says no length, so a whole file cannot be told from a cut one")
        if archive.size is None and total is not None:
            need_room(partial.parent, total - start + archive.unpacked, archive.name)
        _notes(partial).write_text(json.dumps({"url": archive.url, "mark": _mark_in(response)}))
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            at = start
            for block in response.iter_raw():
                at += file.write(block)
                tick(f"downloading {archive.name}", at, total)
    if total is not None and _length(partial) != total:
        raise _LineCutError(f"{_length(partial)} of {total} bytes came")


def _span(archive: Archive, response: httpx.Response, have: int) -> tuple[int | None, int | None]:
    """The byte that the answer starts at, and the file's length where the server says it; (None, length) where a
    file of `have` bytes is whole already."""
    status = response.status_code
    if status == httpx.codes.PARTIAL_CONTENT:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or span.split("-")[0] != str(have) or not total.isdigit():
            raise FetchError(f"{archive.url}: asked for the bytes from {have} on, the server sent {rest or 'others'!r}")
        return have, int(total)
    if status == httpx.codes.OK:  # the server does not do ranges, or its file has changed: from the start
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return None, have
        raise FetchError(
            f"{archive.url}: {have} bytes are here, the server has {total or 'fewer'}: remove downloads/{archive.name}"
            ".partial and run the command again"
        )
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        raise _LineCutError(f"the server answers {status} {response.reason_phrase}")
    raise FetchError(f"{archive.url}: the server answers {status} {response.reason_phrase}; has the file moved?")


def _mark_in(response: httpx.Response) -> str | None:
    """What tells this version of the file from another: a strong ETag, else the date of its last change."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _mark_of(partial: Path) -> str | None:
    try:
        mark = json.loads(_notes(partial).read_text())["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if isinstance(mark, str) else None


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_digest(archive: Archive, partial: Path, tick: Tick) -> None:
    if archive.digest is None:
        return
    algorithm, _, expected = archive.digest.partition(":")
    digest, done, total = hashlib.new(algorithm, usedforsecurity=False), 0, _length(partial)
    with partial.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            tick(f"checking {archive.name}", done, total)
    if digest.hexdigest() != expected:
        partial.unlink()
        _notes(partial).unlink(missing_ok=True)
        raise FetchError(
            f"{archive.url}: {algorithm} is {digest.hexdigest()}, expected {expected}: damaged on the way, or the "
            "server's file has changed. It is removed; run the command again"
        )
