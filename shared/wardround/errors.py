"""The exception hierarchy for all errors that reach users. A command turns each into one line and an exit code.

    WardroundError                 exit 1  a failure not caused by user input
    ├── UsageError                 exit 2  a wrong command, option, file or field
    │   ├── StudyError                     the study file: unknown key, value out of range
    │   ├── DataError                      a data folder, manifest or label file
    │   └── ModelError                     a model file or architecture that does not fit
    ├── RefusedError               exit 3  a refusal by policy or budget
    │   ├── PolicyRefusal                  not approved, or against `site.toml`
    │   ├── BudgetRefusal                  the ledger's cap or the spare rounds are used up
    │   └── ReleaseRefusal                 a model may not leave: the release gate is closed
    ├── WireError                  exit 1  a message from a peer failed its validation
    ├── RecordError                exit 1  a chained record is unreadable or was altered
    │   ├── LedgerError                    the ledger
    │   └── AuditError                     the audit log
    └── RoundError                 exit 1  a round missed its quorum or its deadline, or was stopped

Every message is one line that names the fault, its place and the fix. It never contains a value read from a patient's
file.
"""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class WardroundError(Exception):
    """Base class of all errors that this project raises deliberately. `exit_code` is the exit code of a command."""

    exit_code = 1


class UsageError(WardroundError):
    """A wrong command, option, file or field, which the user can fix."""

    exit_code = 2


class StudyError(UsageError):
    """The study file has an unknown key, a value out of range, or two values that contradict each other."""


class DataError(UsageError):
    """A data folder, manifest or label file is missing, empty, or has invalid content."""


class ModelError(UsageError):
    """A model file has another architecture, or names, shapes or dtypes that do not fit."""


class RefusedError(WardroundError):
    """A request is refused. If a site refuses one, only `code` is sent to the peer; the text stays at the site."""

    exit_code = 3

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyRefusal(RefusedError):
    """The study is not approved, or needs something that `site.toml` does not allow."""


class BudgetRefusal(RefusedError):
    """The ledger's cap would be exceeded, or a study has no spare round left."""


class ReleaseRefusal(RefusedError):
    """A model is not exported, because no attack report shows that it keeps its promise of privacy."""

    def __init__(self, message: str) -> None:
        super().__init__("release-gate-closed", message)


class WireError(WardroundError):
    """A message from a peer failed its validation, such as that of names, shapes, dtypes, size or norm.

    `code` identifies the fault.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordError(WardroundError):
    """A chain of entries cannot be read, or an entry is missing or was altered."""


class LedgerError(RecordError):
    """The ledger cannot be read, has an unknown schema, or is inconsistent."""


class AuditError(RecordError):
    """The audit log cannot be read or written, is inconsistent, or was given content that it must not contain."""


class RoundError(WardroundError):
    """A round missed its quorum, a wait reached its deadline or was stopped, or another process works on the run."""


def required(value: Value | None, name: str) -> Value:
    """Return `value` for a caller that has ensured it is not None, although its type allows None.

    Raises a `WardroundError` that names `name` if it is None after all.
    """
    if value is None:
        raise WardroundError(f"{name} is missing: a defect in this program; please report it")
    return value
