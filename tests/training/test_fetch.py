"""Fetching data sets from a server that cuts the line, lies, has changed or says no: all of it on loopback."""

import functools
import hashlib
import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pose
from training import archives, fetch
from training.archives import ARCHIVES, Archive, FetchError

NOISE = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()  # does not compress: a long file


class Server:
    """What the next requests get, and what they asked for."""

    def __init__(self) -> None:
        self.content = b""
        self.tag: str | None = '"one"'
        self.modified: str | None = None
        self.ranges = True  # answers Range
        self.heeds_if_range = True
        self.cuts: list[int] = []  # of the next answers: bytes after which the line is cut
        self.statuses: list[int] = []  # of the next answers
        self.claims: int | None = None  # Content-Length, whatever the content is
        self.lengthless = False
        self.span: str | None = None  # Content-Range of a partial answer, whatever was asked
        self.requests: list[dict[str, str]] = []
        self.url = ""


class Answers(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: Any) -> None:
        self.told = server
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        told = self.told
        told.requests.append(dict(self.headers))
        if told.statuses and (status := told.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        start, body = 0, told.content
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = not told.heeds_if_range or self.headers.get("If-Range") in (None, told.tag, told.modified)
        if asked and told.ranges and same:
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", told.span or f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        body = body[start:]
        if told.tag:
            self.send_header("ETag", told.tag)
        if told.modified:
            self.send_header("Last-Modified", told.modified)
        if not told.lengthless:
            self.send_header("Content-Length", str(told.claims or len(body)))
        self.end_headers()
        self.wfile.write(body[: told.cuts.pop(0)] if told.cuts else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    told = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Answers, told))
    told.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield told
    http.shutdown()
    http.server_close()
    thread.join()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


PICTURES = {"val2017/a.jpg": NOISE, "val2017/b.jpg": b"second"}


def pictures(server: Server, digest: bool = True, size: bool = True, name: str = "val2017.zip") -> Archive:
    """An archive of two pictures that the server has."""
    server.content = zipped(**PICTURES) if name.endswith(".zip") else tarred(PICTURES)
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()
    length = len(server.content) if size else None
    return Archive("val", f"{server.url}/{name}", length, checksum if digest else None, 400_000, "coco/val2017")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"coco/val2017/a.jpg": NOISE, "coco/val2017/b.jpg": b"second"}


@pytest.mark.parametrize("name", ["val2017.zip", "val2017.tar.gz"])
def test_what_is_fetched_is_laid_out_and_not_fetched_again(server: Server, tmp_path: Path, name: str) -> None:
    archive = pictures(server, name=name)
    told: list[tuple[str, int, int | None]] = []
    assert fetch.fetch([archive], tmp_path, lambda *news: told.append(news)) == {"val": "fetched"}
    assert files(tmp_path) == WHOLE
    assert (f"downloading {name}", len(server.content), len(server.content)) in told
    assert {what.split()[0] for what, _, _ in told} == {"downloading", "checking", "unpacking"}
    assert fetch.fetch([archive], tmp_path) == {"val": "was there"}
    assert len(server.requests) == 1


