"""The tables of the Gusain reproduction: the paper's figures and ours side by side, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from benchmark.store.gusain import NetworkName, NetworkResult
from leaderboard.reproduction.gusain_runs import (
    ALGORITHM_TITLES,
    NETWORK_TITLES,
    NetworkRun,
    Reproduction,
    algorithm_title,
    sentences,
)
from leaderboard.tables.columns import TRAININGS
from leaderboard.tables.model import (
    Column,
    Reach,
    Table,
    duration,
    fine_percent,
    number,
    percent,
    points,
    scientific,
)
from leaderboard.trainings import TrainingSummary, paired_accuracy

NOT_RUN = "not run"

_ALWAYS = Reach.EVERYWHERE
_NETWORK = Column("network", "Network", "", reach=_ALWAYS)
_ALGORITHM = Column("algorithm", "Algorithm", "", reach=_ALWAYS)
_WEIGHTS = Column("weights", "Weights", "plain: as they are; encrypted: under Key-Net", reach=_ALWAYS)

_ENCRYPTION = ("seconds_keys", "seconds_protect", "seconds_recover")
"""What the paper calls negligible: key handling, encryption, decryption."""
_STEPS = (*_ENCRYPTION, "seconds_aggregate", "seconds_train")


def accuracy_table(found: Reproduction) -> Table:
    """Table 4.1 with ours beside it."""
    seeds = len(found.result.seeds)
    return Table(
        title="Table 4.1: validation accuracy without and with encryption",
        caption=sentences(
            found.result.label,
            f"Ours: means over {seeds} seed{'' if seeds == 1 else 's'}; in brackets, 95% intervals",
        ),
        columns=[
            _NETWORK,
            _ALGORITHM,
            _WEIGHTS,
            Column("printed", "Printed", "accuracy in the paper", fine_percent, _ALWAYS),
            Column("ours", "Ours", "accuracy on the test images after the last round", _accuracy_or_not_run, _ALWAYS),
            Column("difference", "Ours less printed", "in points", points, _ALWAYS),
            Column("printed_change", "Printed change", "with encryption less without, in points", points, _ALWAYS),
            Column("change", "Our change", "the same, ours, paired by test image and seed", points, _ALWAYS),
            Column("defense", "Defense", "ours, as in the other tables"),
            Column("rounds", "Rounds", "of training, ours", number(0)),
            Column("tested_on", "Test images", "ours", number(0)),
        ],
        records=[record for pair in found.pairs for record in _pair_records(found, pair.plain, pair.encrypted)],
        context={"table": "table-4-1", "scale": found.result.scale},
        notes=[f"{one.title}: {departure}" for one in found.result.networks for departure in one.departures],
    )


def _accuracy_or_not_run(value: float | None) -> str:
    return NOT_RUN if value is None else fine_percent(value)


def _pair_records(found: Reproduction, *entries: Any) -> Iterable[dict[str, Any]]:
    plain = found.training(entries[0])
    for entry in entries:
        training = found.training(entry)
        record: dict[str, Any] = {
            "network": NETWORK_TITLES[entry.network],
            "algorithm": ALGORITHM_TITLES[entry.algorithm],
            "weights": "encrypted" if entry.encrypted else "plain",
            "printed": entry.printed,
            "defense": entry.defense,
        }
        if entry.encrypted:
            record["printed_change"] = entry.printed - entries[0].printed
        if training is not None:
            record |= {
                "ours": training.accuracy,
                "difference": training.accuracy - entry.printed,
                "rounds": training.mean("rounds"),
                "tested_on": training.mean("test_count"),
            }
            if entry.encrypted and plain is not None:
                record["change"] = paired_accuracy(training.rows, plain.rows)
        yield record


def deviation_table(found: Reproduction) -> Table:
    """Where the paper's figures and ours differ, and why."""
    return Table(
        title="Where ours differs from the paper, and why",
        caption=sentences(found.result.label),
        columns=[Column("what", "In the paper", "", reach=_ALWAYS), Column("effect", "Here", "", reach=_ALWAYS)],
        records=[asdict(row) for row in found.result.deviations],
        context={"table": "deviations", "scale": found.result.scale},
    )


def cost_tables(found: Reproduction) -> list[Table]:
    """Aggregation error against what is stated, and what encryption costs a round: one table a network."""
    return [_costs(found, run) for run in found.runs.values()]


