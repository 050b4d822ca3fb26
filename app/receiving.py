"""From a request to pictures' bytes and their options, within the limits of size and time.

Three ways in: a form with the part `file`, the picture as the body, or JSON with the picture in base64; two for several
pictures: a form with several such parts, or JSON with a list. A body is held in memory, never on disk, and is bounded
by `max_bytes` (`max_pictures_bytes`) while it arrives, whatever its headers say.
"""

import asyncio
import binascii
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import ClientGoneError, RequestError
from app.images import MEDIA_TYPES
from app.schemas import JsonBatchRequest, JsonRequest, Options
from app.settings import Settings

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")
FORM, JSON = "multipart/form-data", "application/json"
ONE_PICTURE, SEVERAL_PICTURES = (FORM, *RAW_TYPES, JSON), (FORM, JSON)
MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 * 1024  # of one option in a form; a thousand boxes fit
CHUNK = 2**20  # bytes of a form that are looked through before others get the event loop
LINGER = 1.0  # seconds in which the rest of a refused body is thrown away, so that its sender reads the answer

Fields = Mapping[str, str]
Parsed = tuple[bytes, Options]
Several = tuple[Sequence[bytes | RequestError], Options]
InPool = Callable[..., Awaitable[Any]]


async def read_picture(request: Request, settings: Settings, in_pool: InPool) -> Parsed:
    """The picture's bytes, not yet looked at, and the options of query and body.

    Args:
        in_pool: runs a function off the event loop.

    Raises:
        RequestError: 400 malformed body, 408 too slow, 413 too many bytes, 415 type not accepted, 422 bad option.
        ClientGoneError: the client hung up.
    """
    kind, query, body = await _read_body(request, ONE_PICTURE, settings.max_bytes, settings.receive_timeout)
    if kind == JSON:
        parsed: Parsed = await in_pool(_read_json, body, query)
        return parsed
    if kind == FORM:
        files, fields = await _read_form(request.headers, body, 1)
        if not files[0]:
            raise RequestError(400, "no_image", "the file in the part `file` is empty")
        return files[0], _read_options([*query.items(), *fields])
    if not body:
        raise RequestError(400, "no_image", "the body is empty; send the picture as the body")
    return body, _read_options(query.items())


async def read_pictures(request: Request, settings: Settings, in_pool: InPool) -> Several:
    """The bytes of several pictures, not yet looked at, in order, and the options of query and body for all of them.

    In place of a picture that is empty, over `max_bytes` or no base64 stands the error that is its answer.

    Args:
        in_pool: runs a function off the event loop.

    Raises:
        RequestError, ClientGoneError: as `read_picture`; also 413 too many pictures.
    """
    limit = settings.max_pictures_bytes
    kind, query, body = await _read_body(request, SEVERAL_PICTURES, limit, settings.receive_timeout)
    pictures: Sequence[bytes | RequestError]
    if kind == JSON:
        pictures, options = await in_pool(_read_json_batch, body, query, settings.max_pictures)
    else:
        pictures, fields = await _read_form(request.headers, body, settings.max_pictures)
        options = _read_options([*query.items(), *fields])
    return [_check_size(picture, settings.max_bytes) for picture in pictures], options


async def wait_for_hangup(request: Request) -> None:
    """Return when the client is gone; to be called once the body has arrived."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_size(picture: bytes | RequestError, limit: int) -> bytes | RequestError:
    if isinstance(picture, RequestError):
        return picture
    if not picture:
        return RequestError(400, "no_image", "the picture is empty")
    if len(picture) > limit:
        message = f"the picture has {len(picture)} bytes, the limit is {limit}: send a smaller one"
        return RequestError(413, "too_many_bytes", message)
    return picture


async def _read_body(
    request: Request, accepted: Collection[str], most: int, seconds: float
) -> tuple[str, dict[str, Any], bytes]:
    """The content type, the query and the body of at most `most` bytes."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in accepted:
        await _linger(request)
        message = f"Content-Type {kind[:80]!r} is not accepted; accepted are {', '.join(accepted)}"
        raise _closing(415, "unsupported_type", message)
    return kind, _unique(request.query_params.multi_items()), await _receive(request, most, seconds)


async def _receive(request: Request, most: int, seconds: float) -> bytes:
    declared = request.headers.get("content-length", "")
    too_many = _closing(413, "too_many_bytes", f"the body has more than {most} bytes, the limit")
    if declared.isdecimal() and int(declared) > most:
        await _linger(request)
        raise too_many
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in _chunks(request):
                body += chunk
                if len(body) > most:
                    break
    except TimeoutError:
        message = f"the body took more than {seconds:g} s to arrive, the limit"
        raise _closing(408, "body_too_slow", message) from None
    if len(body) > most:
        await _linger(request)
        raise too_many
    return bytes(body)


