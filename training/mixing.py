"""Weights between a run's and a package's: what further training gained, with less of what it cost.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: weights on the line between a network's before and
after further training can be better than both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from model.errors import UserError
from model.package import Package, load_package
from model.skeletons import Skeleton


class MixError(UserError):
    """The weights do not go together; the message says why."""


@dataclass(frozen=True)
class Mix:
    """A package and its share, 0..1, of the weights to come.

    Raises:
        MixError: the share is none.
    """

    package: Package
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise MixError(f"a share of weights lies between 0 and 1: {self.share} does not")

    @classmethod
    def parse(cls, name: str, share: str) -> Self:
        """From a command line: a bundled package's name or a folder, and a number.

        Raises:
            PackageError: no such package, or a damaged one.
            MixError: the share is none.
        """
        try:
            number = float(share)
        except ValueError:
            raise MixError(f"a share of weights is a number between 0 and 1, such as 0.35, not {share!r}") from None
        return cls(load_package(name), number)

    def __str__(self) -> str:
        return f"{self.share:g} of {self.package.card.identity}"

    def into(self, weights: Mapping[str, Tensor], skeleton: Skeleton) -> dict[str, Tensor]:
        """`share` of the package's weights and the rest from `weights`, a network's state; its counters are kept.

        Raises:
            MixError: the package has another network, or joints that are not `skeleton`'s.
        """
        card = self.package.card
        if self.package.skeleton != skeleton:
            raise MixError(f"{card.name} has skeleton {self.package.skeleton.name}, the run {skeleton.name}")
        theirs = self.package.network.state_dict()
        shapes, other = ({name: value.shape for name, value in state.items()} for state in (weights, theirs))
        if shapes != other:
            differing = sum(shapes.get(name) != other.get(name) for name in shapes.keys() | other.keys())
            raise MixError(f"{card.name} is a {card.architecture.name}, another network: {differing} layers differ")
        return {
            name: value.lerp(theirs[name].to(value), self.share) if value.is_floating_point() else value
            for name, value in weights.items()
        }
