"""Every error a user can meet, as one tree. A command turns each into one line and an exit code.

    WardroundError                 exit 1  something failed that is nobody's wrong input
    ├── UsageError                 exit 2  a wrong command, option, file or field
    │   ├── StudyError                     the study file: unknown key, value out of range
    │   ├── DataError                      a data folder, manifest or label file
    │   └── ModelError                     a model file or architecture that does not fit
    ├── RefusedError               exit 3  the site's policy or budget says no
    │   ├── PolicyRefusal                  not approved, or against `site.toml`
    │   └── BudgetRefusal                  the ledger's cap or the spare rounds are used up
    ├── WireError                  exit 1  a message from a peer failed its validation
    ├── RecordError                exit 1  a chained record is unreadable or was altered
    │   ├── LedgerError                    the ledger
    │   └── AuditError                     the audit log
    └── RoundError                 exit 1  a round missed its quorum or its deadline

A message says what is wrong, where, and what to do, in one line, and never carries a value read from a patient's file.
"""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class WardroundError(Exception):
    """Base of every error this project raises on purpose. `exit_code` is what a command ends with."""

    exit_code = 1


class UsageError(WardroundError):
    """A wrong command, option, file or field: the person at the keyboard can mend it."""

    exit_code = 2


class StudyError(UsageError):
    """The study file has an unknown key, a value out of range, or two values that contradict each other."""


class DataError(UsageError):
    """A data folder, manifest or label file is missing, empty, or says something impossible."""


class ModelError(UsageError):
    """A model file has another architecture, or names, shapes or dtypes that do not fit."""


class RefusedError(WardroundError):
    """The site refuses. `code` is all that a peer may learn; the text stays at the site."""

    exit_code = 3

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyRefusal(RefusedError):
    """The study is not approved, or asks for something `site.toml` does not allow."""


class BudgetRefusal(RefusedError):
    """The ledger's cap would be exceeded, or a study has no spare round left."""


class WireError(WardroundError):
    """A message from a peer is malformed: names, shapes, dtypes, finiteness, size or norm. `code` names the fault."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordError(WardroundError):
    """A chain of entries has one that is missing or was altered, or cannot be read."""


class LedgerError(RecordError):
    """The ledger cannot be read, has an unknown schema, or does not agree with itself."""


class AuditError(RecordError):
    """The audit log cannot be read or written, does not agree with itself, or was asked to hold what it must not."""


class RoundError(WardroundError):
    """A round ended without its quorum, or a wait reached its deadline."""


def required(value: Value | None, name: str) -> Value:
    """`value`, where the caller knows that it is not None and its type does not say so.

    Raises `WardroundError` with `name` if it is None after all.
    """
    if value is None:
        raise WardroundError(f"{name} is missing: a defect in this program; please report it")
    return value