def _costs(found: Reproduction, run: NetworkRun) -> Table:
    federated = [item for item in run.trainings if not item.reference]
    on_page = {column.name: replace(column, reach=Reach.PAGE) for column in TRAININGS}
    shown = {name: replace(column, reach=_ALWAYS) for name, column in on_page.items()}
    return Table(
        title=f"Error and cost of a round: {run.result.title}",
        caption=sentences(
            found.result.label,
            run.result.setting,
            "Times are of one round, all clients one after the other",
            "The paper calls the time of encryption and decryption negligible; the share stands for plain messages too,"
            " since writing and reading them takes time as well",
        ),
        columns=[
            _ALGORITHM,
            Column("defense", "Defense", "plain is none; qsgd quantises updates; keynet encrypts", reach=_ALWAYS),
            shown["aggregation_error"],
            shown["stated_error"],
            Column("within", "Within", "whether every training's error is within what is stated", reach=_ALWAYS),
            *(shown[name] for name in (*_ENCRYPTION, "seconds_train")),
            on_page["seconds_aggregate"],
            Column(
                "key_share",
                "Share of round",
                "key handling, protect and recover as a share of their sum with aggregation and training",
                percent,
                _ALWAYS,
            ),
            on_page["bytes_up"],
            on_page["bytes_down"],
            on_page["key_bytes"],
            on_page["plain_share"],
            on_page["key_holders"],
        ],
        records=[_cost_record(item) for item in federated],
        context={"table": "costs", "scale": found.result.scale, "network": run.result.network},
    )


def _cost_record(item: TrainingSummary) -> dict[str, Any]:
    kept = bool((item.rows["aggregation_error"] <= item.rows["stated_error"]).all())
    seconds = {name: item.mean(name) for name in _STEPS}
    total = sum(seconds.values())
    return {
        "algorithm": algorithm_title(item.algorithm),
        "defense": item.defense,
        "aggregation_error": item.largest("aggregation_error"),
        "stated_error": item.largest("stated_error"),
        "within": "yes" if kept else "no",
        **seconds,
        "key_share": sum(seconds[name] for name in _ENCRYPTION) / total if total else None,
        **{name: item.mean(name) for name in ("bytes_up", "bytes_down", "key_bytes", "plain_share")},
        "key_holders": item.text("key_holders"),
    }


def inference_table(found: Reproduction) -> Table:
    """Figures 4.2 and 4.3 counted: keyed images through the keyed network."""
    return Table(
        title="Encrypted inference: keyed images through the keyed network",
        caption=sentences(
            found.result.label,
            "The paper shows one image a network",
            "Another key is the control: images keyed under it say nothing to the network",
        ),
        columns=[
            _NETWORK,
            Column("keys", "Kind of keys", "", reach=_ALWAYS),
            Column("state", "State", "run, or why the network cannot be run under these keys", reach=_ALWAYS),
            Column("images", "Images", "", number(0), _ALWAYS),
            Column("agreement", "Same class", "share of images with the same class both ways", fine_percent, _ALWAYS),
            Column("plain_accuracy", "Plain accuracy", "of these images, plain network", fine_percent, _ALWAYS),
            Column("encrypted_accuracy", "Keyed accuracy", "keyed network", fine_percent, _ALWAYS),
            Column("largest_difference", "Difference", "largest, of the opened class scores", scientific, _ALWAYS),
            Column("largest_score", "Score", "largest class score of the plain network", number(1)),
            Column("wrong_key_agreement", "Other key", "share with the same class under another key", fine_percent, _ALWAYS),
            Column("wrong_key_difference", "Its difference", "largest under another key", scientific),
            Column("plain_entries", "Entries", "of the network's matrices", number(0)),
            Column("keyed_entries", "Keyed entries", "of the keyed matrices", number(0)),
            Column("seconds_plain", "Time", "an image takes in the plain network", duration),
            Column("seconds_keyed", "Keyed time", "an image takes in the keyed network", duration),
        ],
        records=[record for one in found.result.networks for record in _inference_records(one)]
        + [{"network": NETWORK_TITLES[name], "state": NOT_RUN} for name in absent(found)],
        context={"table": "inference", "scale": found.result.scale},
    )  # fmt: skip


def _inference_records(one: NetworkResult) -> Iterable[dict[str, Any]]:
    yield from ({"network": one.title, "state": "run", **asdict(row)} for row in one.inference)
    yield from ({"network": one.title, "keys": row.keys, "state": f"refused: {row.reason}"} for row in one.refusals)
    if not one.inference and not one.refusals:
        yield {"network": one.title, "state": NOT_RUN}


def setting_table(found: Reproduction) -> Table:
    """What was run, in sentences."""
    subjects = (("setting", "Network and data"), ("training", "Training"), ("budget", "Attack"), ("victims", "Victims"))
    records = []
    for one in found.result.networks:
        records += [{"network": one.title, "what": what, "here": getattr(one, name)} for name, what in subjects]
    records += [{"network": NETWORK_TITLES[name], "what": "", "here": NOT_RUN} for name in absent(found)]
    return Table(
        title="What was run",
        caption=sentences(found.result.label),
        columns=[
            _NETWORK,
            Column("what", "What", "", reach=_ALWAYS),
            Column("here", "Here", "", reach=_ALWAYS),
        ],
        records=records,
        context={"table": "setting", "scale": found.result.scale},
    )


def absent(found: Reproduction) -> list[NetworkName]:
    """The paper's networks that were not run."""
    return [name for name in NETWORK_TITLES if name not in found.runs]
