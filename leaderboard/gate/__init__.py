"""The regression gate: a run beside an accepted baseline.

Attacks are gated on undefended cells alone, where weaker is worse; defenses on their worst case over the baseline's
attacks, where more leakage is worse; trainings on accuracy; bytes exactly. Seconds are not gated: they belong to a machine.
"""

from __future__ import annotations

from leaderboard.gate.baseline import accept_baseline
from leaderboard.gate.compare import check, check_tables
from leaderboard.gate.result import Comparison, Finding, GateResult, Status

__all__ = ["Comparison", "Finding", "GateResult", "Status", "accept_baseline", "check", "check_tables"]
