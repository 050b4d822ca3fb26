"""From a request to a picture's bytes and its options, within the limits of size and time.

Three ways in: a form with the part `file`, the picture as the body, or JSON with the picture in base64. A body is held
in memory, never on disk, and is bounded by `max_bytes` while it arrives, whatever its headers say.
"""

import asyncio
import binascii
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import ClientGoneError, RequestError
from app.images import MEDIA_TYPES
from app.schemas import JsonRequest, Options
from app.settings import Settings

RAW_TYPES = (*MEDIA_TYPES, "application/octet-stream")
FORM, JSON = "multipart/form-data", "application/json"
ACCEPTED = ", ".join((FORM, *RAW_TYPES, JSON))
MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 * 1024  # of one option in a form; a thousand boxes fit
LINGER = 1.0  # seconds in which the rest of a refused body is thrown away, so that its sender reads the answer

Fields = Mapping[str, str]
Parsed = tuple[bytes, Options]


async def read_picture(
    request: Request, settings: Settings, in_pool: Callable[[Callable[..., Parsed], bytes, Fields], Awaitable[Parsed]]
) -> Parsed:
    """The picture's bytes, not yet looked at, and the options of query and body.

    Args:
        in_pool: runs a function off the event loop.

    Raises:
        RequestError: 400 malformed body, 408 too slow, 413 too many bytes, 415 type not accepted, 422 bad option.
        ClientGoneError: the client hung up.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in (FORM, JSON, *RAW_TYPES):
        await _linger(request)
        raise _closing(415, "unsupported_type", f"Content-Type {kind[:80]!r} is not accepted; accepted are {ACCEPTED}")
    query = _unique(request.query_params.multi_items())
    body = await _receive(request, settings)
    if kind == JSON:
        return await in_pool(_read_json, body, query)
    if kind == FORM:
        data, fields = await _read_form(request.headers, body)
        return data, _read_options([*query.items(), *fields])
    if not body:
        raise RequestError(400, "no_image", "the body is empty; send the picture as the body")
    return body, _read_options(query.items())


async def wait_for_hangup(request: Request) -> None:
    """Return when the client is gone; to be called once the body has arrived."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _receive(request: Request, settings: Settings) -> bytes:
    declared = request.headers.get("content-length", "")
    too_many = _closing(413, "too_many_bytes", f"the body has more than {settings.max_bytes} bytes, the limit")
    if declared.isdecimal() and int(declared) > settings.max_bytes:
        await _linger(request)
        raise too_many
    body = bytearray()
    try:
        async with asyncio.timeout(settings.receive_timeout):
            async for chunk in _chunks(request):
                body += chunk
                if len(body) > settings.max_bytes:
                    break
    except TimeoutError:
        message = f"the body took more than {settings.receive_timeout:g} s to arrive, the limit"
        raise _closing(408, "body_too_slow", message) from None
    if len(body) > settings.max_bytes:
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


async def _read_form(headers: Headers, body: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """The part `file` and the other fields."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    parser.spool_max_size = len(body)  # never to disk
    try:
        form = await parser.parse()
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError(400, "no_image", "the form has no file in its part `file`")
        data = await file.read()
    except MultiPartException as error:
        raise RequestError(400, "malformed_form", error.message) from None
    except (UnicodeError, LookupError) as error:  # of the charset that the content type names
        raise RequestError(400, "malformed_form", f"the form is not in the charset that it names: {error}") from None
    finally:
        for spooled in parser._files_to_close_on_error:  # also those of parts that were cut short
            spooled.close()
    if not data:
        raise RequestError(400, "no_image", "the file in the part `file` is empty")
    return data, [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _read_json(body: bytes, query: Fields) -> Parsed:
    try:
        parsed = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, JsonRequest) from None
    given = parsed.model_dump(include=parsed.model_fields_set - {"image"})
    options = _read_options([*query.items(), *given.items()])
    text = parsed.image.partition(",")[2] if parsed.image.startswith("data:") else parsed.image
    try:
        data = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:
        raise RequestError(400, "bad_base64", f"`image` is no base64: {error}") from None
    if not data:
        raise RequestError(400, "no_image", "`image` is empty")
    return data, options


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
