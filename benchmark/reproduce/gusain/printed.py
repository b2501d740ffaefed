"""The figures that the paper prints (Gusain 2021), and whom it has look at what is shared."""

from __future__ import annotations

from benchmark.store.documents import Deviation
from benchmark.store.gusain import NetworkName, Reader, TableEntry

TITLES: dict[NetworkName, str] = {"lenet": "LeNet on MNIST", "mobilenet": "MobileNetV2 on CIFAR-10"}
"""Its networks with their data."""

MODELS: dict[NetworkName, str] = {"lenet": "lenet5", "mobilenet": "mobilenetv2"}
DATASETS: dict[NetworkName, str] = {"lenet": "mnist", "mobilenet": "cifar10"}
"""The same by the names that they have here."""

ATTACK_EVALUATIONS = 4_800
"""Of Inverting Gradients (Geiping 2020), the attack that its server runs after every epoch."""

TABLE_4_1 = (
    TableEntry("lenet", "fedavg", False, 0.98, "plain"),
    TableEntry("lenet", "fedavg", True, 0.96, "keynet"),
    TableEntry("mobilenet", "fedavg", False, 0.84, "plain"),
    TableEntry("mobilenet", "fedavg", True, 0.82, "keynet"),
    TableEntry("lenet", "fedpaq", False, 0.98, "qsgd"),
    TableEntry("lenet", "fedpaq", True, 0.96, "keynet-quantized"),
    TableEntry("mobilenet", "fedpaq", False, 0.82, "qsgd"),
    TableEntry("mobilenet", "fedpaq", True, 0.86, "keynet-quantized"),
)
"""Validation accuracy without and with encryption, drawn again as the bar chart of Figure 4.1."""

READERS = (
    Reader(
        "server",
        "oblivious",
        "the paper's server",
        "It treats what it reads as a network in clear. Where that is keyed its failure is a negative control, no verdict.",
    ),
    Reader(
        "server",
        "adaptive",
        "a server that knows of Key-Net",
        "It knows the scheme and its parameters and may hold auxiliary images; it lacks the key.",
    ),
    Reader(
        "collusion",
        "adaptive",
        "with the key",
        "The server and one client. All clients share one key, so that whoever is a client, or asks one, has it: there is"
        " no other way by which a server would come to the key than this.",
    ),
)

ERRATA = (
    Deviation(
        "Eq. 2.1, the objective of gradient inversion, is written as a maximum.",
        "The attacks here minimise the distance of the gradients, as in the papers that eq. 2.1 is taken from.",
    ),
    Deviation(
        "Eq. 2.2 gives the input of a fully connected layer without its index.",
        "It holds row by row: the input is dL/dW[i, :] / dL/db[i], for any i with dL/db[i] other than 0.",
    ),
    Deviation(
        "Algorithm 1 sums over all clients.",
        "Only clients that took part in the round enter the average here, with weights n_k over the sum of theirs.",
    ),
    Deviation("Keys are asked to be positive definite.", "They need to be invertible, and well conditioned."),
    Deviation(
        "Eq. 3.1 opens weights with its factors in an order that does not fit their shapes.",
        "W = A_i^-1 What A_{i-1}; a test holds what clients recover to it.",
    ),
)
"""What the text has otherwise than it is done here; no figure hangs on these."""