def test_a_cut_line_costs_only_the_bytes_that_did_not_come(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.cuts = [100_000, 50_000]
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE
    asked = [(request.get("Range"), request.get("If-Range")) for request in server.requests]
    assert asked == [(None, None), ("bytes=100000-", '"one"'), ("bytes=150000-", '"one"')]


def test_a_line_that_breaks_often_is_no_error_as_long_as_bytes_come(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.cuts = [30_000] * 8
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE
    assert len(server.requests) == 9


def test_a_later_call_goes_on_where_the_line_stayed_cut(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.cuts, server.statuses = [100_000], [200, *[503] * 4]
    with pytest.raises(
        FetchError, match=r"broke at byte 100000 .* 503 Service Unavailable.*run the same command later"
    ):
        fetch.fetch([archive], tmp_path)
    assert set(files(tmp_path)) == {"downloads/val2017.zip.partial", "downloads/val2017.zip.partial.json"}
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE
    assert server.requests[-1]["Range"] == "bytes=100000-"


@pytest.mark.parametrize("heeds", [True, False], ids=["the server heeds If-Range", "the server ignores If-Range"])
def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server: Server, tmp_path: Path, heeds: bool) -> None:
    archive = pictures(server, digest=False, size=False)
    server.cuts, server.heeds_if_range = [100_000], heeds
    right, server.content = server.content, bytes(len(server.content))
    server.statuses = [200, *[500] * 4]
    with pytest.raises(FetchError, match="broke at byte 100000"):
        fetch.fetch([archive], tmp_path)
    server.content, server.tag = right, '"two"'
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.ranges, server.cuts = False, [100_000]
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE


def test_without_checksum_and_mark_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    archive = pictures(server, digest=False)
    server.tag, server.cuts = None, [100_000]
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE
    assert [request.get("Range") for request in server.requests] == [None, None]


def test_a_weak_tag_is_no_mark_and_a_date_is(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.tag, server.modified, server.cuts = 'W/"one"', "Wed, 01 Jan 2020 00:00:00 GMT", [100_000]
    fetch.fetch([archive], tmp_path)
    assert server.requests[-1]["If-Range"] == "Wed, 01 Jan 2020 00:00:00 GMT"


def test_a_whole_download_that_was_not_renamed_is_used(server: Server, tmp_path: Path) -> None:
    archive = pictures(server, size=False)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "val2017.zip.partial").write_bytes(server.content)
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE
    assert [request["Range"] for request in server.requests] == [f"bytes={len(server.content)}-"]


def test_a_length_that_is_a_lie_ends_in_an_error(server: Server, tmp_path: Path) -> None:
    archive = pictures(server, size=False)
    server.claims = len(server.content) + 1000
    server.ranges = False
    with pytest.raises(FetchError, match=rf"broke at byte {len(server.content)} and 5 tries brought nothing more"):
        fetch.fetch([archive], tmp_path)
    assert not (tmp_path / "coco").exists()


def test_another_length_than_the_known_one_is_refused_before_a_byte_is_kept(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.content += b"more"
    with pytest.raises(FetchError, match=rf"has {len(server.content)} bytes, {len(server.content) - 4} are expected"):
        fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == {}


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.content = server.content[:-1] + b"!"
    with pytest.raises(FetchError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}.*run the command again"):
        fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["val2017.zip", "val2017.tar.gz"])
@pytest.mark.parametrize("at", [0.5, -5], ids=["in the middle", "at the end"])
def test_without_a_checksum_the_archives_own_one_is_checked(
    server: Server, tmp_path: Path, name: str, at: float
) -> None:
    archive = pictures(server, digest=False, name=name)
    place = int(len(server.content) * at) if at > 0 else len(server.content) + int(at)
    if name.endswith(".zip") and at < 0:
        place = server.content.rindex(b"PK\x01\x02")  # the directory of the archive, at its end
    changed = bytearray(server.content)
    changed[place] ^= 0xFF
    server.content = bytes(changed)
    with pytest.raises(FetchError, match=r"is damaged .* and removed; run the command again"):
        fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 5), (429, 5)])
def test_a_server_that_says_no_is_one_error(server: Server, tmp_path: Path, status: int, tries: int) -> None:
    archive = pictures(server)
    server.statuses = [status] * 9
    with pytest.raises(FetchError, match=f"{re.escape(archive.url)}.*answers {status}"):
        fetch.fetch([archive], tmp_path)
    assert len(server.requests) == tries
    assert files(tmp_path) == {}


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.statuses = [500, 503]
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == WHOLE


def test_a_part_that_was_not_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    archive = pictures(server)
    server.cuts, server.span = [100_000], "bytes 7-9/300000"
    with pytest.raises(FetchError, match=r"asked for the bytes from 100000 on, the server sent '7-9/300000'"):
        fetch.fetch([archive], tmp_path)


def test_a_file_without_length_and_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    archive = pictures(server, digest=False, size=False)
    server.lengthless = True
    with pytest.raises(FetchError, match="a whole file cannot be told from a cut one"):
        fetch.fetch([archive], tmp_path)


def test_a_longer_file_here_than_there_says_what_to_remove(server: Server, tmp_path: Path) -> None:
    archive = pictures(server, size=False)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "val2017.zip.partial").write_bytes(server.content + b"more")
    with pytest.raises(FetchError, match=r"remove downloads/val2017.zip.partial"):
        fetch.fetch([archive], tmp_path)


