"""Configurations: the shipped ones load, and mistakes are named with the way out."""

from pathlib import Path

import pytest

from training.config import ConfigError, load_config, shipped_configs
from training.loop import learning_rate

GOOD = """
name: mine
data: [{name: a, annotations: a.json, images: a, licence: x}]
validation: {name: v, annotations: v.json, images: v, licence: x}
phases: [{input_size: [64, 48], samples: 1000}]
"""


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load(name: str) -> None:
    assert load_config(name).samples > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(GOOD + "learning_rte: 0.1", "unknown key 'learning_rte', did you mean 'learning_rate'", id="typo"),
        pytest.param(GOOD + "augmentation: {flp: 1}", "did you mean 'flip'", id="typo below"),
        pytest.param(GOOD + "network: resnet", "unknown name 'resnet'; known: sdhrnet_w32", id="unknown network"),
        pytest.param(GOOD + "skeleton: squid", "unknown name 'squid'; known: coco17", id="unknown skeleton"),
        pytest.param(GOOD + "seed: many", "seed: .*integer", id="wrong type"),
        pytest.param(GOOD.replace("64", "63"), "divisible by 4", id="impossible size"),
        pytest.param("name: [", "is no YAML", id="no yaml"),
        pytest.param("just words", "must hold keys and values", id="no mapping"),
        pytest.param("name: mine", "data: Field required", id="missing keys"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="shared_small"):
        load_config("nothing")


def test_the_rate_warms_up_stays_and_falls_to_zero(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + "learning_rate: 0.01\nwarmup_samples: 100\ndecay_from: 0.5\n")
    config = load_config(str(path))
    rates = [learning_rate(config, samples) for samples in (0, 49, 100, 500, 750, 1000)]
    assert rates == pytest.approx([1e-4, 5e-3, 1e-2, 1e-2, 5e-3, 0])
