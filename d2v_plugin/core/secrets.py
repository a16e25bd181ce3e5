"""Secrets in text: what is hidden before a log, a configuration or a record is written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

HIDDEN: Final = "***"

# Variables that say how a run computed. No list of names of secrets is ever complete, so that the log shows these and no others.
_SHOWN: Final = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|GLOO|TORCH|TORCHELASTIC|TORCHINDUCTOR|PYTORCH|TRITON|OMP|KMP|MKL|OPENBLAS|MALLOC|FAIRSEQ2|"
    r"SLURM|PYTHON|LC|GROUP|ROLE|LOCAL)_?\w*|(ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|PATH|LD_LIBRARY_PATH|LD_PRELOAD|"
    r"LANG|TZ|TMPDIR|HOSTNAME|VIRTUAL_ENV|CONDA_PREFIX|CONDA_DEFAULT_ENV|HF_HOME|HF_HUB_OFFLINE|D2V_\w+"
)

_WORDS: Final = r"TOKEN(?!IZER)|KEY|SECRET|PASS(?!ED)|CREDENTIAL|AUTH(?!OR)|COOKIE|PRIVATE|DSN|WEBHOOK|JWT|SIGNATURE|BEARER|LOGIN"
_SECRET_NAMES: Final = re.compile(
    rf"{_WORDS}|CONN(ECTION)?_?STR|(^|_)(PAT|PIN|PW|PWD|SAS|SIG|OTP|SALT|HOOK|CERT)($|_)|(PSW|PASSWD)", re.I
)
_DIRECTORIES: Final = ("PWD", "OLDPWD")

# Shorter values are words and numbers that occur everywhere; they are only hidden behind their name.
_MIN_LENGTH: Final = 8

_VALUE: Final = r"[^\s\"'&;,#<>\\]+"
_PATTERNS: Final = tuple(
    re.compile(pattern, flags)
    for pattern, flags in (
        # A login reaches to the last @: passwords may contain one, and slashes. Paths drop the second slash of an address.
        (r"(\w:/+)[^\s\"'<>]+(?=@)", 0),
        (rf"(?<=hooks\.slack\.com/){_VALUE}|(?<=/api/webhooks/){_VALUE}", re.I),
        (rf"(?<=[?&;])((?:[\w.-]*(?:sig|signature|token|key|secret|password|passwd|pwd|auth|credential|code)=)){_VALUE}", re.I),
        (
            r"((?<![\w-])(?:[\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|account[_-]?key|access[_-]?token|auth[_-]?token)"
            rf"|pwd|token|sig|signature)=){_VALUE}",
            re.I,
        ),
        (rf"((?:authorization[\"']?\s*[:=]\s*[\"']?\w+|\bBearer)\s+){_VALUE}", re.I),
        # Tokens that tell themselves apart: JWT, GitHub, GitLab, Hugging Face, OpenAI, Slack, AWS, Google; private keys.
        (r"\beyJ[\w-]{3,}\.[\w-]+(?:\.[\w-]*)*", 0),
        (r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-)[\w-]{6,}|\bhf_[A-Za-z0-9]{12,}|\bsk-[\w-]{16,}", 0),
        (r"\bA(?:KIA|SIA)[0-9A-Z]{12,}|\bAIza[\w-]{30,}", 0),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    )
)


@lru_cache(maxsize=1024)  # asked of all variables for each line of a log
def is_secret(name: str) -> bool:
    """Tell by its name whether an environment variable holds a secret."""
    return name not in _DIRECTORIES and _SECRET_NAMES.search(name) is not None


def describe_environment(environment: Mapping[str, str]) -> str:
    """List the variables that say how a run computes, and the number of the others."""
    shown = {name: value for name, value in environment.items() if _SHOWN.fullmatch(name) and not is_secret(name)}
    listed = ", ".join(f"{name}={value}" for name, value in sorted(shown.items()))

    return f"{listed} ({len(environment) - len(shown)} others are not shown)"


def hide_in(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace secrets: the values of variables called like one, logins and signatures in addresses, and well-known tokens.

    :param environment: the variables; None = those of the process.
    """
    secrets = {
        value if len(value) >= _MIN_LENGTH else f"{name}={value}"
        for name, value in (os.environ if environment is None else environment).items()
        if value and is_secret(name)
    }
    # The longest first, since one may contain another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found[1] if found.re.groups else "") + HIDDEN, text)

    return text


def hide_in_data(value: Any) -> Any:
    """Hide secrets in all strings of plain data, such as a configuration before it is written."""
    if isinstance(value, str):
        return hide_in(value)
    if isinstance(value, Mapping):
        return {key: hide_in_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in_data(item) for item in value]

    return value
