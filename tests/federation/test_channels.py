"""Channel spaces: against maps written out by hand, and what must be refused."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functional_networks import IMAGE, Functional, hidden, with_head
from torch import Tensor, nn

from federation.channels import ChannelMap, ChannelSpace, TensorAxes, trace_channels
from federation.errors import UsageError
from federation.vision import models


def test_plain_sequence_is_mapped_in_full() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, bias=False), nn.Sigmoid(), nn.AvgPool2d(1), nn.Dropout(), nn.Flatten(),
        nn.Linear(6 * 4, 7), nn.LeakyReLU(), nn.Linear(7, 5),
    )  # fmt: skip
    first, second, third, last = 1, 2, 3, 4
    assert trace_channels(network, IMAGE) == ChannelMap(
        (
            ChannelSpace(0, 3, "input", frozenset()),
            ChannelSpace(first, 4, "hidden", frozenset({"batch_norm", "relu", "max_pool"})),
            ChannelSpace(second, 6, "hidden", frozenset({"sigmoid"})),
            ChannelSpace(third, 7, "hidden", frozenset({"leaky_relu"})),
            ChannelSpace(last, 5, "output", frozenset()),
        ),
        {
            "0.weight": TensorAxes((first,), (0,)),
            "0.bias": TensorAxes((first,)),
            "1.weight": TensorAxes((first,)),
            "1.bias": TensorAxes((first,)),
            "1.running_mean": TensorAxes((first,)),
            "1.running_var": TensorAxes((first,)),
            "1.num_batches_tracked": TensorAxes(()),
            "4.weight": TensorAxes((second,), (first,)),
            "9.weight": TensorAxes((third,), (second,), 4),
            "9.bias": TensorAxes((third,)),
            "11.weight": TensorAxes((last,), (third,)),
            "11.bias": TensorAxes((last,)),
        },
    )


def test_logistic_regression_reads_the_image_pixel_by_pixel() -> None:
    channel_map = trace_channels(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), IMAGE)
    assert [space.role for space in channel_map.spaces] == ["input", "output"]
    assert channel_map.axes["1.weight"] == TensorAxes((1,), (0,), 64)


@pytest.mark.parametrize(
    "combine",
    [
        lambda network, x: network.a(x) + x,
        lambda network, x: torch.add(x, network.a(x), alpha=2),
        lambda network, x: x.sub(network.a(x)),
        lambda network, x: network.a(x).add_(x),
        lambda network, x: network.a(x) * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
    ],
)
def test_sums_and_products_join_their_spaces(combine: Callable[..., Tensor]) -> None:
    channel_map = trace_channels(with_head(combine, a=hidden()), IMAGE)
    assert channel_map.axes["a.weight"] == TensorAxes((1,), (1,))
    assert [(space.size, space.role) for space in channel_map.spaces] == [(3, "input"), (8, "hidden"), (5, "output")]


def test_residual_chains_are_one_space_and_their_inner_channels_are_not() -> None:
    def forward(network: Any, x: Tensor) -> Tensor:
        x = x + network.b(F.relu(network.a(x)))
        return x + network.d(network.c(x))

    axes = trace_channels(with_head(forward, a=hidden(), b=hidden(), c=hidden(), d=hidden()), IMAGE).axes
    stream = axes["stem.weight"].out_spaces
    inner = {axes["a.weight"].out_spaces, axes["c.weight"].out_spaces}
    assert {axes[name].out_spaces for name in ("b.weight", "d.weight")} == {stream} == {axes["head.weight"].in_spaces}
    assert len(inner) == 2
    assert stream not in inner


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: x.mean([2, 3]).view(-1, 8),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True).squeeze(),
        lambda x: F.max_pool2d(x, 8).reshape(x.size(0), -1),
        lambda x: torch.flatten(F.avg_pool2d(F.dropout(x), 8), start_dim=1),
        lambda x: (0.5 * x.contiguous() / 3).view(x.shape[0], 8, -1).mean(2),
    ],
)
def test_spellings_of_pooling_and_flattening(transform: Callable[[Tensor], Tensor]) -> None:
    network = Functional(
        lambda network, x: network.head(transform(network.stem(x))), stem=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 5)
    )
    assert trace_channels(network, IMAGE).axes["head.weight"] == TensorAxes((2,), (1,))


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "hardswish", "elu"])
def test_activations_are_recorded_where_they_act(name: str) -> None:
    channel_map = trace_channels(with_head(lambda network, x: network.a(getattr(F, name)(x)), a=hidden()), IMAGE)
    assert [space.activations for space in channel_map.spaces[1:3]] == [{name}, frozenset()]
    assert channel_map.spaces[1].commutes_with_gains == (name in ("relu", "leaky_relu"))
    kinds = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU)
    module = next(kind() for kind in kinds if kind.__name__.lower() == name.replace("_", ""))
    by_module = with_head(lambda n, x: n.a(n.act(x)), a=hidden(), act=module)
    assert trace_channels(by_module, IMAGE) == channel_map


def test_grouped_convolutions_tie_blocks_and_depthwise_ones_single_channels() -> None:
    network = with_head(
        lambda n, x: n.c(F.relu(n.depthwise(n.b(F.relu(n.grouped(n.a(x))))))),
        a=hidden(), grouped=nn.Conv2d(8, 12, 3, groups=4), b=nn.Conv2d(12, 6, 1),
        depthwise=nn.Conv2d(6, 6, 3, groups=6), c=nn.Conv2d(6, 8, 1),
    )  # fmt: skip
    channel_map = trace_channels(network, IMAGE)
    assert [(s.size, s.blocks, s.block_family) for s in channel_map.spaces] == [
        (3, 1, None), (8, 1, None), (8, 4, 0), (12, 4, 0), (6, 6, 1), (6, 6, 1), (8, 1, None), (5, 1, None),
    ]  # fmt: skip
    assert channel_map.axes["grouped.weight"] == TensorAxes((3,), (2,), 1, 4)


def test_chained_groups_are_one_family() -> None:
    network = with_head(lambda n, x: n.b(F.relu(n.a(x))), a=hidden(groups=2), b=hidden(groups=2))
    assert [space.block_family for space in trace_channels(network, IMAGE).spaces] == [None, 0, 0, 0, None]


def test_a_layer_used_twice_has_one_map() -> None:
    channel_map = trace_channels(with_head(lambda n, x: n.a(F.relu(n.a(x))), a=hidden()), IMAGE)
    assert channel_map.axes["a.weight"] == TensorAxes((1,), (1,))


def test_names_do_not_matter() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    renamed = nn.Sequential(OrderedDict(fc=nn.Sequential(first[0], first[1]), bn=nn.Sequential(first[2], first[3])))
    one, other = trace_channels(first, IMAGE), trace_channels(renamed, IMAGE)
    assert one.spaces == other.spaces
    assert list(one.axes.values()) == list(other.axes.values())


def test_the_model_stays_as_it_is_and_the_map_travels() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    channel_map = trace_channels(network, IMAGE)
    assert network.training
    assert network[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert pickle.loads(pickle.dumps(channel_map)) == channel_map


def test_resnet18_has_its_residual_streams_and_inner_channels() -> None:
    channel_map = trace_channels(models.resnet18(weights=None, num_classes=10), (3, 32, 32))
    hidden_sizes = Counter(space.size for space in channel_map.spaces if space.role == "hidden")
    # Each stage is one residual stream and the inner channels of its two blocks; the first stream begins at the stem.
    assert hidden_sizes == {64: 3, 128: 3, 256: 3, 512: 3}
    axes = channel_map.axes
    assert axes["layer2.0.downsample.0.weight"].out_spaces == axes["layer2.1.bn2.running_var"].out_spaces
    assert axes["conv1.weight"].out_spaces == axes["layer1.1.conv2.weight"].out_spaces


def test_mobilenet_v2_has_its_streams_and_depthwise_pairs() -> None:
    network = models.mobilenet_v2(weights=None, num_classes=10)
    channel_map = trace_channels(network, (3, 32, 32))
    # Table 2 of Sandler et al. 2018: 17 blocks, all but the first with an expansion in front of the depthwise layer;
    # the projections of a stage's n blocks are one residual stream: 16, 24, 32, 64, 96, 160, 320 channels.
    free = [space.size for space in channel_map.spaces if space.role == "hidden" and space.blocks == 1]
    assert free == [16, 24, 32, 64, 96, 160, 320, 1280]
    tied = Counter(space.block_family for space in channel_map.spaces if space.blocks > 1)
    assert sorted(tied.values()) == [2] * 17
    assert all("relu6" in space.activations for space in channel_map.spaces if space.blocks > 1)
    assert channel_map.axes.keys() == network.state_dict().keys()


def test_a_network_without_layers_between_has_one_space() -> None:
    spaces = trace_channels(nn.Sequential(nn.ReLU()), IMAGE).spaces
    assert spaces == (ChannelSpace(0, 3, "input", frozenset({"relu"})),)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


def constant_shift(network: Any, x: Tensor) -> Tensor:
    return x + torch.ones(8, 1, 1, device=x.device)


def tied(network: Any, x: Tensor) -> Tensor:
    return network.b(network.a(x))


def tied_layers() -> Functional:
    first, second = hidden(), hidden()
    second.weight = first.weight
    return with_head(tied, a=first, b=second)


def scaled_by_parameter() -> Functional:
    network = with_head(lambda n, x: x * n.scale)
    network.scale = nn.Parameter(torch.ones(8, 1, 1))
    return network


REFUSED = {
    "branching": (Branching(), "cannot be traced"),
    "too small": (nn.Conv2d(3, 8, 9), "does not run on images of shape"),
    "slice": (with_head(lambda n, x: torch.cat([x, x], 1)[:, :8]), "'getitem'"),
    "concatenated pixels": (
        with_head(lambda n, x: torch.cat([x, x], 2)),
        "'cat' (cat in the network's own forward): cat",
    ),
    "concatenated constant": (
        with_head(lambda n, x: n.a(torch.cat([x, torch.ones(2, 8, 8, 8, device=x.device)], 1)), a=nn.Conv2d(16, 8, 1)),
        "'ones'",
    ),
    "concatenated at different sizes": (
        Functional(lambda n, x: n.a(torch.cat([x.flatten(1), F.avg_pool2d(x, 2).flatten(1)], 1)), a=nn.Linear(240, 5)),
        "'cat' (cat in the network's own forward): cat of feature maps that were flattened at different sizes",
    ),
    "torn groups": (
        with_head(lambda n, x: n.b(torch.cat([n.a(x), x], 1)), a=nn.Conv2d(8, 2, 1), b=nn.Conv2d(10, 8, 1, groups=2)),
        "layer 'b' (Conv2d), node 'b': a border between concatenated parts falls into one of its groups of 5",
    ),
    "groups torn by a sum": (
        with_head(
            lambda n, x: n.c(n.d(n.b(x) + torch.cat([n.a(x), x], 1))),
            a=nn.Conv2d(8, 2, 1),
            b=nn.Conv2d(8, 10, 1),
            d=nn.Conv2d(10, 10, 1, groups=2),
            c=nn.Conv2d(10, 8, 1),
        ),
        "layer 'd' (Conv2d), node 'd': a border between",
    ),
    "transposed": (with_head(lambda n, x: n.a(x), a=nn.ConvTranspose2d(8, 8, 3)), "'a' (ConvTranspose2d)"),
    "group norm": (with_head(lambda n, x: n.a(x), a=nn.GroupNorm(2, 8)), "'a' (GroupNorm)"),
    "softmax": (with_head(lambda n, x: torch.softmax(x, 1)), "'softmax'"),
    "constant": (with_head(constant_shift), "'ones'"),
    "parameter": (scaled_by_parameter(), "argument scale"),
    "number": (with_head(lambda n, x: x + 1), "argument 1"),
    "division": (with_head(lambda n, x: 1 / x), "'truediv'"),
    "broadcast channels": (with_head(lambda n, x: x + n.a(x), a=nn.Conv2d(8, 1, 1)), "'add'"),
    "channel mean": (with_head(lambda n, x: x - x.mean(1, keepdim=True)), "'mean'"),
    "mean of all": (with_head(lambda n, x: x * x.mean()), "'mean'"),
    "mixing images": (with_head(lambda n, x: x.reshape(8, 2, 8, 8).reshape(2, 8, 8, 8)), "'reshape'"),
    "dense on pixels": (with_head(lambda n, x: n.a(x), a=nn.Linear(8, 8)), "'a' (Linear)"),
    "one image": (with_head(lambda n, x: n.a(x[0]).unsqueeze(0), a=hidden()), "'getitem'"),
    "norm of flattened": (
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 5)),
        "layer '1' (BatchNorm1d), node '_1': batch norm over flattened",
    ),
    "unused": (with_head(lambda n, x: x, spare=hidden()), "'spare.weight' belongs to no layer"),
    "tied": (tied_layers(), "'a.weight' and 'b.weight' are one"),
    "groups of two sizes": (
        with_head(tied, a=hidden(groups=2), b=hidden(groups=4)),
        "layer 'a' (Conv2d), node 'a' has 2 groups",
    ),
    "two outputs": (Functional(lambda n, x: (n.a(x), x), a=nn.Conv2d(3, 8, 1)), "'output'"),
    "functional layer": (with_head(lambda n, x: F.conv2d(x, n.a.weight), a=hidden()), "'conv2d'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(case: str) -> None:
    network, message = REFUSED[case]
    with pytest.raises(UsageError) as refusal:
        trace_channels(network, IMAGE)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_sum_that_broadcasts_channels_over_pixels_is_refused() -> None:
    network = with_head(lambda n, x: x + x.mean([2, 3]))
    with pytest.raises(UsageError, match="both need the same channels on axis 1"):
        trace_channels(network, (3, 2, 8))
