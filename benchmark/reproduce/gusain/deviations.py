"""Where the paper's figures and ours differ, each with the figure that was measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from benchmark.reproduce.gusain.printed import TABLE_4_1, TITLES
from benchmark.store import RunTables
from benchmark.store.documents import Deviation
from benchmark.store.gusain import AlgorithmName, NetworkName, NetworkResult, TableEntry

Runs = Mapping[NetworkName, RunTables]

_ALGORITHMS: dict[AlgorithmName, str] = {"fedavg": "FedAvg", "fedpaq": "FedPAQ"}
_ENCRYPTION = ("seconds_keys", "seconds_protect", "seconds_recover")
_REST = ("seconds_train", "seconds_aggregate")


def deviations(runs: Runs, networks: Sequence[NetworkResult]) -> list[Deviation]:
    """The paper's claims in its own order, each with what was measured of it in these runs."""
    pairs = [_Pair(plain, encrypted, runs[plain.network]) for plain, encrypted in _pairs() if plain.network in runs]
    return [
        *_accuracies(runs),
        *_encryption_and_accuracy(pairs),
        *_quantisation(pairs),
        *_recovered(pairs),
        *_overhead(pairs),
        *_inference(networks),
    ]


def _pairs() -> list[tuple[TableEntry, TableEntry]]:
    """Table 4.1 without and with encryption."""
    return [
        (plain, encrypted)
        for plain in TABLE_4_1
        for encrypted in TABLE_4_1
        if (plain.network, plain.algorithm) == (encrypted.network, encrypted.algorithm)
        and encrypted.encrypted
        and not plain.encrypted
    ]


