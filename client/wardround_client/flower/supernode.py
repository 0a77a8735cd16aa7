"""Flower's SuperNode as a hospital runs it.

Its connection is watched, its messages are limited in size, and its process ends when any of its parts ends.

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
    """Run the SuperNode of a site; `arguments` are the site's folder, then Flower's command and its flags."""
    os.environ.pop(SECRET, None)  # this process prints text from the server and none of our log entries
    bound_the_link(Path(arguments[0]))
    watch_the_connection()
    sys.argv = list(arguments[1:])
    end_with_any_part(flower_supernode)


if __name__ == "__main__":
    main(sys.argv[1:])
