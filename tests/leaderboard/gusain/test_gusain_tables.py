"""The tables of the Gusain reproduction, from a result and a run that the tests make up."""

from __future__ import annotations

import pytest
from gusain_result import (
    FEDAVG,
    HOSTILE,
)

from leaderboard.lines import Verdict
from leaderboard.reproduction.gusain_attacks import round_tables, worst_round_tables
from leaderboard.reproduction.gusain_runs import Reproduction
from leaderboard.reproduction.gusain_tables import accuracy_table, cost_tables, inference_table, setting_table


def test_table_4_1_has_every_entry_of_the_paper_and_says_what_was_not_run(found: Reproduction) -> None:
    table = accuracy_table(found)
    records = table.records
    assert [record["printed"] for record in records] == [0.98, 0.96, 0.84, 0.82, 0.98, 0.96, 0.82, 0.86]
    (ours,) = (column for column in table.columns if column.name == "ours")
    shown = [ours.show(record.get("ours")) for record in records]
    assert [cell == "not run" for cell in shown] == [False, False, True, True] * 2
    assert records[7]["printed_change"] == pytest.approx(0.04), "the paper's MobileNet gains from encryption"


def test_ours_is_that_of_the_entry_and_the_change_is_paired(found: Reproduction) -> None:
    plain, keyed = accuracy_table(found).records[:2]
    rows = found.runs["lenet"].tables.trainings
    mean = rows[rows["algorithm"] == FEDAVG].groupby("defense")["accuracy"].mean()
    assert plain["ours"] == pytest.approx(mean["plain"])
    assert keyed["difference"] == pytest.approx(mean["keynet"] - 0.96)
    assert keyed["change"].mean == pytest.approx(mean["keynet"] - mean["plain"])
    assert keyed["change"].low < keyed["change"].mean < keyed["change"].high
    assert "change" not in plain


def test_fedpaq_is_compared_with_quantised_weights_not_with_the_reference(found: Reproduction) -> None:
    quantised, keyed = accuracy_table(found).records[4:6]
    assert (quantised["defense"], keyed["defense"]) == ("qsgd", "keynet-quantized")
    assert quantised["tested_on"] == 400


def test_costs_are_shares_of_a_round_and_errors_stand_beside_what_is_stated(found: Reproduction) -> None:
    (table,) = cost_tables(found)
    records = {(record["algorithm"], record["defense"]): record for record in table.records}
    assert records["FedAvg", "keynet"]["key_share"] == pytest.approx(1.0 / 4)
    assert records["FedAvg", "plain"]["key_share"] == pytest.approx(0.5 / 4)
    assert records["FedAvg", "keynet"]["within"] == "yes"
    assert records["FedPAQ", "keynet-quantized"]["within"] == "no"
    assert len(records) == 5
    assert "negligible" in table.caption


def test_attacks_stand_at_their_worst_round_with_the_verdict_words(found: Reproduction) -> None:
    lenet, mobilenet = worst_round_tables(found)
    records = {
        (record["algorithm"], record["victims"], record["reader"], record["defense"]): record
        for record in lenet.records
    }
    assert len(records) == 2 * 3 * 2 + 2 * 3 * 3
    probe = "probe messages"
    assert records["FedAvg", probe, "oblivious", "keynet"]["verdict"] is Verdict.NEGATIVE_CONTROL
    assert records["FedAvg", probe, "knowing the scheme", "keynet"]["verdict"] is Verdict.NOT_EVALUATED
    with_key = records["FedAvg", probe, "with the key", "keynet"]
    assert (with_key["verdict"], with_key["worst"]) == (Verdict.LEAKS, "cosine, round 0")
    assert with_key["psnr"].low > with_key["floor"]
    crashed = "cosine crashed (out of memory): FedAvg, probe messages, oblivious, keynet, round 1"
    assert crashed in lenet.notes
    (unknown,) = (note for note in lenet.notes if "no attack knows it" in note)
    assert unknown.count("round 0, 1, 2") == 4, "each algorithm, each kind of victim"
    assert any(note.startswith("with the key (collusion/adaptive): The server") for note in lenet.notes)
    assert [record["algorithm"] for record in mobilenet.records] == ["not run"]


def test_every_round_is_listed_also_where_it_failed(found: Reproduction) -> None:
    tables = {(item.context["algorithm"], item.context["victim_kind"]): item for item in round_tables(found)}
    assert len(tables) == 4
    records = tables[FEDAVG, "probe"].records
    assert len(records) == 3 * 3 * 2
    (crashed,) = (record for record in records if record["verdict"] is Verdict.CRASHED)
    assert (crashed["snapshot"], crashed["defense"], crashed["details"]) == (1, "keynet", "out of memory")
    assert not [record for record in tables[FEDAVG, "real-round"].records if record["verdict"] is Verdict.CRASHED]


def test_inference_lists_what_was_refused_and_what_was_not_run(found: Reproduction) -> None:
    ran, refused, absent = inference_table(found).records
    assert (ran["agreement"], ran["wrong_key_agreement"], ran["state"]) == (1.0, 0.1, "run")
    assert refused["state"] == f"refused: {HOSTILE}"
    assert (absent["network"], absent["state"]) == ("MobileNetV2 on CIFAR-10", "not run")


def test_what_was_run_is_said_and_what_was_not(found: Reproduction) -> None:
    records = setting_table(found).records
    assert [record["what"] for record in records] == ["Network and data", "Training", "Attack", "Victims", ""]
    assert records[-1]["here"] == "not run"
    assert accuracy_table(found).notes == ["LeNet on MNIST: 5,000 digits in place of 70,000."]
