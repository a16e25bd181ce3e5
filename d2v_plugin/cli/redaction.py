"""Redaction of the logs, where fairseq2 writes all environment variables when a run starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from logging import Filter, Formatter, LogRecord
from typing import Final

from fairseq2.logging import log
from typing_extensions import override

HIDDEN: Final = "***"

_SECRET_NAMES: Final = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIAL|AUTH|COOKIE|PRIVATE|DSN", re.I)
_LOGIN: Final = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")

# Shorter values are words and numbers that occur everywhere; they are only hidden behind their name.
_MIN_LENGTH: Final = 8


def is_secret(name: str) -> bool:
    """Tell by its name whether an environment variable holds a secret."""
    return _SECRET_NAMES.search(name) is not None


def hide_in(text: str, environment: Mapping[str, str]) -> str:
    """Replace secrets: the values of variables called like one, and what is between ``://`` and ``@``."""
    secrets = {
        value if len(value) >= _MIN_LENGTH else f"{name}={value}"
        for name, value in environment.items()
        if value and is_secret(name)
    }
    # The longest first, since one may contain another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)

    return _LOGIN.sub(HIDDEN, text)


class SecretFilter(Filter):
    """Hides secrets in every record of a logger, its traceback included."""

    @override
    def filter(self, record: LogRecord) -> bool:
        record.msg, record.args = hide_in(record.getMessage(), os.environ), None
        if record.exc_info and not record.exc_text:
            # Formatters take this text where there is one.
            record.exc_text = Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = hide_in(record.exc_text, os.environ)

        return True


def hide_secrets() -> None:
    """Hide secrets in all that fairseq2 and this package log from now on."""
    if not any(isinstance(found, SecretFilter) for found in log.logger.filters):
        log.logger.addFilter(SecretFilter())
