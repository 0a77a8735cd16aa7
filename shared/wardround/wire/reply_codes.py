"""The codes for replies that do not count, and the text that is displayed for each.

Only a code crosses the network about a failure: `late`, `failed`, `unreachable`, `refused:WHY` (the site's policy or
budget) or `invalid:WHY` (the peer's message failed its checks). Neither side therefore displays text written by the
other.
"""

from __future__ import annotations

CODES = {
    "late": "answered after the deadline, or not at all",
    "failed": "the site failed; its own log says why",
    "refused:budget": "the study does not fit what is left of the site's privacy budget",
    "refused:delta": "the study's δ is above the site's",
    "refused:altered": "the approved study was altered at the site after its approval",
    "refused:architecture": "the server's network is not the one that the study names",
    "refused:other_weights": "this round was asked for before with other weights",
    "refused:too_many_proposals": "too many proposals wait for a decision at the site",
    "invalid:not-finite": "its reply held NaN or infinity",
    "invalid:norm": "its reply changes the weights by more than the study's max_update_norm",
    "invalid:shape": "its reply held tensors of other shapes",
    "invalid:names": "its reply held other tensors than were sent out",
    "invalid:size": "its reply was too large, or not of the size it claimed",
    "invalid:stale": "it answered another study, run or round",
    "invalid:ledger-rollback": "its ledger went back to an older copy; the site must restore the newest",
    "invalid:ledger-gap": "its ledger grew by more entries than a reply shows; telephone, then `sites accept-ledger`",
    "unknown": "no reason given",
    "refused:runs_used": "all runs that the site approved of this study have begun; a person there can approve more",
    "refused:no_spare_rounds": "the site's budget for this run is used up, spare rounds included",
    "refused:not_approved": "the site has not approved this study",
    "refused:evaluation_off": "the site releases no figures about held-out patients",
    "refused:version-site-older": "the site runs an older version than the server: the site must upgrade",
    "refused:version-server-older": "the server runs an older version than the site: the server must upgrade",
    "refused:clock": "the server's clock shows no possible time: switch on NTP at the server",
    "refused:wire-protocol": "site and server speak different protocols: the older of the two must upgrade",
    "invalid:protocol": "site and server speak different protocols: the older of the two must upgrade",
    "unreachable": "not connected: its daemon, its network or this server's port",
    "refused:no_privacy": "the site does not allow ε = ∞",
}


def code_text(code: str) -> str:
    """Return the text for a reply's code; a code of unknown form is returned unchanged."""
    if code in CODES:
        return CODES[code]
    kind, _, detail = code.partition(":")
    if kind == "refused":
        return f"the site refused: {detail.replace('_', ' ').replace('-', ' ') or 'no reason given'}"
    if kind == "invalid":
        return f"the reply failed its checks: {detail.replace('_', ' ').replace('-', ' ') or 'no detail'}"
    return code
