"""Flower's SuperNode as a hospital runs it: over a connection that is watched, with questions of a bounded size, in a
process that ends with any of its parts.

python -I -m wardround_client.flower.supernode SITE_FOLDER flower-supernode FLAG ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flwr.supernode.cli import flower_supernode

from wardround.operations.logs import SECRET
from wardround_client.flower.connection import end_with_any_part, watch_the_connection
from wardround_client.flower.message_limit import bound_the_link


def main(arguments: Sequence[str]) -> None:
    """Be the SuperNode of the site whose folder comes first, with Flower's own flags after it."""
    os.environ.pop(SECRET, None)  # it prints the server's words, and no entries of ours
    bound_the_link(Path(arguments[0]))
    watch_the_connection()
    sys.argv = list(arguments[1:])
    end_with_any_part(flower_supernode)


if __name__ == "__main__":
    main(sys.argv[1:])
