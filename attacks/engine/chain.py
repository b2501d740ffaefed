"""The gradient of a chain of layers in closed form, and what differentiating it takes, as a few batched products.

Gradient matching differentiates a gradient. Automatic differentiation of small networks spends most of its time on
bookkeeping and on convolutions with a kernel of its own for every trial; written out for layers that follow each other, the
same is a sweep forward, one back, and the same once more for the slopes of the slopes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.engine.gradients import SingleGradient
from attacks.engine.stages import Convolution, Elementwise, Linear, Stage, stage_of


def single_gradient(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
    *,
    observed: Iterable[str] | None = None,
    batch_statistics: bool = False,
) -> SingleGradient:
    """The gradient of one batch, in closed form where the model is a chain of layers that have one.

    Arguments and errors are those of `SingleGradient`; so are the values, up to rounding.
    """
    generic = SingleGradient(model, parameters, buffers, observed=observed, batch_statistics=batch_statistics)
    stages = chain_of(model, {name: value.detach() for name, value in parameters.items()})
    if stages is None:
        return generic
    return ChainGradient(
        model, parameters, buffers, observed=observed, batch_statistics=batch_statistics, stages=stages
    )


def chain_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> tuple[Stage, ...] | None:
    """The stages of a model, in order, or None where it is no such chain.

    A chain begins with the images, ends with a linear layer, and in between each layer reads the one before it. Its layers
    are convolutions without groups, linear layers, average pooling, flattening, and activations of `stages.ACTIVATIONS`.
    Dropout, which gradient matching switches off, is left out.

    Args:
        model: any network.
        parameters: the weights at which the gradient is taken, by name.
    """
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except (torch.fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return None  # what it does depends on its input
    first, *nodes, last = graph.nodes
    if not nodes or first.op != "placeholder" or any(node.op != "call_module" for node in nodes):
        return None
    before = [first, *nodes]
    if any(node.args != (previous,) or node.kwargs for node, previous in zip(nodes, before, strict=False)):
        return None
    if last.args != (nodes[-1],) or len({node.target for node in nodes}) < len(nodes):
        return None
    layers = [(str(node.target), model.get_submodule(str(node.target))) for node in nodes]
    named = [(name, layer) for name, layer in layers if not isinstance(layer, nn.Dropout | nn.Identity)]
    stages = [stage_of(layer, name, dict(parameters)) for name, layer in named]
    found = [stage for stage in stages if stage is not None]
    if len(found) < len(stages) or not found or not isinstance(found[-1], Linear):
        return None
    names = [name for stage in found if isinstance(stage, Convolution | Linear) for name in stage.names]
    return tuple(found) if sorted(names) == sorted(parameters) else None


class ChainGradient(SingleGradient):
    """`SingleGradient` of a chain of layers, differentiable once, in images and labels.

    Args:
        stages: of the model, see `chain_of`; the other arguments are those of `SingleGradient`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        *,
        stages: Sequence[Stage],
        observed: Iterable[str] | None = None,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__(model, parameters, buffers, observed=observed, batch_statistics=batch_statistics)
        self._stages = tuple(stages)
        self._names = [name for stage in stages if isinstance(stage, Convolution | Linear) for name in stage.names]

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients [T, *parameter shape] by name, of images [T, m, C, H, W] and soft labels [T, m, K]."""
        if torch.compiler.is_compiling():
            return super().__call__(images, labels)  # the compiler differentiates by itself
        gradients = dict(zip(self._names, _ChainGradients.apply(self._stages, images, labels), strict=True))
        return {name: gradients[name] for name in self.weights}


@dataclass(frozen=True)
class _Pass:
    """What a stage saw on the way forward and back, over all N = T * m images.

    Attributes:
        inputs: what came in.
        read: what a stage with weights multiplies them with, the slope of an activation, else the inputs.
        outputs: what went out.
        slopes: of the loss at the outputs.
    """

    inputs: Tensor
    read: Tensor
    outputs: Tensor
    slopes: Tensor


class _ChainGradients(torch.autograd.Function):
    """Stages, images and labels -> the gradients of weights and biases in the order of the stages."""

    @staticmethod
    def forward(ctx: Any, stages: tuple[Stage, ...], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        trials, count = labels.shape[:2]
        values = images.flatten(0, 1)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for stage in stages:
            inputs = values
            if isinstance(stage, Convolution | Linear):
                read = stage.read(inputs)
                values = stage.apply(inputs, read)
            elif isinstance(stage, Elementwise):
                values = stage.activation.apply(inputs)
                read = stage.activation.slope(values)
            else:
                read, values = inputs, stage.push(inputs)
            seen.append((inputs, read, values))

        soft = labels.flatten(0, 1)
        chances, mass = values.softmax(1), soft.sum(1, keepdim=True)
        slopes = (chances * mass - soft) / count
        passes: list[_Pass] = []
        gradients: list[Tensor] = []
        for number, (stage, (inputs, read, outputs)) in reversed(list(enumerate(zip(stages, seen, strict=True)))):
            passes.insert(0, _Pass(inputs, read, outputs, slopes))
            if isinstance(stage, Convolution | Linear):
                gradients[:0] = stage.gradients(slopes, read, trials)
                slopes = stage.pull(slopes, inputs) if number else slopes
            elif isinstance(stage, Elementwise):
                slopes = slopes * read
            else:
                slopes = stage.pull(slopes, inputs)
        ctx.stages, ctx.passes, ctx.chances, ctx.mass, ctx.shape = stages, passes, chances, mass, labels.shape
        return tuple(gradients)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> tuple[None, Tensor, Tensor | None]:
        """From how the total changes with each gradient to how it changes with images and labels."""
        left = list(wanted)
        of_stage: list[tuple[Tensor, ...]] = []
        bends: list[Tensor | None] = []
        change: Tensor | None = None  # of the total with the slopes of the loss, from the images on
        for stage, seen in zip(ctx.stages, ctx.passes, strict=True):
            own: tuple[Tensor, ...] = ()
            bend = None
            if isinstance(stage, Convolution | Linear):
                own, left = tuple(left[: len(stage.names)]), left[len(stage.names) :]
                pushed = None if change is None else stage.push(change)
                change = stage.push_gradients(own, seen.slopes, seen.read, pushed)
            elif change is not None and isinstance(stage, Elementwise):
                if stage.activation.bend is not None:
                    bend = change * seen.slopes * stage.activation.bend(seen.outputs, seen.read)
                change = change * seen.read
            elif change is not None:
                change = stage.push(change)
            of_stage.append(own)
            bends.append(bend)
        assert change is not None, "a chain ends with a linear layer"

        trials, count, classes = ctx.shape
        along = (ctx.chances * change).sum(1, keepdim=True)
        back = ctx.chances * (change - along) * (ctx.mass / count)
        labels = ((along - change) / count).view(trials, count, classes) if ctx.needs_input_grad[2] else None
        for stage, seen, own, bend in reversed(list(zip(ctx.stages, ctx.passes, of_stage, bends, strict=True))):
            if isinstance(stage, Convolution | Linear):
                back = stage.pull_gradients(own, seen.slopes, back, seen.inputs)
            elif isinstance(stage, Elementwise):
                back = back * seen.read if bend is None else torch.addcmul(bend, back, seen.read)
            else:
                back = stage.pull(back, seen.inputs)
        return None, back.unflatten(0, (trials, count)), labels
