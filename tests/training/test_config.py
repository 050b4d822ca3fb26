"""Configurations: the shipped ones load, and mistakes are named with the way out."""

from pathlib import Path

import pytest

from training.config import ConfigError, load_config, shipped_configs
from training.trainer import learning_rate

GOOD = """
name: mine
data: [{name: a, annotations: a.json, images: a, licence: x}]
validation: {name: v, annotations: v.json, images: v, licence: x}
phases: [{input_size: [64, 48], samples: 1000}]
"""


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load(name: str) -> None:
    assert load_config(name).resolve(1000).samples > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(GOOD + "learning_rte: 0.1", "unknown key 'learning_rte', did you mean 'learning_rate'", id="typo"),
        pytest.param(GOOD + "augmentation: {flp: 1}", "did you mean 'flip'", id="typo below"),
        pytest.param(GOOD + "network: resnet", "unknown name 'resnet'; known: sdhrnet_w32", id="unknown network"),
        pytest.param(GOOD + "skeleton: squid", "unknown name 'squid'; known: coco17", id="unknown skeleton"),
        pytest.param(GOOD + "seed: many", "seed: .*integer", id="wrong type"),
        pytest.param(GOOD.replace("64", "63"), "divisible by 4", id="impossible size"),
        pytest.param(GOOD.replace("samples: 1000", "epochs: 2, samples: 1000"), "either samples or epochs", id="both"),
        pytest.param(GOOD + "schedule: step", "step needs decay_steps", id="step without steps"),
        pytest.param(GOOD.replace("1000}", "9, batch: 6, accumulate: 4}"), "4 equal parts", id="unequal parts"),
        pytest.param(GOOD + "distillation: {techer: a}", "did you mean 'teacher'", id="typo in distillation"),
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


def test_a_configuration_extends_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD + "seed: 4\naugmentation: {flip: 0, scale: 0.1}\n")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nseed: 5\n")
    (tmp_path / "mine.yaml").write_text("extends: middle.yaml\naugmentation: {flip: 1}\n")
    config = load_config(str(tmp_path / "mine.yaml"), ["seed=6"])
    assert (config.name, config.seed, config.augmentation.flip) == ("mine", 6, 1)
    assert config.augmentation.scale == 0.35  # a key is taken whole
    assert load_config("ablation_scr").phases == load_config("coco_256x192_paper").phases


def test_a_configuration_changes_single_places_of_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: shared_small\nset: [data.3.weight=0.25, seed=5]\n")
    base, changed = load_config("shared_small"), load_config(str(tmp_path / "mine.yaml"))
    assert [entry.weight for entry in changed.data] == [2, 1.5, 1, 0.25, 1]
    assert (changed.data[:3], changed.seed) == (base.data[:3], 5)
    for wrong, message in (("data.9.weight=1", "must be a list"), ("[data.9.weight=1]", "no place 'data.9.weight'")):
        (tmp_path / "mine.yaml").write_text(f"extends: shared_small\nset: {wrong}\n")
        with pytest.raises(ConfigError, match=message):
            load_config(str(tmp_path / "mine.yaml"))


def test_a_configuration_that_extends_nothing_or_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: extends 'a\.yaml', which in the end extends b\.yaml itself"):
        load_config(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("extends: nothing\n")
    with pytest.raises(ConfigError, match="no configuration 'nothing'"):
        load_config(str(tmp_path / "a.yaml"))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="shared_small"):
        load_config("nothing")


def test_the_rate_warms_up_stays_and_falls_to_zero(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + "learning_rate: 0.01\nwarmup_samples: 100\ndecay_from: 0.5\n")
    config = load_config(str(path))
    rates = [learning_rate(config, samples) for samples in (0, 49, 100, 500, 750, 1000)]
    assert rates == pytest.approx([1e-4, 5e-3, 1e-2, 1e-2, 5e-3, 0])


def test_the_rate_falls_in_steps(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + "learning_rate: 0.01\nwarmup_samples: 0\nschedule: step\ndecay_steps: [0.8, 0.95]\n")
    config = load_config(str(path))
    rates = [learning_rate(config, samples) for samples in (0, 799, 800, 949, 950, 1000)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_epochs_become_samples_once_the_people_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD.replace("samples: 1000", "epochs: 2.5"))
    config = load_config(str(path))
    assert config.resolve(200).samples == 500
    assert config.resolve(200).resolve(7) == config.resolve(200)


def test_changes_reach_into_sections_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    changes = ["augmentation.flip=0", "phases.0.samples=64", "init=mine", "phases.0.input_size=[96, 72]"]
    config = load_config(str(path), changes)
    assert (config.augmentation.flip, config.phases[0].samples, config.init) == (0, 64, "mine")
    assert config.phases[0].input_size == (96, 72)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("flip", "must be key=value", id="no value"),
        pytest.param("augmentation.flp=1", "did you mean 'flip'", id="typo"),
        pytest.param("phases.3.samples=1", "no place 'phases.3.samples'", id="no such phase"),
        pytest.param("name.first=a", "no place 'name.first'", id="no section"),
        pytest.param("seed=[", "the value is no YAML", id="no yaml"),
        pytest.param("seed=many", "seed: .*integer", id="wrong type"),
    ],
)
def test_changes_that_cannot_be_made_are_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path), [change])
