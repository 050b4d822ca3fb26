"""What this machine's CPU can do."""

import openvino


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
