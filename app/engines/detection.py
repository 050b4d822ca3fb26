"""An ultralytics network as engines run it: bytes in, detections out."""

from torch import Tensor, nn

from app.engines.torch import Float32Head
from model.person_detector import normalise


class FromPixels(nn.Module):
    """Squares (N, S, S, 3) uint8 -> the detections alone: ultralytics networks give their inner maps as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.grids: dict[int, object] = {}

    def forward(self, squares: Tensor) -> Tensor:
        outputs = self.network(normalise(squares))
        first: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        # the head has the grid of its last batch size only, while a recorded run of another goes on reading its own
        self.grids[len(squares)] = [(m.anchors, m.strides) for m in self.network.modules() if hasattr(m, "anchors")]
        return first


def with_float32_head(network: nn.Module) -> nn.Module:
    """The ultralytics network, its last layer in float32: in bf16 a box of 300 pixels has steps of two."""
    layers = network.get_submodule("model")
    assert isinstance(layers, nn.Sequential)
    head = Float32Head(layers[-1])
    for name in ("f", "i", "end2end"):  # ultralytics asks a layer for its inputs, its number and its kind
        setattr(head, name, getattr(layers[-1], name))
    layers[-1] = head
    return network
