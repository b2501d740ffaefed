"""Defenses. Importing the package registers those that come with Keyhole."""

from defenses import plain, quantization
from defenses.ckks import protocol as ckks_protocol
from defenses.keynet import defense as keynet_defense
from defenses.keynet import pixel_defense as keynet_pixel_defense
from defenses.paillier import protocol as paillier_protocol
from defenses.paillier import quantized as paillier_quantized
from defenses.paillier.pride import defense as pride_defense

__all__ = [
    "ckks_protocol",
    "keynet_defense",
    "keynet_pixel_defense",
    "paillier_protocol",
    "paillier_quantized",
    "plain",
    "pride_defense",
    "quantization",
]
