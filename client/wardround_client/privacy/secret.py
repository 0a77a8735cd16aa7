"""Secret randomness: AES-256 in counter mode, keyed by the operating system inside the process that uses it.

Whoever can guess the noise can subtract it, so neither torch's nor numpy's own generators will do (Mersenne Twister
is not cryptographic, and a torch seed has 32 effective bits on the CPU). The key is never logged, stored or passed
on: an object that finds itself in another process, by fork or by pickling, refuses to answer.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wardround.errors import WardroundError


class SecretRandom:
    """Uniform and normal numbers from AES-256-CTR under a fresh key of the operating system (NIST SP 800-90A's
    core).
    """

    secret = True

    def __init__(self) -> None:
        self._start(os.urandom(32))

    def _start(self, key: bytes) -> None:
        self._process = os.getpid()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __reduce__(self):
        raise WardroundError("secret randomness does not travel between processes")

    def words(self, count: int) -> np.ndarray:
        """`count` independent uniform 64-bit words, uint64."""
        if os.getpid() != self._process:
            raise WardroundError("secret randomness was carried into another process")
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """`count` uniform float64 in [0, 1), 53 bits each."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """`count` standard normal float64 by Box and Muller (1958), from 53-bit uniforms in (0, 1]."""
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def permutation(self, count: int) -> np.ndarray:
        """A uniform random order of 0 .. count-1 (ties of the 64-bit sort keys have probability below count^2 /
        2^65).
        """
        return np.argsort(self.words(count), kind="stable")


class KnownRandom(SecretRandom):
    """The same stream under a key that the caller knows, for tests of equality. A real site refuses it."""

    secret = False

    def __init__(self, key: bytes) -> None:
        self._start(key.ljust(32, b"\0"))
