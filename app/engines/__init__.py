"""What runs the networks, behind `model.inference.Engine`: OpenVINO on the CPU, PyTorch on a GPU."""

from app.engines.choice import (
    Runtime,
    build_engine,
    choose_runtime,
    convert_apart,
    create_engine,
    create_pose_engine,
    find_pose_ranges,
)

__all__ = [
    "Runtime",
    "build_engine",
    "choose_runtime",
    "convert_apart",
    "create_engine",
    "create_pose_engine",
    "find_pose_ranges",
]
