"""Defenses. Importing the package registers those that come with Keyhole."""

from defenses import plain, quantization
from defenses.keynet import defense as keynet_defense
from defenses.paillier import protocol as paillier_protocol

__all__ = ["keynet_defense", "paillier_protocol", "plain", "quantization"]
