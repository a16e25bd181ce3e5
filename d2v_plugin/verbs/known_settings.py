"""Which settings there are, of which type and range, as recipes/reference.md says: known before anything heavy is imported.

Unknown keys, unknown names, wrong types and numbers out of range are told in the words of the classes of the configuration, which
check all of it once more. What the page does not say in so many words, and what others register, is left to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from d2v_plugin.core.ranges import Range
from d2v_plugin.core.shipped import SHIPPED
from d2v_plugin.core.text import unknown_name

PAGE: Final = SHIPPED / "recipes" / "reference.md"

Mistake = tuple[list[str], str]
"""Where something is wrong, nowhere if it is said, and the sentence."""

_ROW: Final = re.compile(r"\| `([\w.]+)` \| `(.+?)` \| `(.*?)` \| (?:`(.+?)`)?")
_REGISTRIES: Final = {
    **{"task": "task", "criterion": "criterion", "optimizer": "optimizer", "lr_scheduler": "learning-rate schedule"},
    **{"Task": "task", "Mask": "mask sampler", "Probe": "probe"},
}
"""What the page calls what is named: in a section of the recipe, and in a setting whose type is a section."""

_NAMED: Final = re.compile(r"(list\[)?\w*(Task|Mask|Probe)Section\b.*")


@dataclass
class _Setting:
    """A key: type, default and range if it has a value of its own, and the keys below it."""

    type: str = ""
    default: str = ""
    range: str = ""
    keys: dict[str, _Setting] = field(default_factory=dict)


class KnownSettings:
    """The page, read."""

    def __init__(self, *, extended: bool) -> None:
        """
        :param extended: others have registered more, so that what is named is not looked into.
        """
        self._extended = extended
        self._topics: dict[str, dict[str, _Setting]] = {}
        topic = _Setting()
        for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.is_file() else ():
            if line.startswith("## "):
                kind, _, name = line[3:].partition(": ")
                topic = self._topics.setdefault(kind, {}).setdefault(name, _Setting())
            elif (row := _ROW.match(line)) is not None:
                setting = topic
                for key in row[1].split("."):
                    setting = setting.keys.setdefault(key, _Setting())
                setting.type, setting.default, setting.range = row[2].replace("\\|", "|"), row[3], row[4] or ""

    def find_mistakes(self, config: Mapping[str, Any], verb: str) -> Iterator[Mistake]:
        """Find what is wrong with the recipe of a verb; what others than training leave out is the run's, and not known."""
        known = self._topics.get("verb", {}).get(verb, _Setting()).keys
        kinds = (kind for kind in self._topics if kind.startswith("section of "))
        sections = {name: section for kind in kinds for name, section in self._topics[kind].items()}
        for name, value in config.items() if known else ():
            if name not in known:
                yield [name], unknown_name("key", name, known)
            elif name not in sections:
                yield from self._check_keys(_Setting(keys=known), {name: value}, [])
            elif isinstance(value, Mapping):
                keys = sections[name].keys
                yield from self._check_keys(sections[name], value, [name])
                if name in _REGISTRIES:
                    default = keys["name"].default if verb == "train" else "required"
                    yield from self._check_named(_REGISTRIES[name], default, value, [name])
                elif name in ("model", "dataset"):
                    yield from self._check_family(f"{name} family", keys["family"].default, value, [name])

    def _check_keys(self, setting: _Setting, values: Mapping[str, Any], path: list[str]) -> Iterator[Mistake]:
        for name, value in values.items():
            found, place = setting.keys.get(name) or setting.keys.get("NAME"), [*path, name]
            if found is None:
                yield place, unknown_name(f"key of `{'.'.join(path)}`", name, setting.keys)
            elif isinstance(value, Mapping) and found.keys:
                yield from self._check_keys(found, value, place)
            elif (named := _NAMED.fullmatch(found.type)) is not None:
                sections = [(place, value)]
                if named[1] and isinstance(value, list):
                    sections = [([*place, str(index)], part) for index, part in enumerate(value)]
                default = found.default.removeprefix("{name: ").removesuffix("}")
                for where, section in sections:
                    if isinstance(section, Mapping):
                        yield from self._check_named(_REGISTRIES[named[2]], default, section, where)
            elif expectation := _check_type(found.type, value):
                given = "" if value is None else f"`{value!s:.200}` is not valid: "
                yield place, f"`{'.'.join(place)}`: {given}{expectation}"
            elif found.range and (mistake := Range(found.range).find_mistake(name, _read_numbers(found.type, value))):
                yield place, f"`{'.'.join(path)}`: {mistake}" if path else mistake

    def _check_named(self, kind: str, default: str, section: Mapping[str, Any], path: list[str]) -> Iterator[Mistake]:
        """Check ``{name, config}``."""
        known, name, config = self._topics[kind], section.get("name", default), section.get("config")
        if self._extended or not isinstance(name, str):
            return
        if name in known and isinstance(config, Mapping):
            yield from self._check_keys(known[name], config, [*path, "config"])
        elif name not in (*known, "required"):
            yield [], unknown_name(kind.replace("learning-rate schedule", "lr scheduler"), name, known)

    def _check_family(self, kind: str, default: str, section: Mapping[str, Any], path: list[str]) -> Iterator[Mistake]:
        """Check ``{family, arch, config_overrides}``; of models fairseq2 has families of its own."""
        known, name, arch = self._topics[kind], section.get("family", default), section.get("arch")
        if self._extended or section.get("name") is not None or not isinstance(name, str):
            return
        if isinstance(arch, str) and name in known and arch not in self._topics[f"arch of {name}"]:
            yield [], unknown_name(f"arch of the model family `{name}`", arch, self._topics[f"arch of {name}"])
        if name in known and isinstance(settings := section.get("config_overrides"), Mapping):
            yield from self._check_keys(known[name], settings, [*path, "config_overrides"])
        elif kind == "dataset family" and name not in (*known, "null"):
            yield [], unknown_name(kind, name, known)


def _check_type(kind: str, value: object) -> str:
    """What must stand in the place of a value that fairseq2 cannot read; empty where it can, or where this cannot be told."""
    choices = kind.split(" | ")
    if isinstance(value, str) and (value in ("???", "report") or value.endswith("%")):
        return ""  # stands for a number
    if "None" in choices[1:]:
        if value is None:
            return ""
        choices.remove("None")
    if all(choice.startswith("'") for choice in choices):
        names = [choice.strip("'") for choice in choices]
        if isinstance(value, str):
            wrong = f"but is {value} instead. Supported values are {', '.join(names)}."
            return "" if value in names else f"Value must be a supported literal value, {wrong}"
        choices = ["str"]
    try:
        match choices:
            case ["int"]:
                if isinstance(value, float) and not value.is_integer():
                    raise ValueError  # of 3.7 fairseq2 would make 3
                int(value)  # type: ignore[call-overload]
            case ["float"]:
                float(value)  # type: ignore[arg-type]
            case ["bool" | "str"] if type(value).__name__ != choices[0]:
                return f"Value must be of type {choices[0]}, but is of type {type(value).__name__} instead."
    except (TypeError, ValueError):
        return f"Value must be of type {choices[0]}."

    return ""


def _read_numbers(kind: str, value: Any) -> Any:
    """What fairseq2 makes of a number, or of each in a list; what it cannot read stays."""
    if isinstance(value, list):
        return [_read_numbers(kind, item) for item in value]
    try:
        return float(value) if "float" in kind else int(value)
    except (TypeError, ValueError, OverflowError):
        return value
