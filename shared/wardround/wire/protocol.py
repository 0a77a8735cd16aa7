"""What both sides of the protocol must agree on beside the records: kinds of questions, time and size of a message."""

from __future__ import annotations

# The kinds of questions, which are also the purposes in ledger and audit log: gradients, or figures about patients held
# out. A proposal asks a person, and nothing of patients.
TRAIN, EVALUATE = "train", "evaluate"
PROPOSE = "query.propose"

# A message lives this much longer than its round's deadline, so that a site that ends in time can still send its reply;
# the site takes the deadline from the time to live.
TTL_BEYOND_DEADLINE_S = 60.0

# One gRPC call, which each side holds in memory: Flower sends pieces of 5 MiB.
PIECE_BYTES = 5 * 2**20
CALL_BYTES = 8 * 2**20
