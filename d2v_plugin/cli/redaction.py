"""Redaction of all that a command says and writes: logs of all libraries, tracebacks, and configurations."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from logging import Formatter, LogRecord
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, final

from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.yaml import RuamelYamlDumper, YamlDumper
from typing_extensions import override

from d2v_plugin.core.fairseq2_private import remove_provider
from d2v_plugin.core.secrets import describe_environment, hide_in, hide_in_data

ENVIRONMENT: Final = "Environment Variables - "
"""How fairseq2 begins the record that lists all variables."""


@final
class SafeLogRecord(LogRecord):
    """A record without secrets, whoever logs it and whatever writes it; its traceback included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            message = self.getMessage()
        except (TypeError, ValueError, KeyError):
            return  # the handler reports a message that does not fit its arguments
        if message.startswith(ENVIRONMENT):
            message = ENVIRONMENT + describe_environment(os.environ)
        self.msg, self.args = hide_in(message), None
        if self.exc_info:
            # Formatters take this text where there is one.
            self.exc_text = hide_in(Formatter().formatException(self.exc_info))


@final
class SafeYamlDumper(YamlDumper):
    """Writes configurations without secrets."""

    def __init__(self, inner: YamlDumper) -> None:
        self._inner = inner

    @override
    def dump(self, obj: object, output: Path | IO[str]) -> None:
        self._inner.dump(hide_in_data(obj), output)


def hide_secrets() -> None:
    """Hide secrets in all that this process logs from now on, and in the traceback that ends it."""
    logging.setLogRecordFactory(SafeLogRecord)
    sys.excepthook = _print_safely


def register_safe_dumper(container: DependencyContainer) -> None:
    """Let fairseq2 write configurations without secrets."""

    def create(resolver: DependencyResolver) -> YamlDumper:
        return SafeYamlDumper(resolver.resolve(RuamelYamlDumper))

    remove_provider(container, YamlDumper)
    container.register_type(RuamelYamlDumper)
    container.register(YamlDumper, create, singleton=True)


def _print_safely(kind: type[BaseException], ex: BaseException, trace: TracebackType | None) -> None:
    print(hide_in("".join(traceback.format_exception(kind, ex, trace))), file=sys.stderr, end="")
