"""A hostile server's own SuperLink, for test_hostile.py: Flower's, without our bounds, which makes huge questions up as
they are fetched. None of it is stored anywhere: a site is offered ten gigabytes for as long as it takes them.

    python tests/hostile/hostile_superlink.py FLAGS of flower-superlink

offers.json of the server's folder says what there is, by the names of the pieces: {name: [question, kind, number]}.
What was handed out goes to handed.jsonl, a line a piece.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from flwr.proto.message_pb2 import PullObjectResponse
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.superlink.cli import flower_superlink

sys.path.append(str(Path(__file__).parent))  # PYTHONSAFEPATH, which our programs set, leaves a script's folder out
from hostile_pieces import array_piece, large_proposal  # noqa: E402


class Flooding(FleetServicer):
    """Flower's Fleet API; a piece that was announced, is not in its store and stands among the offers, is made."""

    def PullObject(self, request: Any, context: Any) -> Any:
        response = super().PullObject(request, context)
        offers = Path(os.environ["WARDROUND_SERVER"]) / "offers.json"
        if response.object_available or not offers.exists():
            return response
        offer = json.loads(offers.read_text()).get(request.object_id)
        if offer is None:
            return response
        question, kind, number = offer
        content = array_piece(number) if kind == "array" else large_proposal(number)
        with offers.with_name("handed.jsonl").open("a") as handed:
            handed.write(json.dumps({"question": question, "bytes": len(content)}) + "\n")
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)


if __name__ == "__main__":
    sys.modules[flower_superlink.__module__].FleetServicer = Flooding
    flower_superlink()
