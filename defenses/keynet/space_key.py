"""What a keyed network needs of the key of a feature-map space: an invertible map in homogeneous coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import scipy.sparse

Floats = npt.NDArray[np.float64]


class SpaceKey(ABC):
    """The key x -> L x + t of a space of flattened feature maps, as the matrix [L t; 0 1] on [x; 1]."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Entries, without the homogeneous coordinate."""

    @property
    @abstractmethod
    def matrix(self) -> scipy.sparse.csr_array:
        """[L t; 0 1], float64 [entries + 1, entries + 1]."""

    @property
    @abstractmethod
    def inverse(self) -> scipy.sparse.csr_array:
        """[L^-1 -L^-1 t; 0 1], float64 [entries + 1, entries + 1]."""

    @property
    @abstractmethod
    def condition_number(self) -> float:
        """How far it and its inverse together can grow a rounding error; infinite for a singular L."""

    @property
    @abstractmethod
    def is_monomial(self) -> bool:
        """Whether it is a scaled permutation."""

    @property
    @abstractmethod
    def is_permutation(self) -> bool:
        """Whether it moves entries and changes no value."""

    @property
    @abstractmethod
    def has_offsets(self) -> bool:
        """Whether t differs from 0."""


def homogeneous(linear: scipy.sparse.sparray, offsets: Floats | None = None) -> scipy.sparse.csr_array:
    """[L t; 0 1]; t is 0 unless given."""
    if offsets is None:
        return scipy.sparse.csr_array(scipy.sparse.block_diag([linear, scipy.sparse.eye_array(1)], format="csr"))
    column = scipy.sparse.csr_array(offsets[:, None])
    return scipy.sparse.csr_array(scipy.sparse.block_array([[linear, column], [None, scipy.sparse.eye_array(1)]]))
