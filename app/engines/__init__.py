"""What runs the networks, behind `model.inference.Engine`: OpenVINO on the CPU, PyTorch on a GPU."""

from model.offline import keep_openvino_offline

keep_openvino_offline()

from app.engines.choice import (  # noqa: E402
    Runtime,
    build_engine,
    choose_runtime,
    convert_apart,
    create_engine,
    create_pose_engine,
    find_pose_ranges,
    on_one_core,
)

__all__ = [
    "Runtime",
    "build_engine",
    "choose_runtime",
    "convert_apart",
    "create_engine",
    "create_pose_engine",
    "find_pose_ranges",
    "on_one_core",
]
