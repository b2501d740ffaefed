"""The tables of the PriDe reproduction: the paper's figures, its procedure's, and sound ones side by side."""

from __future__ import annotations

from typing import Any

from benchmark.store.pride import COLUMNS, AdversaryResult, ModelResult, PrideResult, Times
from leaderboard.tables.model import Column, Reach, Table, duration, number, size, text

HEADINGS = {"printed": "Printed", "coded": "As coded", "coded-1e-7": "As coded, 1e-7", "sound": "Sound"}
"""What people read for each column of the result."""

_MEANINGS = {
    "printed": "what the paper prints; on each party's own test slice",
    "coded": "the paper's procedure with precision=7: each party's own test slice, cloud weight 1/2, two rows averaged",
    "coded-1e-7": "the same with the precision that was meant",
    "sound": "all test images; FedAvg weights n_k / n, all coefficients and intercepts, packed fixed point",
}

_accuracy = number(2, scale=100, unit="%")


def accuracy_table(result: PrideResult) -> Table:
    """Accuracy of every model in the three columns, and what each is tested on."""
    setting = result.setting
    columns = [Column("model", "Model", "", reach=Reach.EVERYWHERE)]
    columns += [
        Column(column, HEADINGS[column], f"accuracy: {_MEANINGS[column]}", _accuracy, Reach.EVERYWHERE)
        for column in COLUMNS
    ]
    columns += [
        Column("tested_coded", "Own slice", "test images behind As coded", number(0), Reach.EVERYWHERE),
        Column("tested_sound", "All", "test images behind Sound", number(0)),
        Column("coded_on_all", "As coded, all", "As coded, but on all test images", _accuracy),
        Column("coded-1e-7_on_all", "1e-7, all", "As coded with 1e-7, but on all test images", _accuracy),
        Column("points", "Points", "training images", number(0), Reach.EVERYWHERE),
    ]
    records = []
    for model in result.model_names:
        found = {column: result.find(model, column) for column in COLUMNS}
        record: dict[str, Any] = {"model": model, "points": _points(result, model)}
        record |= {column: None if row is None else row.accuracy for column, row in found.items()}
        record |= {f"tested_{column}": None if row is None else row.tested_on for column, row in found.items()}
        record |= {f"{column}_on_all": None if row is None else row.accuracy_on_all for column, row in found.items()}
        records.append(record)
    return Table(
        title="PriDe (Pavlak 2018): accuracy as printed, as coded, and sound",
        caption=f"{setting.label}, seed {setting.seed}. {setting.provenance}",
        columns=columns,
        records=records,
        context={"table": "accuracy", "data": setting.label},
        notes=_notes(result),
    )


def time_table(result: PrideResult) -> Table:
    """Where the time goes, for each average and column, and what a party sends."""
    seconds = [
        ("train", "Training", "training of all parties in it, one after the other"),
        ("encrypt", "Encrypt", "by the cloud as coded, by all parties in the sound column"),
        ("aggregate", "Aggregate", "additions and divisions of ciphertexts"),
        ("decrypt", "Decrypt", ""),
        ("sequence", "In sequence", "all steps of all parties one after the other"),
        ("parallel", "In parallel", "the longest path where parties work side by side"),
    ]
    always = Reach.EVERYWHERE
    columns = [Column("model", "Model", "", reach=always), Column("column", "Column", "", reach=always)]
    columns += [Column(name, heading, meaning, duration, always) for name, heading, meaning in seconds]
    columns.append(Column("bytes_up", "Sent", "bytes that one party sends", size, always))
    rows = [row for row in result.models if row.column != "coded-1e-7" and not _repeats(row)]
    rows.sort(key=lambda row: result.model_names.index(row.model))
    setting = result.setting
    lengths = ", ".join(f"{1000 * one.seconds_per_weight:.2f} ms at {one.bits} bits" for one in result.key_lengths)
    least, most = (1000 * value for value in result.printed_seconds_per_weight)
    return Table(
        title="PriDe (Pavlak 2018): time",
        caption=(
            f"{setting.label}; Paillier key of {setting.key_bits} bits; {_machine(result)}. One weight through phe"
            f" (encrypt, add, divide, decrypt) takes {lengths}; the printed times leave {least:.2f} to {most:.2f} ms."
        ),
        columns=columns,
        records=[_time_record(row, row.times) for row in rows],
        context={"table": "time", "data": setting.label},
    )


def adversary_table(result: PrideResult) -> Table:
    """What each adversary recovers under the protocol as the paper wrote it."""
    everywhere = Reach.EVERYWHERE
    return Table(
        title="PriDe (Pavlak 2018): what each adversary recovers",
        caption=(
            f"{result.setting.label}; the protocol as coded, at precision 1e-7, real phe objects under a key of"
            f" {result.setting.key_bits} bits; every adversary starts from the bytes that were sent."
        ),
        columns=[
            Column("adversary", "Adversary", "", reach=everywhere),
            Column("holds", "Holds", "what it has beyond the public description of the protocol"),
            Column("target", "Recovers", "", reach=everywhere),
            Column("measure", "Measure", "", reach=everywhere),
            Column("shown", "Value", "", reach=everywhere),
            Column("cases", "Of", "weights, rounds or images that the value is over", number(0), everywhere),
            Column("note", "Note", ""),
            Column("value", "Raw value", "", number(6), Reach.DATA),
            Column("unit", "Unit", "", reach=Reach.DATA),
        ],
        records=[{**vars(row), "shown": shown_value(row)} for row in result.adversaries],
        context={"table": "adversaries", "data": result.setting.label},
    )


def deviation_table(result: PrideResult) -> Table:
    """Where the paper's procedure changes a figure."""
    always = Reach.EVERYWHERE
    return Table(
        title="PriDe (Pavlak 2018): what changes the printed figures",
        caption=f"Measured on {result.setting.label}.",
        columns=[Column("what", "In the paper", "", reach=always), Column("effect", "Measured here", "", reach=always)],
        records=[vars(row) for row in result.deviations],
        context={"table": "deviations", "data": result.setting.label},
    )


def shown_value(row: AdversaryResult) -> str:
    """A measured value in its unit."""
    if row.unit == "share":
        return f"{100 * row.value:.1f}%"
    if row.unit == "error":
        return f"{row.value:.1e}" if row.value else "0"
    return f"{row.value:.2f} {row.unit}" if row.unit == "bits" else f"{row.value:.1f} {row.unit}"


def _notes(result: PrideResult) -> list[str]:
    """Each note once, with the models that it is about."""
    about: dict[str, list[str]] = {}
    for row in result.models:
        if row.note:
            about.setdefault(row.note, []).append(row.model)
    return [f"printed, {', '.join(models)}: {note}" for note, models in about.items()]


def _points(result: PrideResult, model: str) -> int:
    """Training images behind a model, from its name and the setting's sizes."""
    sizes = result.setting.sizes
    if model == "centralised":
        return result.setting.centralised
    if model == "six parties":
        return sum(sizes)
    number_of = int(model.rpartition(" ")[2])
    return sizes[number_of] + (sizes[0] if model.startswith("cloud") else 0)


def _repeats(row: ModelResult) -> bool:
    """Models trained without any exchange stand once, under As coded: the sound column has the same training."""
    return row.column == "sound" and row.bytes_up is None


def _time_record(row: ModelResult, times: Times) -> dict[str, Any]:
    return {"model": row.model, "column": HEADINGS[row.column], "bytes_up": row.bytes_up, **vars(times)}


def _machine(result: PrideResult) -> str:
    hardware = result.manifest.hardware
    return text(f"{hardware['cpu']}, {hardware['cores']} cores")
