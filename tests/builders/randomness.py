"""Randomness with a known key, for tests of equality."""

from __future__ import annotations

from wardround_client.privacy.secure_random import SecretRandom


class KnownRandom(SecretRandom):
    """The stream of `SecretRandom` with a key that the caller chooses. A real site refuses it."""

    secret = False

    def __init__(self, key: bytes) -> None:
        self._start(key.ljust(32, b"\0"))
