"""Checks of settings: what fairseq2's ``Validatable`` asks for, in one expression."""

from __future__ import annotations

from fairseq2.utils.validation import StandardObjectValidator, Validatable, ValidationError, ValidationResult
from typing_extensions import override

from d2v_plugin.core.ranges import find_ranges


class Checked(Validatable):
    """Settings whose fields declare ranges (:mod:`d2v_plugin.core.ranges`); stands before a section of fairseq2 as a base."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate() or ValidationResult()  # type: ignore[safe-super]  # None if no section of fairseq2 follows
        for name, limits in find_ranges(type(self)).items():
            if sentence := limits.find_mistake(name, getattr(self, name)):
                result.add_error(sentence)

        return result


def report(*problems: tuple[bool, str], base: ValidationResult | None = None) -> ValidationResult:
    """The result of a ``validate()``.

    :param problems: for each check whether it failed, and the sentence that names field, value and what is right.
    :param base: the result of the base class; it is extended.
    """
    result = ValidationResult() if base is None else base
    for failed, message in problems:
        if failed:
            result.add_error(message)

    return result


def ensure_valid(config: object) -> None:
    """Check settings that come from elsewhere than a recipe, which fairseq2 checks itself.

    :raises ValueError: they are not valid; all mistakes are named.
    """
    try:
        StandardObjectValidator().validate(config)
    except ValidationError as ex:
        raise ValueError(str(ex.result)) from ex
