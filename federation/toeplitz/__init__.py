"""Linear layers as sparse homogeneous Toeplitz matrices [W b; 0 1] on flattened feature maps, for any traced network."""

from federation.toeplitz.depthwise import densify_depthwise
from federation.toeplitz.layout import ToeplitzLayout
from federation.toeplitz.network import ToeplitzNetwork, toeplitz_of, trace_toeplitz
from federation.toeplitz.steps import Concatenation, Elementwise, Linear, Opaque, PixelSpace, Step, Sum

__all__ = [
    "Concatenation",
    "Elementwise",
    "Linear",
    "Opaque",
    "PixelSpace",
    "Step",
    "Sum",
    "ToeplitzLayout",
    "ToeplitzNetwork",
    "densify_depthwise",
    "toeplitz_of",
    "trace_toeplitz",
]
