"""The list of patients who object: pseudonyms that are kept out of every later cohort and every later draw.

A site reads the list in every round (`site.py`) and in every ingest; `forget.py` enters a patient.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround_client.data.cohort import Cohort, select_patients

OPT_OUT_FILE = "opt_out.txt"


def opted_out(site_folder: Path) -> frozenset[str]:
    """The pseudonyms of all who object. Raises `DataError` where the list cannot be read: nobody is trained on then."""
    path = site_folder / OPT_OUT_FILE
    try:
        lines = path.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of objections cannot be read ({type(error).__name__}); restore it") from None
    return frozenset(lines)


def without_objectors(cohort: Cohort, objectors: frozenset[str]) -> Cohort:
    """The cohort of those who do not object."""
    return select_patients(cohort, np.array([name not in objectors for name in cohort.pseudonyms], dtype=np.bool_))
