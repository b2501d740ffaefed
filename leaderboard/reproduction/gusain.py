"""The report of the Gusain reproduction."""

from __future__ import annotations

from pathlib import Path

from leaderboard.reproduction.gusain_attacks import round_tables, worst_round_tables
from leaderboard.reproduction.gusain_figures import accuracy_bars
from leaderboard.reproduction.gusain_pictures import encrypted_inference, reconstructions
from leaderboard.reproduction.gusain_rounds import recovery_by_round
from leaderboard.reproduction.gusain_runs import Reproduction, read_reproduction
from leaderboard.reproduction.gusain_tables import (
    accuracy_table,
    cost_tables,
    deviation_table,
    inference_table,
    setting_table,
)
from leaderboard.reproduction.page import ReproductionPage, Section
from leaderboard.reproduction.report import ReproductionReport, write_reproduction

TITLE = "A secure framework for federated learning (Gusain 2021), reproduced"


def write_gusain_report(folder: Path) -> ReproductionReport:
    """Read the result in `folder` with its runs and write its report.

    Raises:
        DataError: the result or a run is missing, malformed, or names images that are not there.
    """
    return write_reproduction(folder, "gusain", _page(read_reproduction(folder)))


def _page(found: Reproduction) -> ReproductionPage:
    sections = (
        Section(
            "accuracy",
            "Accuracy",
            "Two clients with disjoint classes, FedAvg and FedPAQ, without and with encryption. What encryption changes is in"
            " the columns of changes: ours compares the same test images.",
            [accuracy_table(found), deviation_table(found)],
            [accuracy_bars(found)],
        ),
        Section(
            "attacks",
            "Who recovers what",
            "After every round the server attacks what it was sent. A failed attack says something only where the attacker"
            " knows of the encryption; the paper's does not.",
            worst_round_tables(found),
            list(recovery_by_round(found)),
            folded=round_tables(found),
        ),
        Section(
            "pictures",
            "Reconstructions",
            "Stated images in a fixed order, never a pick.",
            pictures=list(reconstructions(found)),
        ),
        Section(
            "inference",
            "Encrypted inference",
            "A keyed image through the keyed network gets the class that the image gets from the plain network.",
            [inference_table(found)],
            list(encrypted_inference(found)),
        ),
        Section(
            "costs",
            "Error and cost",
            "How far the decrypted average is from the plain one, and what encryption takes of a round.",
            cost_tables(found),
        ),
        Section("setting", "What was run", "Where it is smaller than the paper's, it says so.", [setting_table(found)]),
    )
    lead = (
        "Federated learning under Key-Net: clients share one key, the server averages encrypted weights and attacks them."
        f" {found.result.label}"
    )
    return ReproductionPage(TITLE, lead, found.result.manifest, sections)
