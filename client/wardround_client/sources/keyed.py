"""Identifiers as keyed hashes: they can be compared at the site that made them, and read back nowhere."""

from __future__ import annotations

import hashlib
import hmac


def keyed(key: bytes, kind: str, value: str) -> str:
    """Return the hex HMAC-SHA256 of an identifier under the site's key: hashes can be compared, but not read back."""
    message = f"{kind}\0{value.strip(chr(0) + ' ')}".encode("utf-8", "surrogatepass")  # a file name may be any bytes
    return hmac.new(key, message, hashlib.sha256).hexdigest()
