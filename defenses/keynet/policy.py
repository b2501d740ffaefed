"""What kind of key each channel space of a network gets, and how far such keys grow a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from defenses.keynet.mixing import LARGEST_CONDITION, LinearKey, MixingKey, OrthogonalKey, SoftKey
from defenses.keynet.monomial import LARGEST_GAIN, ChannelKey
from federation.channels import ChannelSpace
from federation.errors import UsageError

KeyKind: TypeAlias = Literal["monomial", "soft", "orthogonal"]
Outputs: TypeAlias = Literal["identity", "permutation", "monomial"]

HAAR_DEVIATIONS = 8.0
"""A coordinate of a vector in a uniformly random direction of n dimensions exceeds 8 / sqrt(n) of its length with a
probability under 2 exp(-8^2 / 2) = 2.5e-14 (Levy), in none of a network's 10^7 weights but once in a million keys."""

MOST_TERMS = 64


@dataclass(frozen=True)
class KeyPolicy:
    """What is drawn for which space.

    Attributes:
        gain_range: s; gains are log-uniform on [1/s, s]; 1 means permutations alone.
        outputs: the key of the network's outputs. A permutation hides the order of the labels; "identity" keeps it;
            "monomial" draws gains as well (for weights that are only averaged: such a network computes other classes).
        kind: "monomial" (alpha = 1), "soft" (a monomial key and alpha - 1 further permutations mixed in) or
            "orthogonal" (Haar).
        alpha: terms of a soft key.
        dominance: theta_1 of a soft key, over a half: its condition number is at most s^2 / (2 theta_1 - 1).

    Whatever the kind, some spaces are never mixed. The input space has the identity (the network reads the plain image),
    the output space what `outputs` says. A single channel, and a space that a grouped or depthwise convolution reads or
    writes, have a monomial key: mixing would fill the zeros between a kernel's groups.

    Raises:
        UsageError: for an option out of its range, or soft keys whose condition number may exceed the bound.
    """

    gain_range: float = 1.0
    outputs: Outputs = "permutation"
    kind: KeyKind = "monomial"
    alpha: int = 4
    dominance: float = 0.625

    def __post_init__(self) -> None:
        if not 1 <= self.gain_range <= LARGEST_GAIN:
            raise UsageError(f"a gain range is between 1 and {LARGEST_GAIN:g}, not {self.gain_range}")
        if self.outputs not in ("identity", "permutation", "monomial"):
            raise UsageError(f"outputs are 'identity', 'permutation' or 'monomial', not {self.outputs!r}")
        if self.kind not in ("monomial", "soft", "orthogonal"):
            raise UsageError(f"a kind of key is 'monomial', 'soft' or 'orthogonal', not {self.kind!r}")
        if not 2 <= self.alpha <= MOST_TERMS:
            raise UsageError(
                f"alpha of a soft key is between 2 and {MOST_TERMS}, not {self.alpha}; 1 is kind 'monomial'"
            )
        if not 0.5 < self.dominance < 1:
            raise UsageError(f"the dominance of a soft key lies between 0.5 and 1, both excluded; not {self.dominance}")
        self.check_products(1)

    def check_products(self, factors: int) -> None:
        """Raise UsageError where the product of so many keys could break the bounds of gains or condition numbers."""
        if self.gain_range**factors > LARGEST_GAIN:
            raise UsageError(f"products of {factors} keys leave the bound of gains; lower gain_range {self.gain_range}")
        if self.kind == "soft" and self.condition_bound**factors > LARGEST_CONDITION:
            raise UsageError(
                f"soft keys may reach a condition number of {self.condition_bound**factors:.3g}, at most "
                f"{LARGEST_CONDITION:g} is allowed; lower gain_range {self.gain_range} or raise dominance {self.dominance}"
            )

    def permutes(self, space: ChannelSpace) -> bool:
        """Whether the channels of `space` are permuted, or mixed."""
        return space.role == "hidden" or (space.role == "output" and self.outputs != "identity")

    def scales(self, space: ChannelSpace) -> bool:
        """Whether the channels of `space` have gains, where its key is monomial."""
        return space.role == "hidden" or (space.role == "output" and self.outputs == "monomial")

    def kind_of(self, space: ChannelSpace) -> KeyKind:
        """The kind of key that `space` gets."""
        mixable = space.role == "hidden" and space.block_family is None and space.size > 1
        return self.kind if mixable else "monomial"

    def key_classes(self, space: ChannelSpace) -> tuple[type[ChannelKey] | type[MixingKey], ...]:
        """What a key of `space` may be: as drawn, or a product of two such keys."""
        by_kind: dict[KeyKind, tuple[type[ChannelKey] | type[MixingKey], ...]] = {
            "monomial": (ChannelKey,),
            "soft": (SoftKey, LinearKey),
            "orthogonal": (OrthogonalKey,),
        }
        return by_kind[self.kind_of(space)]

    @property
    def condition_bound(self) -> float:
        """The largest condition number (row-sum and column-sum norm) of a key as it is drawn; 2-norm if orthogonal."""
        if self.kind == "soft":
            return self.gain_range**2 / (2 * self.dominance - 1)
        return max(self.gain_range**2, 1.0)

    @property
    def growth(self) -> float:
        """The most by which keys on both sides of a kernel, or undoing them, grow its largest value or an error in it.

        With A on the outputs and B on the inputs that is ||A|| ||B^-1|| and ||A^-1|| ||B||, in the row-sum norm for A
        and the column-sum norm for B: s^2 for monomial keys, s^2 / (2 theta_1 - 1) at most for soft ones. Orthogonal
        keys have no bound but that of the size; but their directions are uniformly random and independent of what
        they are applied to, and so one side grows a value by at most `HAAR_DEVIATIONS`, but once in a million keys.
        """
        if self.kind == "orthogonal":
            return max(HAAR_DEVIATIONS, self.gain_range) ** 2
        return self.condition_bound

    @property
    def rounding_growth(self) -> float:
        """The most that one rounding of a keyed kernel becomes in a recovered value, in units of u times the largest.

        u is half a unit in the last place. Keyed values are up to `growth` times the largest weight; undoing the keys
        grows what rounding changed there by as much again: growth^2.

        Undoing orthogonal keys adds roundings up, sum_ij a_i b_j e_ij with sum_ij a_i^2 b_j^2 = 1, whatever the key. With
        roundings e_ij that are independent and as often up as down, which is how they behave (Higham and Mary 2019), the
        sum exceeds `HAAR_DEVIATIONS` times the largest e_ij with a probability under 2 exp(-8^2 / 2) (Hoeffding): 8 for
        keys on both sides together. Where the other side has gains, they grow what is left by s each way.
        """
        if self.kind == "orthogonal":
            return max(HAAR_DEVIATIONS**3, (HAAR_DEVIATIONS * self.gain_range) ** 2, self.gain_range**4)
        return self.growth**2
