"""Settings come from `POSE_*` variables, and a slip in one is told, never swallowed."""

import os
from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, count_cores, load_settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()


def test_variables_set_their_fields() -> None:
    settings = load_settings({"POSE_PORT": "9000", "POSE_API_KEYS": "one, two,", "POSE_ENGINE": "torch", "HOME": "/"})
    assert (settings.port, settings.engine) == (9000, "torch")
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_folders_of_training_and_tests_are_not_taken_for_settings() -> None:
    assert load_settings({"POSE_DATA": "/data", "POSE_RUNS": "/runs"}) == Settings()


@pytest.mark.parametrize(
    ("variables", "finding"),
    [
        pytest.param({"POSE_PROT": "1"}, "POSE_PROT is no setting; did you mean POSE_PORT?", id="typing slip"),
        pytest.param({"POSE_XYZZY": "1"}, "POSE_XYZZY is no setting; known: POSE_HOST", id="nothing near"),
        pytest.param({"POSE_PORT": "eighty"}, "POSE_PORT='eighty'", id="not a number"),
        pytest.param({"POSE_PORT": "99999"}, "POSE_PORT='99999'", id="out of range"),
        pytest.param({"POSE_ENGINE": "onnx"}, "POSE_ENGINE='onnx'", id="no such choice"),
        pytest.param({"POSE_MAX_PERSONS": "0"}, "POSE_MAX_PERSONS='0'", id="too low"),
    ],
)
def test_a_slip_is_named(variables: dict[str, str], finding: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(variables)
    assert finding in str(caught.value)


def test_every_slip_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"POSE_PROT": "1", "POSE_THREADS": "-1", "POSE_MODLE": "x"})
    assert len(str(caught.value).splitlines()) == 3


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_keys_do_not_show_in_logs() -> None:
    assert "secret" not in repr(load_settings({"POSE_API_KEYS": "secret"}))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        pytest.param("max 100000\n", 8, id="no quota"),
        pytest.param("250000 100000\n", 2, id="two and a half cores"),
        pytest.param("50000 100000\n", 1, id="half a core"),
        pytest.param("9900000 100000\n", 8, id="more than there are"),
        pytest.param("nonsense", 8, id="unreadable"),
        pytest.param(None, 8, id="no such file"),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    assert count_cores(file) == cores


@pytest.mark.parametrize(("cores", "decoding"), [(1, 1), (2, 1), (8, 4), (128, 16)])
def test_threads_fit_the_machine_where_they_are_not_set(
    monkeypatch: pytest.MonkeyPatch, cores: int, decoding: int
) -> None:
    monkeypatch.setattr("app.settings.count_cores", lambda: cores)
    settings = load_settings({"POSE_THREADS": "0"})
    assert (settings.threads, settings.decode_threads) == (cores, decoding)
    assert load_settings({"POSE_THREADS": "3", "POSE_DECODE_THREADS": "7"}).threads == 3
    assert load_settings({"POSE_DECODE_THREADS": "7"}).decode_threads == 7
