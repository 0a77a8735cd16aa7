"""Results of the attacks on a finished run, as values and as the content of attack.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wardround_simulation.attack.canaries import Canaries
from wardround_simulation.attack.inversion import Inversion
from wardround_simulation.attack.membership import Attack, Membership
from wardround_simulation.attack.system import Finding

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """The results of all checks and attacks.

    `model_sha256` is the hash of the attacked model.safetensors. `promised` is False for a run with epsilon = inf,
    which promises no privacy that an attack could disprove.
    """

    run_id: str
    study_sha256: str
    model_sha256: str
    promised: bool
    phantoms: bool
    findings: tuple[Finding, ...]
    canaries: Canaries | None
    membership: Membership | None
    inversion: Inversion | None
    seeds: int
    seconds: float

    @property
    def verdict(self) -> str:
        """`FAIL` if any check failed, else `no privacy` if the run promised none, else `pass`."""
        if any(finding.failed for finding in self.findings):
            return "FAIL"
        return "pass" if self.promised else "no privacy"

    def to_json(self) -> dict[str, Any]:
        """Return the content of attack.json, which is also that of `attack` in result.json."""
        return {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "study_sha256": self.study_sha256,
            "model_sha256": self.model_sha256,
            "verdict": self.verdict,
            "checks": [asdict(finding) for finding in self.findings],
            "canaries": _canaries_json(self.canaries),
            "membership": _membership_json(self.membership),
            "inversion": _inversion_json(self.inversion),
            "seeds": self.seeds,
            "seconds": self.seconds,
        }


def _canaries_json(found: Canaries | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "canaries": found.canaries,
        "guesses": found.guesses,
        "right": [audit.right for audit in found.audits],
        "right_limit": found.right_limit,
        "epsilon_bounds": [audit.epsilon_bound for audit in found.audits],
        "epsilon_bound": found.epsilon_bound,
        "confidence": 0.95,
        "honest_band": [found.honest_low, found.honest_high],
        "honest_median": found.honest_median,
        "signal": found.signal,
        "signal_expected": found.signal_expected,
        "signal_limit": found.signal_limit,
        "epsilon_promised": found.promised,
        "delta": found.delta,
        "verdict": found.finding.verdict,
    }


def _membership_json(found: Membership | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **_attack_json(found.released),
        "auc_limit": found.auc_limit,
        "true_positive_rate_limit": found.true_positive_rate_limit,
        "without_privacy": _attack_json(found.contrast) if found.contrast else None,
        "verdict": found.finding.verdict,
    }


def _attack_json(found: Attack) -> dict[str, Any]:
    return {
        "members": found.members,
        "others": found.others,
        "auc": found.auc,
        "auc_ci95": list(found.auc_ci95),
        "true_positive_rate_at_1_percent": found.true_positive_rate,
        "true_positive_rate_ci95": list(found.true_positive_rate_ci95),
    }


def _inversion_json(found: Inversion | None) -> dict[str, Any] | None:
    if found is None:
        return None
    ratios = {kind.replace(" ", "_"): [round(one, 2) for one in found.psnr[kind].tolist()] for kind in found.psnr}
    return {
        "psnr_db": ratios,
        "feature_error": None if found.feature_error is None else list(found.feature_error),
        "own_network": found.own_network,
        "verdict": found.finding.verdict,
    }
