"""`/v2` speaks the Open Inference Protocol: its paths, its bodies and its errors, as far as health and metadata go.

What the protocol says is written down below from https://github.com/kserve/open-inference-protocol, folder
specification/protocol: `inference_rest.md` for paths, fields and errors, `inference_grpc.md` for data types,
`open_inference_rest.yaml` for the fields that are required. They differ in places; what is said in any of them is held.
"""

import importlib.metadata
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from serving import Gate, Running, encode_picture, metric

PNG = encode_picture(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"
NAME, VERSION = "random_w16", "1"  # of the test servers' package
MODEL = f"/v2/models/{NAME}"

TEXT, TRUTH = {"type": "string"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
DATATYPES = ["BOOL", *(f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)), "FP16", "FP32", "FP64"]


def needs(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


TENSOR = needs(
    name=TEXT,
    datatype={"enum": [*DATATYPES, "BYTES"]},
    shape={"type": "array", "items": {"type": "integer", "minimum": -1}},  # -1: of any length
)
TENSORS = {"type": "array", "items": TENSOR}
ERROR = needs(error=TEXT)
SERVER = needs(name=TEXT, version=TEXT, extensions=TEXTS)
METADATA = needs({"versions": TEXTS}, name=TEXT, platform=TEXT, inputs=TENSORS, outputs=TENSORS)
READY = needs(name=TEXT, ready=TRUTH)
ROUTES = {  # path, with the part that is optional in the text and always there in the OpenAPI document: its 200 body
    "/v2": SERVER,
    "/v2/health/live": needs(live=TRUTH),
    "/v2/health/ready": needs(live=TRUTH, ready=TRUTH),  # the text says `live`, servers and its gRPC form `ready`
    "/v2/models/{name}": METADATA,
    "/v2/models/{name}/versions/{version}": METADATA,
    "/v2/models/{name}/ready": READY,
    "/v2/models/{name}/versions/{version}/ready": READY,
}
HEALTH = [route for route in ROUTES if "health" in route or route.endswith("ready")]
ABOUT_MODEL = [route for route in ROUTES if "{name}" in route]


def fill(route: str, name: str = NAME, version: str = VERSION) -> str:
    return route.format(name=name, version=version)


def check_error(response: httpx.Response, status: int, code: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    Draft202012Validator(ERROR).validate(body)
    assert words in body["error"]
    assert (body["code"], body["request_id"]) == (code, response.headers["x-request-id"])  # ours, beside it


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_answers_what_the_protocol_says(server: Running, route: str) -> None:
    response = server.client.get(fill(route))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    Draft202012Validator(ROUTES[route]).validate(response.json())


def test_the_description_has_the_same_routes_and_fields() -> None:
    description = json.loads(DESCRIPTION.read_text())
    described = {path: operations for path, operations in description["paths"].items() if path.startswith("/v2")}
    assert described.keys() == ROUTES.keys()  # and no `infer`
    for path, operations in described.items():
        assert operations.keys() == {"get"}
        reference = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        fields = description["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
        for name, schema in ROUTES[path]["properties"].items():
            assert fields[name]["type"] == schema["type"], (path, name)
    example = description["components"]["schemas"]["ModelMetadata"]["example"]
    Draft202012Validator(METADATA).validate(example)


def test_the_server_says_what_it_is_with_and_without_a_slash(server: Running) -> None:
    said = server.client.get("/v2").json()
    assert said == {"name": "pose-server", "version": importlib.metadata.version("pose-server"), "extensions": []}
    assert server.client.get("/v2/").json() == said


def test_the_model_is_the_one_that_serves(server: Running) -> None:
    shown, said = server.client.get("/model").json(), server.client.get(MODEL).json()
    assert (said["name"], said["versions"]) == (shown["name"], [shown["version"]])
    assert said["platform"] == f"{shown['engine']}_safetensors"
    assert said["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    assert said["outputs"] == [{"name": "result", "datatype": "BYTES", "shape": [1]}]
    assert server.client.get(f"{MODEL}/versions/{VERSION}").json() == said
    assert server.client.get(f"{MODEL}/ready").json() == {"name": NAME, "ready": True}


@pytest.mark.parametrize("route", ABOUT_MODEL)
def test_another_name_or_version_is_not_found(server: Running, route: str) -> None:
    other = server.client.get(fill(route, name="resnet50"))
    check_error(other, 404, "not_found", f"no model 'resnet50' is served here, only '{NAME}'")
    if "{version}" in route:
        check_error(server.client.get(fill(route, version="7")), 404, "not_found", f"only '{VERSION}'")


def test_pictures_are_not_taken_below_v2(server: Running) -> None:
    check_error(server.client.post(f"{MODEL}/infer", json={"inputs": []}), 404, "not_found")
    check_error(server.client.post(MODEL, json={}), 405, "method_not_allowed")
    assert server.client.get("/v2x").json()["error"]["code"] == "not_found"  # not below /v2: the service's own shape


def test_a_draining_server_is_live_but_not_ready(start: Callable[..., Running]) -> None:
    server = start()
    server.service.drain()
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2").status_code == 200
    for route in ["/v2/health/ready", *ABOUT_MODEL]:
        check_error(server.client.get(fill(route)), 503, "draining")


def test_a_server_whose_gpu_is_lost_is_neither_live_nor_ready(start: Callable[..., Running]) -> None:
    server = start()
    server.service.alive = False
    check_error(server.client.get("/v2/health/live"), 503, "gpu_lost")
    for route in ["/v2/health/ready", *ABOUT_MODEL]:
        check_error(server.client.get(fill(route)), 503, "not_ready")


@pytest.mark.parametrize("case", ["well", "draining", "lost"])
def test_the_health_routes_say_what_the_services_own_say(start: Callable[..., Running], case: str) -> None:
    server = start()
    if case == "draining":
        server.service.drain()
    server.service.alive = case != "lost"
    for own, theirs in (("/healthz", ["/v2/health/live"]), ("/readyz", ["/v2/health/ready", f"{MODEL}/ready"])):
        status = server.client.get(own).status_code
        assert [server.client.get(path).status_code for path in theirs] == [status] * len(theirs)


def test_probes_need_no_key_and_the_models_metadata_does(start: Callable[..., Running]) -> None:
    server = start(api_keys="secret")
    for route in ["/v2", "/v2/", *HEALTH]:
        assert server.client.get(fill(route)).status_code == 200
    for path in (MODEL, f"{MODEL}/versions/{VERSION}", f"{MODEL}/infer", f"{MODEL}/x/ready", "/v2/health/other"):
        check_error(server.client.get(path), 401, "unauthorized", "a key is needed")
    assert server.client.get(MODEL, headers={"X-API-Key": "secret"}).status_code == 200


def test_probes_are_answered_whatever_the_load(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, max_connections=1)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        for route in HEALTH:
            assert server.client.get(fill(route)).status_code == 200
        check_error(server.client.get(MODEL), 503, "too_many_connections")
        gate.opened.set()
        assert accepted.result().status_code == 200


def test_metrics_and_log_have_the_route_and_no_name_that_a_client_made_up(
    start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    with caplog.at_level(logging.INFO, "app.request"):
        for path in (MODEL, "/v2/models/made_up", f"{MODEL}/ready", "/v2/health/live"):
            server.client.get(path)
    for status in (200, 404):
        assert metric(server, f'pose_requests_total{{route="/v2/models/{{name}}",status="{status}"}}') == 1
    assert "made_up" not in server.client.get("/metrics").text + caplog.text
    assert [record.getMessage().split()[2] for record in caplog.records] == ["route=/v2/models/{name}"] * 2  # no probes
