"""Prometheus' rules and Grafana's dashboard: by themselves, and on a real Prometheus after real traffic."""

import json
import math
import re
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from serving import ROOT, wait_until
from watching import RULES, SHIPPED, Sample, Watched, needs, promtool, watching

from app.metrics import Metrics

DOCKER = ROOT / "docker"
CASES = sorted((SHIPPED / "tests").glob("*.yml"))
BOARD = json.loads((DOCKER / "grafana" / "dashboards" / "pose.json").read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ALL_RULES = [
    rule for path in RULES for group in yaml.safe_load(path.read_text("utf-8"))["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in ALL_RULES if "record" in rule}

# what has no data here and should have none: no GPU, and nothing is wrong
ONLY_ON_A_GPU = {"pose_gpu_memory_bytes", "pose_gpu_healthy"}
ONLY_WHEN_WRONG = {'ALERTS{alertstate="firing"}'}
DEPENDS_ON_THIS_MACHINE = {"PoseSlow"}  # whether it fires is a matter of what else runs here


def send_traffic(watched: Watched, pictures: dict[str, bytes]) -> dict[tuple[str, str], int]:
    """Real pictures in every way, and bytes that are none; returns how many requests got which answer."""
    sent: dict[tuple[str, str], int] = {}
    files = [("file", (name, data, "image/jpeg")) for name, data in pictures.items()]
    with httpx.Client(base_url=watched.url, timeout=60, trust_env=False) as client:

        def post(route: str, **arguments: Any) -> None:
            key = (route, str(client.post(route, **arguments).status_code))
            sent[key] = sent.get(key, 0) + 1

        for _ in range(4):
            for data in pictures.values():
                post("/pose", content=data, headers={"Content-Type": "image/jpeg"})
        post("/pose", files=files[:1], headers={"Accept": "image/jpeg"})
        post("/pose", content=b"no picture", headers={"Content-Type": "image/jpeg"})
        post("/pose/batch", files=files)
    return sent


def counted(watched: Watched) -> dict[tuple[str, str], int]:
    """What Prometheus counted, by route and status, where it is not 0."""
    samples = watched.ask('sum by (route, status) (pose_requests_total{route=~"/pose.*"}) > 0')
    return {(s["metric"]["route"], s["metric"]["status"]): int(s["value"][1]) for s in samples}


@pytest.fixture(scope="module")
def watched(
    pose_package: Path, pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Watched from before its first request to after its last; what was sent has been counted."""
    with watching(pose_package, tmp_path_factory.mktemp("watched")) as running:
        first = send_traffic(running, pictures)
        wait_until(lambda: counted(running) == first)  # a rate needs a sample before the second round
        second = send_traffic(running, pictures)
        assert first == second == {("/pose", "200"): 9, ("/pose", "400"): 1, ("/pose/batch", "200"): 1}
        wait_until(lambda: counted(running) == {key: 2 * count for key, count in first.items()})
        wait_until(lambda: running.value("pose:keypoint_score:mean1h") > 0)
        yield running


def fill_in(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h")


def has_data(samples: list[Sample]) -> bool:
    return bool(samples) and not all(math.isnan(float(sample["value"][1])) for sample in samples)


@cache
def selectors(expression: str) -> set[str]:
    """The series that an expression reads, each as a name with its matchers."""
    plain = re.sub(r"\b(by|on|ignoring|group_left|without)\s*\([^)]*\)", "", expression)
    return set(re.findall(r"\b(?:(?:pose|process|prometheus)_\w+|pose:[\w:]+|up\b)(?:\{[^}]*\})?", plain))


@needs("promtool")
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    assert len(RULES) == 2
    for path in RULES:
        promtool("check", "rules", path)


@needs("promtool")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_keep_quiet_when_they_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    cases = [case for path in CASES for case in yaml.safe_load(path.read_text("utf-8"))["tests"]]
    for alert in ALERTS:
        fires = [str(case["promql_expr_test"]) for case in cases if case["name"].startswith(f"{alert} fires")]
        quiet = [str(case["promql_expr_test"]) for case in cases if case["name"].startswith(f"{alert} is quiet")]
        assert fires, alert
        assert quiet, alert
        assert all(f'alertname="{alert}"' in expected for expected in fires), alert
        assert not any(f'alertname="{alert}"' in expected for expected in quiet), alert


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, name
        assert rule["annotations"]["runbook"] == "docs/deploy.md#alerts", name
        assert len(rule["annotations"]["description"]) > 80, name


def test_the_guide_explains_every_alert() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    assert '<a id="alerts"></a>' in text
    assert [name for name in ALERTS if f"`{name}`" not in text] == []


def test_grafana_knows_every_key_of_the_dashboard() -> None:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))

    def lost(ours: Any, theirs: Any, place: str) -> list[str]:
        if isinstance(ours, dict):
            return [
                found
                for key, value in ours.items()
                for found in (lost(value, theirs[key], f"{place}.{key}") if key in theirs else [f"{place}.{key}"])
            ]
        if isinstance(ours, list) and len(ours) == len(theirs):
            return [f for i, pair in enumerate(zip(ours, theirs, strict=True)) for f in lost(*pair, f"{place}[{i}]")]
        return [] if ours == theirs else [place]

    assert lost(BOARD, read, "dashboard") == []


def test_panels_answer_five_questions_from_top_to_bottom_and_none_covers_another() -> None:
    places = [(panel["gridPos"], panel) for panel in BOARD["panels"]]
    assert places == sorted(places, key=lambda place: (place[0]["y"], place[0]["x"]))
    assert [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"] == [
        "Is it up?", "Is it fast?", "Where does the time go?", "Is it saturated?", "What is it seeing?"
    ]  # fmt: skip
    cells = [
        (x, y) for at, _ in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8"))
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == source["datasources"][0]["uid"]
        assert panel["type"] in {"table", "heatmap"} or panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_what_has_data_on_a_gpu_only_is_shown_there() -> None:
    metrics = Metrics()
    metrics.watch_gpu(lambda: True)
    text = metrics.render().decode()
    assert [name for name in ONLY_ON_A_GPU if f"# TYPE {name} gauge" not in text] == []


@needs("prometheus")
def test_prometheus_counts_the_requests_that_were_sent(watched: Watched) -> None:
    assert counted(watched) == {("/pose", "200"): 18, ("/pose", "400"): 2, ("/pose/batch", "200"): 2}
    assert watched.value("pose_persons_per_image_count") == 18 + 2 * 2
    assert watched.value('pose_rejected_total{reason="not_an_image"}') == 2


@needs("prometheus")
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_data_and_names_its_lines_by_labels_that_exist(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        samples = watched.ask(fill_in(target["expr"]))
        if target["expr"] in ONLY_ON_A_GPU | ONLY_WHEN_WRONG:
            assert samples == []
            continue
        assert has_data(samples), target["expr"]
        for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
            assert all(sample["metric"].get(label) for sample in samples), f"{target['expr']}: no label {label}"


@needs("prometheus")
@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_rule_has_data(watched: Watched, name: str) -> None:
    assert has_data(watched.ask(RECORDED[name]))
    assert has_data(watched.ask(name))


@needs("prometheus")
@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_reads_series_that_exist_and_is_quiet_when_all_is_well(watched: Watched, name: str) -> None:
    expression = ALERTS[name]["expr"]
    read = selectors(expression)
    assert read
    for selector in read:
        assert (selector in ONLY_ON_A_GPU) != bool(watched.ask(selector)), selector
    firing = watched.ask(expression)
    assert firing == [] or name in DEPENDS_ON_THIS_MACHINE


@needs("prometheus")
def test_a_refused_package_and_a_service_that_is_gone_raise_their_alerts(pose_package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(pose_package, tmp_path / "package"))
    with watching(package, tmp_path) as running:
        wait_until(lambda: running.ask("ALERTS") == [])  # before its first scrape PoseDown was pending
        (package / "card.json").write_text("{")
        running.service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: bool(running.ask('ALERTS{alertname="PoseReloadRefused", alertstate="firing"}')))
        [alert] = running.client.get("/api/v1/alerts").json()["data"]["alerts"]
        assert alert["labels"]["severity"] == "warning"
        assert alert["annotations"]["summary"] == f"{running.url.removeprefix('http://')} refused a new weight package"
        running.service.popen.terminate()
        wait_until(lambda: bool(running.ask('ALERTS{alertname="PoseDown", alertstate="pending"}')))
        assert running.value('count(up{job="pose"} == 0)') == 1