class _Pair:
    """Two entries of Table 4.1 that differ in encryption alone, with their trainings here, a row a seed."""

    def __init__(self, plain: TableEntry, encrypted: TableEntry, run: RunTables) -> None:
        self.plain, self.encrypted = plain, encrypted
        self.network, self.algorithm = plain.network, plain.algorithm
        self.title = f"{TITLES[plain.network]}, {_ALGORITHMS[plain.algorithm]}"
        self.plain_rows, self.encrypted_rows = (_trainings(run, entry) for entry in (plain, encrypted))
        self._run = run

    @property
    def change(self) -> float:
        """Final accuracy with encryption less without, mean over the seeds."""
        by_seed = [rows.set_index("seed")["accuracy"] for rows in (self.encrypted_rows, self.plain_rows)]
        return float((by_seed[0] - by_seed[1]).mean())

    @property
    def unsteadiness(self) -> float:
        """Largest change of the plain network's accuracy from one round to the next in the second half of training."""
        curves = [np.asarray(curve, dtype=float) for curve in self.plain_rows["accuracy_by_round"]]
        return max(float(np.abs(np.diff(curve[len(curve) // 2 :])).max(initial=0)) for curve in curves)

    @property
    def printed_change(self) -> float:
        """The same in the paper."""
        return self.encrypted.printed - self.plain.printed

    def recovered(self, entry: TableEntry, reader: str, kind: str) -> pd.DataFrame:
        """Image rows of the attack on what an entry shared, over all rounds and seeds."""
        position, knowledge = reader.split("/")
        wanted = {"position": position, "knowledge": knowledge, "defense": entry.defense, "victim_kind": kind}
        cells = self._run.cells[self._run.cells["algorithm"].str.startswith(entry.algorithm)]
        for column, value in wanted.items():
            cells = cells[cells[column] == value]
        return self._run.images[self._run.images["cell"].isin(cells["cell"])]


def _trainings(run: RunTables, entry: TableEntry) -> pd.DataFrame:
    rows = run.trainings
    chosen = rows["algorithm"].str.startswith(entry.algorithm) & (rows["defense"] == entry.defense)
    return rows[chosen & (rows["reference"] == "")]


def _accuracies(runs: Runs) -> Iterator[Deviation]:
    """How far the level itself is from the paper's, and what training without federation reaches here."""
    for network, run in runs.items():
        printed = {_ALGORITHMS[one.algorithm]: one for one in TABLE_4_1 if one.network == network and not one.encrypted}
        ours = [
            f"{_percent(float(_trainings(run, entry)['accuracy'].mean()))} under {name}"
            for name, entry in printed.items()
        ]
        rows = run.trainings[run.trainings["reference"] != ""]
        references = [
            f"{name} {_percent(float(group['accuracy'].mean()))}" for name, group in rows.groupby("reference")
        ]
        beside = (
            f" Without federation, with as many passes or steps as a client makes: {', '.join(references)}."
            if references
            else ""
        )
        federated = run.trainings[run.trainings["reference"] == ""]
        chance = 1 / int(run.trainings["class_count"].iloc[0])
        yield Deviation(
            f"{TITLES[network]} without encryption: "
            + ", ".join(f"{_percent(one.printed, 0)} under {name}" for name, one in printed.items())
            + ".",
            f"{', '.join(ours)} after {_rounds(federated)} (chance {_percent(chance)}).{beside} The two clients share"
            " no class, so that each round's average joins networks that each know half of the classes; how far that gets"
            " is a matter of rounds.",
        )


def _encryption_and_accuracy(pairs: Sequence[_Pair]) -> Iterator[Deviation]:
    """The drop by encryption, which the paper puts down to floating point."""
    rounded = [pair for pair in pairs if pair.algorithm == "fedavg"]
    if not rounded:
        return
    errors = "; ".join(f"{TITLES[pair.network]} {_error(pair.encrypted_rows)}" for pair in rounded)
    yield Deviation(
        "Encryption costs 2 points of accuracy under FedAvg, by floating-point error.",
        f"From identical weights one round's decrypted average differs from the plain one, in the largest entry of any"
        f" round, by {errors}. Accuracy changes by {_changes(rounded)}. Over a training such differences grow with every step,"
        " as those of any other rounding do; more than that floating point does not explain.",
    )


def _quantisation(pairs: Sequence[_Pair]) -> Iterator[Deviation]:
    """FedPAQ's changes, down and up."""
    quantised = [pair for pair in pairs if pair.algorithm == "fedpaq"]
    if not quantised:
        return
    printed = ", ".join(f"{TITLES[pair.network]} {100 * pair.printed_change:+.0f} points" for pair in quantised)
    errors = "; ".join(
        f"{TITLES[pair.network]} {_error(pair.plain_rows)} without encryption, {_error(pair.encrypted_rows)} with it"
        for pair in quantised
    )
    yield Deviation(
        f"Under FedPAQ encryption changes accuracy: {printed}.",
        f"Here by {_changes(quantised)}. A round's error is the quantiser's: {errors}. It rounds at random, and keyed updates"
        " otherwise than plain ones, so that two trainings part after one round whether or not anything is lost.",
    )


def _recovered(pairs: Sequence[_Pair]) -> Iterator[Deviation]:
    """Figures 4.5 and 4.7."""
    found = []
    for pair in pairs:
        for kind, words in (("probe", "probes"), ("real-round", "real rounds")):
            frames = [
                pair.recovered(pair.plain, "server/oblivious", kind),
                pair.recovered(pair.encrypted, "server/oblivious", kind),
                pair.recovered(pair.encrypted, "collusion/adaptive", kind),
            ]
            if any(frame.empty for frame in frames):
                continue
            plain, oblivious, with_key = (float(frame["psnr"].mean()) for frame in frames)
            floor = float(frames[0]["floor_mean"].mean())
            nothing = ", so that at this budget the attack shows nothing either way" if plain <= floor else ""
            found.append(
                f"{pair.title}, {words}: {plain:.1f} dB from plain weights, {oblivious:.1f} from encrypted ones,"
                f" {with_key:.1f} with the key; the mean public image {floor:.1f}{nothing}"
            )
    if found:
        yield Deviation(
            "Reconstructions from encrypted weights are noise (figure 4.7), which is taken for proof that they are safe.",
            f"Mean PSNR over all attacked rounds. {'. '.join(found)}. Noise from encrypted weights alone shows that this attack"
            " does not know of the keys: whoever is one of the clients holds them. What an attacker can do who knows the scheme"
            " and has no key stands in the table of attacks as server/adaptive; where it says not evaluated, nothing is"
            " known.",
        )


def _overhead(pairs: Sequence[_Pair]) -> Iterator[Deviation]:
    """What the paper calls negligible."""
    shares = []
    for pair in pairs:
        seconds = {step: float(pair.encrypted_rows[step].fillna(0).mean()) for step in (*_ENCRYPTION, *_REST)}
        total = sum(seconds.values())
        if total > 0:
            shares.append(f"{pair.title} {_percent(sum(seconds[step] for step in _ENCRYPTION) / total)}")
    if shares:
        yield Deviation(
            "The time of key handling, encryption and decryption is negligible.",
            f"Share of a round's time here, reading and writing of messages included: {'; '.join(shares)}.",
        )


def _inference(networks: Sequence[NetworkResult]) -> Iterator[Deviation]:
    """Figures 4.2 and 4.3, and what keys pass the networks' activations."""
    rows = [(one.title, row) for one in networks for row in one.inference]
    if rows:
        agreed = sum(round(row.agreement * row.images) for _, row in rows)
        total = sum(row.images for _, row in rows)
        wrong = sum(round(row.wrong_key_agreement * row.images) for _, row in rows)
        largest = max(row.largest_difference / row.largest_score for _, row in rows if row.largest_score > 0)
        yield Deviation(
            "A plain image through the plain network and its encrypted form through the encrypted network get the same class"
            " (figures 4.2 and 4.3, one image each).",
            f"So do {agreed:,} of {total:,} test images over all networks and kinds of keys; scores differ by at most"
            f" {largest:.0e} of the largest. Keyed under somebody else's keys, {wrong:,} get the same class.",
        )
    for one in networks:
        for refusal in one.refusals:
            yield Deviation(
                f"{one.title}: keyed like any other network.",
                f"Not under every kind of key. {refusal.keys}: {refusal.reason}.",
            )


def _error(rows: pd.DataFrame) -> str:
    """Largest error of an aggregate over all rounds and seeds, and whether it keeps what the defense states."""
    error, stated = float(rows["aggregation_error"].max()), float(rows["stated_error"].max())
    kept = bool((rows["aggregation_error"] <= rows["stated_error"]).all())
    return f"{error:.1e} ({'within' if kept else 'NOT within'} the stated {stated:.1e})"


def _changes(pairs: Sequence[_Pair]) -> str:
    return ", ".join(
        f"{100 * pair.change:+.2f} points for {TITLES[pair.network]} (printed {100 * pair.printed_change:+.0f};"
        f" from one round to the next the plain network alone moves by up to {100 * pair.unsteadiness:.1f})"
        for pair in pairs
    )


def _rounds(rows: pd.DataFrame) -> str:
    return " and ".join("1 round" if rounds == 1 else f"{rounds} rounds" for rounds in sorted(set(rows["rounds"])))


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"
