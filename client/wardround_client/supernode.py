"""Flower's SuperNode as a hospital runs it: it takes in questions of a bounded size.

python -I -m wardround_client.supernode SITE_FOLDER flower-supernode FLAG ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flwr.supernode.cli import flower_supernode

from wardround_client.intake import bound_the_link


def main(arguments: Sequence[str]) -> None:
    """Be the SuperNode of the site whose folder comes first, with Flower's own flags after it."""
    bound_the_link(Path(arguments[0]))
    sys.argv = list(arguments[1:])
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
