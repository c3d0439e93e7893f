"""Errors meant for a user: each says the value, the limit and the remedy, and carries its exit code (DESIGN §4)."""


class FathomError(Exception):
    """Something the user can act on; the message says value, limit and remedy. Exit code 1."""

    exit_code = 1


class UsageError(FathomError):
    """The request itself cannot be carried out: settings, names, paths. Exit code 2."""

    exit_code = 2


class AuditFailed(FathomError):
    """A check that guards the result failed. Exit code 3."""

    exit_code = 3


class Stopped(FathomError):
    """Stopped before the end and resumable: SIGTERM, Ctrl-C, disk full, `time_limit`. Exit code 75."""

    exit_code = 75