async def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _linger(request: Request) -> None:
    """Throw the rest of a body away for a while: closing on a sender who still sends would lose him the answer."""
    if request.headers.get("expect", "").lower() == "100-continue":
        return  # he waits for a sign before he sends
    try:
        async with asyncio.timeout(LINGER):
            async for _ in _chunks(request):
                pass
    except TimeoutError:
        return


def _closing(status: int, code: str, message: str) -> RequestError:
    """A refusal after which the connection is closed, since the body may not have been read."""
    return RequestError(status, code, message, {"Connection": "close"})


async def _read_form(headers: Headers, body: bytes, most: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    """The files of the parts `file`, one at least, and the other fields."""

    async def stream() -> AsyncGenerator[bytes, None]:
        for i in range(0, len(body), CHUNK):
            yield body[i : i + CHUNK]
            await asyncio.sleep(0)

    parser = MultiPartParser(headers, stream(), max_files=most, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    parser.spool_max_size = len(body)  # never to disk
    try:
        form = await parser.parse()
        files = form.getlist("file")
        if not files or any(isinstance(file, str) for file in files):
            raise RequestError(400, "no_image", "the form has no file in its part `file`")
        others = [name for name, value in form.multi_items() if isinstance(value, UploadFile) and name != "file"]
        if others:
            raise RequestError(400, "malformed_form", f"a file in the part {others[0][:40]!r}; files go into `file`")
        data = [await file.read() for file in files if isinstance(file, UploadFile)]
    except MultiPartException as error:
        if most > 1 and error.message.startswith("Too many files"):
            raise _too_many_pictures(most) from None
        raise RequestError(400, "malformed_form", error.message) from None
    except (UnicodeError, LookupError) as error:  # of the charset that the content type names
        raise RequestError(400, "malformed_form", f"the form is not in the charset that it names: {error}") from None
    finally:
        for spooled in parser._files_to_close_on_error:  # also those of parts that were cut short
            spooled.close()
    return data, [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _too_many_pictures(most: int) -> RequestError:
    return RequestError(
        413, "too_many_pictures", f"more than {most} pictures, the limit of one request: send them in several"
    )


def _read_json(body: bytes, query: Fields) -> Parsed:
    try:
        parsed = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, JsonRequest) from None
    options = _merge(parsed, query, "image")
    data = _read_base64(parsed.image, "image")
    if not data:
        raise RequestError(400, "no_image", "`image` is empty")
    return data, options


def _read_json_batch(body: bytes, query: Fields, most: int) -> Several:
    try:
        parsed = JsonBatchRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, JsonBatchRequest) from None
    options = _merge(parsed, query, "images")
    if not parsed.images:
        raise RequestError(400, "no_image", "`images` is empty")
    if len(parsed.images) > most:
        raise _too_many_pictures(most)
    pictures: list[bytes | RequestError] = []
    for i, text in enumerate(parsed.images):
        try:
            pictures.append(_read_base64(text, f"images.{i}"))
        except RequestError as error:
            pictures.append(error)
    return pictures, options


def _merge(parsed: Options, query: Fields, *own: str) -> Options:
    """The options of the query and of the JSON, of which `own` are none."""
    given = parsed.model_dump(include=parsed.model_fields_set.difference(own))
    return _read_options([*query.items(), *given.items()])


def _read_base64(text: str, name: str) -> bytes:
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:
        raise RequestError(400, "bad_base64", f"`{name}` is no base64: {error}") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Options by name; a form's empty fields count as not filled in."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if value == "":
            continue
        if name in fields:
            raise RequestError(422, "bad_option", f"{name[:40]!r} is given twice")
        fields[name] = value
    return fields


def _read_options(pairs: Iterable[tuple[str, Any]]) -> Options:
    try:
        return Options.model_validate(_unique(pairs))
    except ValidationError as error:
        raise _explain(error, Options) from None


def _explain(error: ValidationError, schema: type[BaseModel]) -> RequestError:
    """The first finding, named."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:40] for part in found["loc"]) or "the body"
    if found["type"] == "json_invalid":
        return RequestError(400, "malformed_json", found["msg"])
    if found["type"] == "extra_forbidden":
        known = ", ".join(schema.model_fields)
        return RequestError(422, "bad_option", f"{place}: no such option; known: {known}")
    return RequestError(422, "bad_option", f"{place}: {found['msg'].removeprefix('Value error, ')}")
