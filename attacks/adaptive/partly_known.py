"""A network of which only some values were recovered, as one whose parameters are those values and no others.

Gradient inversions compare whole updates. Values that are not known must not enter that comparison as if they had not
moved; here they are no parameters, and any inversion runs on the rest as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from federation.network import Network
from federation.threat import Observation, Oracle, PlainModel
from federation.weights import Kind, Weights, weights_of


def observed_in_part(observation: Observation, before: Weights, after: Weights, sender: str) -> Observation:
    """The observation of what is known of a party's update alone.

    Args:
        observation: where everything else is taken from.
        before: the whole model before.
        after: the party's floating-point tensors afterwards, NaN where a value is not known.
        sender: the party.
    """
    whole = observation.network
    parameters = {spec.name for spec in whole.layout if spec.kind is Kind.PARAMETER}
    found = {name: ~tensor.isnan() for name, tensor in after.items() if name in parameters}
    known = {name: places for name, places in found.items() if bool(places.any())}
    network = Network(lambda: PartlyKnown(whole, before, known), whole.image_shape, whole.class_count)
    start = weights_of(network.build())
    moved = {own_name(name): _pick(after[name], places) for name, places in known.items()}
    facts = observation.facts
    oracles = dict(observation.oracles)
    if min(facts.steps * facts.batch_size, facts.sample_counts[sender]) == 1 and Oracle.LABELS not in oracles:
        label = label_from_rows({name: before[name] - after[name] for name in known}, whole.class_count)
        oracles |= {} if label is None else {Oracle.LABELS: torch.tensor([label])}
    view = PlainModel(start, {sender: {**start, **moved}})
    return replace(observation, network=network, view=view, oracles=oracles)


def label_from_rows(gradients: Mapping[str, Tensor], classes: int) -> int | None:
    """The label of a single image, from whole rows of the last layer's weight gradient; None where there are none.

    A row is (p_i - y_i) f for the same features f: the label's points against the others. Of two that point against each
    other it is the longer, while no class is likelier than not. Where all point one way it is one of the other classes,
    which for these rows are all alike: the first of them stands for it.
    """
    matrices = [tensor for tensor in gradients.values() if tensor.dim() > 1 and tensor.shape[0] == classes]
    if not matrices:
        return None
    rows = matrices[-1].flatten(1).double()
    known = [index for index in range(classes) if not bool(rows[index].isnan().any())]
    if len(known) in (0, classes):
        return None
    against = {index: sum(float(rows[index] @ rows[other]) < 0 for other in known) for index in known}
    if not any(against.values()):
        return next(index for index in range(classes) if index not in known)
    return max(known, key=lambda index: (against[index], float(rows[index].norm())))


class PartlyKnown(nn.Module):
    """The network with the known values as its parameters; a tensor that is known in part is a vector of them.

    Args:
        network: the whole network.
        before: its weights; those that are not known stay at them.
        known: by parameter name, bool in its shape, where its values are known; others are not known.
    """

    def __init__(self, network: Network, before: Weights, known: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.whole = network.build()
        self.whole.load_state_dict(before)
        for module in self.whole.modules():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, leaf)
                module.register_buffer(leaf, parameter.detach())
        self._known = dict(known)
        for name, places in known.items():
            part, leaf = _split(name)
            if not hasattr(self, part):
                self.add_module(part, nn.Module())
            self.get_submodule(part).register_parameter(leaf, nn.Parameter(_pick(before[name], places)))

    def forward(self, images: Tensor) -> Tensor:
        """The whole network's logits."""
        # looked up as they stand, since whoever differentiates puts other tensors in their places
        present = {f"{part}.{leaf}": getattr(self.get_submodule(part), leaf) for part, leaf in map(_split, self._known)}
        rest = dict(self.whole.named_buffers())
        weights = {name: _put(rest[name], places, present[own_name(name)]) for name, places in self._known.items()}
        logits: Tensor = functional_call(self.whole, weights, (images,))
        return logits


def own_name(name: str) -> str:
    """What the known values of a tensor are called in `PartlyKnown`."""
    return ".".join(_split(name))


def _split(name: str) -> tuple[str, str]:
    """The module and the leaf of `own_name`: tensors of one module stay together."""
    module, _, leaf = name.rpartition(".")
    return f"known_{module.replace('.', '_')}", leaf


def _pick(tensor: Tensor, places: Tensor) -> Tensor:
    return tensor.clone() if bool(places.all()) else tensor[places]


def _put(tensor: Tensor, places: Tensor, values: Tensor) -> Tensor:
    return values if bool(places.all()) else torch.index_put(tensor, places.nonzero(as_tuple=True), values)
