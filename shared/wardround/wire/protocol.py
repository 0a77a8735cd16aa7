"""Protocol constants that both sides share besides the records: kinds of requests, lifetime and size of a message."""

from __future__ import annotations

# The kinds of requests that concern patients' data, which are also the purposes in ledger and audit log: gradients, or
# figures about held-out patients. A proposal needs a person's decision and no data of patients.
TRAIN, EVALUATE = "train", "evaluate"
PERSONALISE = "personalise"  # a purpose in the ledger only: no message asks for it, and nothing of it leaves a site
PROPOSE = "query.propose"

# A message lives this much longer than its round's deadline, so that a site that finishes in time can still send its
# reply. The site derives the deadline from the time to live.
TTL_BEYOND_DEADLINE_S = 60.0

# The limit of one gRPC call, which each side keeps in memory. Flower sends objects in pieces of 5 MiB.
PIECE_BYTES = 5 * 2**20
CALL_BYTES = 8 * 2**20
