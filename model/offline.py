"""Keep ultralytics and OpenVINO off the network, and ultralytics from changing the process that imports it."""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

INTEGRATIONS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")


def keep_openvino_offline() -> None:
    """OpenVINO sends usage figures when it is imported and when it converts, unless its telemetry package cannot be
    imported: see to that. Call it before anything imports OpenVINO.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def keep_ultralytics_offline(folder: Path | None = None) -> None:
    """Switch off every way in which ultralytics reaches for the network; call it before anything imports it.

    It asks two DNS servers while it is imported (`YOLO_OFFLINE`), installs missing packages (`YOLO_AUTOINSTALL`), sends
    usage figures and errors, talks to its platform where it finds a key, and hands figures to seven experiment
    trackers (settings). What it downloads by itself (checkpoints, fonts, pictures) is asked for by a name that is no
    file; this project gives it existing files only.

    Importing it also sets OMP_NUM_THREADS, OpenCV's threads and numpy's print options: they are put back.

    Args:
        folder: writable folder for its settings; a private one under the system's temporary folder where None.
            The user's own ultralytics settings are neither read nor written.

    Raises:
        RuntimeError: ultralytics was imported earlier, without these switches.
    """
    loaded = sys.modules.get("ultralytics.utils")
    if loaded is not None and (loaded.ONLINE or loaded.AUTOINSTALL):
        raise RuntimeError("ultralytics was imported before keep_ultralytics_offline(): call that first")
    os.environ.update({"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_API_KEY": ""})
    os.environ.setdefault("YOLO_VERBOSE", "false")
    if loaded is None:
        os.environ["YOLO_CONFIG_DIR"] = str(folder or _private_folder())
        _import_quietly()
    settings: Any = import_module("ultralytics.utils").SETTINGS
    off: dict[str, bool | str] = {"sync": False, "api_key": "", **dict.fromkeys(INTEGRATIONS, False)}
    if any(settings[key] != value for key, value in off.items()):
        settings.update(off)


def _import_quietly() -> None:
    import cv2
    import torch  # noqa: F401  reads OMP_NUM_THREADS, so it must come before ultralytics sets that to 1

    names = ("OMP_NUM_THREADS", "NUMEXPR_MAX_THREADS")
    environment = {name: os.environ.get(name) for name in names}
    threads, options = cv2.getNumThreads(), np.get_printoptions()
    import ultralytics.utils  # noqa: F401

    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    cv2.setNumThreads(threads)
    np.set_printoptions(**options)


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"pose-ultralytics-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = status.st_uid == os.getuid() and not folder.is_symlink() and not status.st_mode & 0o077
    except OSError:
        private = False
    return folder if private else Path(tempfile.mkdtemp(prefix="pose-ultralytics-"))
