"""Secret randomness: AES-256 in counter mode, keyed by the operating system inside the process that uses it.

An attacker who can guess the noise can subtract it, so torch's and numpy's own generators are not suitable (Mersenne
Twister is not cryptographic, and a torch seed has 32 effective bits on the CPU). The key is never logged, stored or
passed on: a generator that is carried into another process, by fork or by pickling, raises an error.

Normal numbers are sums of four draws each. A single floating-point draw can be recognised in the last bits of the sum
that it was added to, because Box and Muller's formula can produce only some numbers; for a sum of four draws, an
attacker would have to guess three (N. Holohan, S. Braghin, "Secure Random Sampling in Differential Privacy", ESORICS
2021).
"""

from __future__ import annotations

import math
import os
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from wardround.errors import WardroundError

DRAWS_PER_NORMAL = 4
_BLOCK = 16  # bytes of an AES block; update_into needs room for one more block
_PAIRS_AT_ONCE = 1 << 14  # small enough for a piece and its intermediate results to stay in the processor's cache


class SecretRandom:
    """Uniform and normal numbers from AES-256-CTR under a fresh key of the operating system.

    AES in counter mode is the core of NIST SP 800-90A.
    """

    secret = True  # False in tests that need a known key; a site with patients refuses such a source

    def __init__(self) -> None:
        self._start(os.urandom(32))

    def _start(self, key: bytes) -> None:
        self._process = os.getpid()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK))).encryptor()
        self._zeros = bytes(12 * DRAWS_PER_NORMAL * _PAIRS_AT_ONCE)

    def __reduce__(self) -> NoReturn:
        raise WardroundError("secret randomness cannot be sent to another process")

    def _fill(self, out: memoryview, size: int) -> None:
        """Write the next `size` bytes of the stream into `out`, which has room for one block more."""
        if os.getpid() != self._process:
            raise WardroundError("secret randomness cannot be used in a forked process")
        zeros = memoryview(self._zeros)
        for begin in range(0, size, len(zeros)):
            end = min(begin + len(zeros), size)
            self._stream.update_into(zeros[: end - begin], out[begin : end + _BLOCK])

    def words(self, count: int) -> np.ndarray:
        """Return `count` independent uniform 64-bit words, uint64."""
        out = bytearray(8 * count + _BLOCK)
        self._fill(memoryview(out), 8 * count)
        return np.frombuffer(out, dtype="<u8", count=count)

    def uniform(self, count: int) -> np.ndarray:
        """Return `count` uniform float64 numbers in [0, 1), 53 bits each."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """Return `count` standard normal float32 numbers, on the CPU.

        Each is the sum of `DRAWS_PER_NORMAL` draws, divided by the square root of `DRAWS_PER_NORMAL`. A draw follows
        Box and Muller (1958): radius sqrt(-2 ln u) with u of 63 bits in (0, 1], so that the tail of each of the four
        reaches 9.3 deviations, and an angle of 32 bits, whose cosine is used for one number and whose sine for another.
        """
        pairs, draws = min(_PAIRS_AT_ONCE, (count + 1) // 2), DRAWS_PER_NORMAL
        out_C = torch.empty(count)
        if count == 0:
            return out_C
        source = bytearray(12 * draws * pairs + _BLOCK)
        word_DP = torch.frombuffer(source, dtype=torch.int64, count=draws * pairs).view(draws, pairs)
        turn_DP = torch.frombuffer(source, dtype=torch.int32, count=draws * pairs, offset=8 * draws * pairs)
        turn_DP = turn_DP.view(draws, pairs)
        radius_DP, angle_DP, cosine_DP = (torch.empty(draws, pairs) for _ in range(3))
        for begin in range(0, count, 2 * pairs):
            self._fill(memoryview(source), 12 * draws * pairs)
            radius_DP.copy_(word_DP).mul_(2.0**-63).abs_().clamp_(min=2.0**-64)
            radius_DP.log_().mul_(-2.0 / draws).sqrt_()
            angle_DP.copy_(turn_DP).mul_(math.pi * 2.0**-31)
            torch.cos(angle_DP, out=cosine_DP).mul_(radius_DP)
            angle_DP.sin_().mul_(radius_DP)
            for part, begin_part in ((cosine_DP, begin), (angle_DP, begin + pairs)):
                piece = out_C[begin_part : begin_part + pairs]
                torch.sum(part[:, : len(piece)], 0, out=piece)
        source[:] = bytes(len(source))  # the noise must stay secret until it is added to a sum
        return out_C

    def permutation(self, count: int) -> np.ndarray:
        """Return a uniform random order of 0 .. count-1.

        Ties of the 64-bit sort keys have probability below count^2 / 2^65.
        """
        return np.argsort(self.words(count), kind="stable")
