"""Whole processes: killed and resumed, and several that train as one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from training.checkpoint import LATEST, load_checkpoint
from training.config import TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def configuration(config: TrainConfig, tmp_path: Path) -> Path:
    """Twenty steps, saved after every one."""
    fields = config.model_dump(mode="json") | {
        "phases": [{"input_size": [64, 48], "samples": 80, "batch": 4}],
        "checkpoint_minutes": 0,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def command(configuration: Path) -> list[str]:
    """`pose train`; options go behind it."""
    return [str(ROOT / "pose.py"), "train", str(configuration)]


@pytest.fixture
def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "POSE_DATA": str(data), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_a_killed_run_goes_on_bit_for_bit(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *command, "--output", str(whole)], env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        [sys.executable, *command, "--output", str(killed)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert any("saved at sample 40 of 80" in line for line in process.stderr), "the tenth step did not come"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 10 <= load_checkpoint(killed / LATEST)["step"] < 20
    go_on = [sys.executable, *command, "--output", str(killed)]
    subprocess.run(go_on, env=environment, check=True, capture_output=True)
    one, other = (load_checkpoint(folder / LATEST) for folder in (whole, killed))
    assert one["step"] == other["step"] == 20
    for part in ("network", "average"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())


def torchrun(processes: int, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A script run by several processes to its good end."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    finished = subprocess.run(
        launch + command, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    return finished


def six_steps(
    configuration: Path, environment: dict[str, str], processes: int, *changes: str
) -> tuple[list[float], int]:
    """Losses of one run's first steps, and how many of its batch norms the processes share; fails where the processes
    end with different weights."""
    script = [str(Path(__file__).with_name("print_losses.py")), str(configuration)]
    settings = ["learning_rate=0.003", "warmup_samples=0", "phases.0.batch=16", *changes]
    finished = torchrun(processes, script + settings, environment)
    assert finished.stderr.count("people used") == 1  # one set, and one process that says so
    losses, shared = json.loads(finished.stdout)
    assert losses[0] - losses[-1] > 0.05  # it learns, so later losses depend on the earlier steps
    return losses, shared


def test_two_processes_train_as_one(configuration: Path, environment: dict[str, str]) -> None:
    alone, _ = six_steps(configuration, environment, 1)
    together, shared = six_steps(configuration, environment, 2)
    assert shared > 0
    assert alone == pytest.approx(together, rel=2e-3)


def test_processes_may_keep_their_batch_statistics(configuration: Path, environment: dict[str, str]) -> None:
    _, shared = six_steps(configuration, environment, 2, "sync_batch_norm=false")
    assert shared == 0


def test_one_of_two_processes_writes_the_run(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun(2, [*command, "--output", str(run), "--set", "phases.0.samples=16"], environment)
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert [line.split(",")[0] for line in (run / "results.csv").read_text().splitlines()] == ["samples", "16"]