def test_nobody_listening_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    archive = Archive("val", "http://127.0.0.1:9/val2017.zip", None, None, 1000, "coco/val2017")
    with pytest.raises(FetchError, match=r"http://127.0.0.1:9/val2017.zip: the line broke at byte 0"):
        fetch.fetch([archive], tmp_path)


@pytest.mark.parametrize("known", [True, False], ids=["from the table", "from the server"])
def test_a_full_disk_is_seen_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    archive = pictures(server, size=known)
    free = archives.SPARE + archive.unpacked + 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(FetchError, match=r"val2017.zip needs 0.1 GB more on the disk of .*make room"):
        fetch.fetch([archive], tmp_path)
    assert len(server.requests) == (0 if known else 1)
    assert files(tmp_path) == {}


def test_nothing_is_written_outside_the_folder(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    archive = pictures(server, digest=False, size=False, name="val2017.tar.gz")
    absolute = str(tmp_path / "escaped-too.jpg")
    outside = {"../../escaped.jpg": b"one", absolute: b"two", "val2017/.hidden.jpg": b"three"}
    server.content = tarred(outside, links={"val2017/link.jpg": "/etc/passwd"})
    fetch.fetch([archive], data)
    assert files(tmp_path) == {
        "deep/data/coco/val2017/escaped.jpg": b"one", "deep/data/coco/val2017/escaped-too.jpg": b"two",
    }  # fmt: skip


def test_only_the_files_asked_for_are_taken(server: Server, tmp_path: Path) -> None:
    server.content = zipped(**{"annotations/captions.json": b"no", "annotations/people.json": b"yes"})
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").write_text("stays")
    archive = Archive("annotations", f"{server.url}/a.zip", None, None, 100, "coco", ("people.json",))
    fetch.fetch([archive], tmp_path)
    assert files(tmp_path) == {"coco/people.json": b"yes", "coco/mine.txt": b"stays"}


@pytest.mark.parametrize(
    ("wanted", "missing"), [(("people.json",), "people.json"), ((), "pictures")], ids=["a file", "pictures"]
)
def test_an_archive_of_something_else_is_refused(
    server: Server, tmp_path: Path, wanted: tuple[str, ...], missing: str
) -> None:
    server.content = zipped(**{"readme.txt": b"hello"})
    archive = Archive("val", f"{server.url}/a.zip", None, None, 100, "coco/val2017", wanted)
    with pytest.raises(FetchError, match=f"has no {missing}: it is not the archive it should be"):
        fetch.fetch([archive], tmp_path)
    assert not (tmp_path / "coco" / "val2017").exists()


def test_the_command_fetches_what_it_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ARCHIVES, "coco", (pictures(server),))
    assert pose.main(["data", "fetch", "coco", "-o", str(tmp_path), "--only", "val"]) == 0
    assert files(tmp_path) == WHOLE
    shown = capsys.readouterr().out
    assert "val: fetched" in shown
    assert "terms: annotations CC BY 4.0" in shown
    assert pose.main(["data", "fetch", "coco", "-o", str(tmp_path), "--only", "train"]) == 2
    assert "coco has no part 'train', only val" in capsys.readouterr().err


def test_the_table_lays_sets_out_as_documented() -> None:
    targets = {(name, entry.part): (entry.target, entry.files) for name, table in ARCHIVES.items() for entry in table}
    assert targets == {
        ("coco", "annotations"): (
            "coco2017/annotations", ("person_keypoints_train2017.json", "person_keypoints_val2017.json"),
        ),
        ("coco", "val"): ("coco2017/val2017", ()),
        ("coco", "train"): ("coco2017/train2017", ()),
        ("mpii", "annotations"): ("mpii", ("mpii_human_pose_v1_u12_1.mat",)),
        ("mpii", "train"): ("mpii/images", ()),
    }  # fmt: skip
    for entry in (entry for table in ARCHIVES.values() for entry in table):
        assert entry.digest is None or hashlib.new(entry.digest.split(":")[0]).digest_size * 2 == len(
            entry.digest.split(":")[1]
        )
