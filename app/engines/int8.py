"""int8 on OpenVINO: a converted graph with a package's ranges put in, and how those are found.

NNCF finds them on real crops (`pose quantise`); serving needs neither. What OpenVINO then runs in int8 is what has
ranges on its inputs; all else stays in float32: the head, the last stage's high-resolution branch and its exchanges,
the channel gates, the attention.
"""

import os
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import openvino
from openvino import opset13

from model.errors import PackageError, UserError
from model.ranges import Range, Ranges

NAMED = "__module"  # the names that a conversion from PyTorch gives; all others are numbers of one process
MISSING = "NNCF is missing: pip install 'pose-server[quantise]'"
GATES = r"gate|enhance|aten::(mean|sigmoid)"  # cheap, and their rounding weighs every pixel


class QuantiseError(UserError):
    """NNCF is missing, or did something that `model.ranges` has no words for."""


def insert_ranges(model: openvino.Model, ranges: Ranges) -> None:
    """Change the graph in place, so that it computes in int8 wherever it has ranges.

    Raises:
        PackageError: the graph has not the places that the ranges are for.
    """
    operations = {operation.get_friendly_name(): operation for operation in _name_operations(model)}

    def find(place: str) -> openvino.Input:
        name, _, port = place.rpartition(":")
        if name not in operations:
            raise PackageError(
                f"the int8 ranges of this package do not fit this version of its network ({name} is not there): make "
                "them again with `pose quantise`, or serve it with POSE_PRECISION=auto"
            )
        return operations[name].input(int(port))

    # all places first: inserting changes what the inputs read
    found = [(one, [find(place) for place in one.places]) for one in ranges.ranges]
    constants = [(value, [find(place) for place in places]) for places, value in ranges.constants.items()]
    for value, inputs in constants:
        constant = opset13.constant(value)
        for input_ in inputs:
            input_.replace_source_output(constant.output(0))
    for one, inputs in found:
        low, high = opset13.constant(one.low), opset13.constant(one.high)
        source = inputs[0].get_source_output()
        rounded = opset13.fake_quantize(source, low, high, low, high, one.levels)
        for input_ in inputs:
            input_.replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()


def nncf_version() -> str:
    """The installed version of what finds ranges.

    Raises:
        QuantiseError: it is not installed.
    """
    try:
        return version("nncf")
    except PackageNotFoundError:
        raise QuantiseError(MISSING) from None


def find_ranges(model: openvino.Model, crops: np.ndarray, exact: re.Pattern[str], weights: str) -> Ranges:
    """Ranges by NNCF's post-training quantisation, biases corrected for what rounding shifts. NNCF shows its progress.

    Args:
        model: the converted graph; it is named anew, else left as it is.
        crops: (N, H, W, 3) uint8, a few hundred real ones.
        exact: names of what stays in float32, beside the gates.
        weights: sha256 of the package's weights.

    Raises:
        QuantiseError: NNCF is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it sends usage figures
    try:
        import nncf
    except ImportError:
        raise QuantiseError(MISSING) from None
    nncf.set_log_level(40)

    _name_operations(model)
    quantised = nncf.quantize(
        model,
        nncf.Dataset([crop[None] for crop in crops]),
        subset_size=len(crops),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        ignored_scope=nncf.IgnoredScope(patterns=[f".*({exact.pattern}|{GATES}).*"]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(backend_params={"compress_weights": False}),
    )
    return _compare(model, quantised, weights)


def _compare(model: openvino.Model, quantised: openvino.Model, weights: str) -> Ranges:
    """What `quantised` has that `model`, with the same names, has not."""
    ranges: list[Range] = []
    constants: dict[tuple[str, ...], np.ndarray] = {}
    own = {op.get_friendly_name(): op.data for op in model.get_ops() if op.get_type_name() == "Constant"}
    for operation in quantised.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if kind == "FakeQuantize":
            low, high, low_out, high_out = (operation.input_value(i).get_node().data for i in range(1, 5))
            if not (np.array_equal(low, low_out) and np.array_equal(high, high_out)):
                raise QuantiseError(f"NNCF rescales the values of {name}: this version of NNCF is not supported")
            levels = operation.get_attributes()["levels"]
            ranges.append(Range(_places(operation), levels, _float32(low), _float32(high)))
        elif kind == "Constant" and name in own and not np.array_equal(operation.data, own[name]):
            constants[_places(operation)] = _float32(operation.data)
    return Ranges(weights, tuple(ranges), constants)


def _places(operation: openvino.Node) -> tuple[str, ...]:
    """Where the operation's output is read: `<name of the reader>:<number of its input>`."""
    targets = operation.output(0).get_target_inputs()
    return tuple(sorted(f"{target.get_node().get_friendly_name()}:{target.get_index()}" for target in targets))


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _name_operations(model: openvino.Model) -> Sequence[openvino.Node]:
    """Name every operation by PyTorch's module or, where conversion made up a number, by where its output is read:
    the same names whenever the same network is converted. Returns them all, inputs before those who read them."""
    operations: Sequence[openvino.Node] = model.get_ordered_ops()
    for operation in reversed(operations):
        if not operation.get_friendly_name().startswith(NAMED) and operation.get_output_size():
            places = [
                f"{t.get_node().get_friendly_name()}:{t.get_index()}"
                for o in operation.outputs()
                for t in o.get_target_inputs()
            ]
            if places:
                operation.set_friendly_name(min(places))
    return operations
