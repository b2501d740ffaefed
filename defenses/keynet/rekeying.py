"""Frames: keys that change while a federation runs, or differ by client, and the server that goes between them.

The server's frame is given by one set of keys F, drawn once from the stage's first root; the server does not know it.
Whoever is in another frame has keys V F, where the veil V is drawn like a key, from a root of its own, independently of
F. The server gets V: with it the server brings what it receives to its own frame (V^-1) and what it sends to the
receiver's (V), and opens neither. Under rotation there is one veil an epoch (none in the first); with per-client keys
one a client and epoch.

What the server learns are veils, and so how the frames of clients and epochs lie to each other: (V' F) (V F)^-1 =
V' V^-1, for monomial keys a permutation and ratios of gains. Since veils are independent of F that is nothing of any
key by itself. Had the keys of epochs been drawn independently of each other, with gains bounded by s, every ratio would
have narrowed down what the gains can be. But the server can bring all rounds to one frame, its own: against the server
rotation is no protection from what accumulates over rounds. And with any one client's keys V F, of whatever epoch, and
even if they were revoked since, it has F and hence everyone's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys
from defenses.stages import KeyMaterial, KeyRequest, ServerTransform
from federation.channels import ChannelMap
from federation.errors import KeyholeError, MalformedMessage
from federation.messages import SERVER, raw_tensors_from_bytes, tensors_to_bytes
from federation.weights import Weights

EVERY_CLIENT = "*"
"""Stands for all clients where they share one frame."""


def draw_in_frame(request: KeyRequest, policy: KeyPolicy, *, per_client: bool) -> KeyMaterial:
    """What one party gets: a client the keys V F, the server the veils."""
    channel_map = request.network.channels
    if request.receiver == SERVER:
        names = request.clients if per_client else (EVERY_CLIENT,)
        veils = {name: veil for name in names if (veil := _veil(request, policy, name)) is not None}
        return KeyMaterial(secret=_veils_to_bytes(veils) if veils else b"")
    frame = draw_keys(channel_map, request.roots(0), policy)
    veil = _veil(request, policy, request.receiver if per_client else EVERY_CLIENT)
    return KeyMaterial(secret=(frame if veil is None else veil.after(frame)).to_bytes())


def _veil(request: KeyRequest, policy: KeyPolicy, client: str) -> ChannelKeys | None:
    """What lies between the server's frame and this client's in the request's epoch; None where they are the same."""
    if client != EVERY_CLIENT:
        return draw_keys(request.network.channels, request.root.derive("client", client), policy)
    return draw_keys(request.network.channels, request.root, policy) if request.epoch > 0 else None


def _veils_to_bytes(veils: Mapping[str, ChannelKeys]) -> bytes:
    return tensors_to_bytes(
        {f"{client}/{name}": tensor for client, veil in veils.items() for name, tensor in veil.tensors().items()}
    )


def read_veils(material: KeyMaterial, channel_map: ChannelMap, policy: KeyPolicy) -> dict[str, ChannelKeys]:
    """What the key agent sent the server, by client; raises MalformedMessage for anything but veils."""
    by_client: dict[str, dict[str, Tensor]] = {}
    for name, tensor in raw_tensors_from_bytes(material.secret, "re-keying matrices").items():
        client, _, part = name.partition("/")
        by_client.setdefault(client, {})[part] = tensor
    return {
        client: ChannelKeys.from_tensors(tensors, channel_map, policy, f"re-keying matrices of {client}")
        for client, tensors in by_client.items()
    }


def in_servers_frame(keys: ChannelKeys, client: str, veils: Mapping[str, ChannelKeys]) -> ChannelKeys:
    """The keys F of the server's frame, from a client's V F and the veils; of keys that mix channels, V F as it is."""
    veil = veils.get(client, veils.get(EVERY_CLIENT))
    if veil is None:
        return keys
    return ChannelKeys(
        tuple(
            key.before(second) if isinstance(key, ChannelKey) and isinstance(second, ChannelKey) else key
            for key, second in zip(keys.keys, veil.keys, strict=True)
        )
    )


class KeyNetServer(ServerTransform):
    """The server's part of `KeyNet` where it re-keys.

    Args:
        material: what the key agent sent the server.
        channel_map: the network's channel spaces.
        policy: what the keys must be.

    Raises:
        MalformedMessage: for anything but veils.
    """

    def __init__(self, material: KeyMaterial, channel_map: ChannelMap, policy: KeyPolicy) -> None:
        veils = read_veils(material, channel_map, policy)
        self._transforms = {client: ChannelTransform(veil, channel_map) for client, veil in veils.items()}
        self.alike = EVERY_CLIENT in self._transforms
        if self.alike and len(self._transforms) > 1:
            raise MalformedMessage("re-keying matrices: some for every client and some for single ones")

    def admit(self, sender: str, weights: Weights) -> Weights:
        """V^-1 of what this client sent; raises KeyholeError for a client without keys."""
        return self._of(sender).recover(weights)

    def address(self, receiver: str, weights: Weights) -> Weights:
        """V of the global weights; raises KeyholeError for a client without keys."""
        return self._of(receiver).protect(weights)

    def _of(self, client: str) -> ChannelTransform:
        name = EVERY_CLIENT if self.alike else client
        if name not in self._transforms:
            raise KeyholeError(f"the server has no re-keying matrices for {client}: it has no keys, or was revoked")
        return self._transforms[name]
