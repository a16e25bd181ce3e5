"""Topics as text for the screen, and as the page recipes/reference.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from textwrap import indent, wrap
from typing import Final

from d2v_plugin.cli.describe.fields import Described
from d2v_plugin.cli.describe.topics import Topic

_WIDTH: Final = 100

HEADER: Final = """\
# Reference

Every setting of every recipe, with its type, default, range and unit. This page is written by `fairseq2 recipe describe --page`;
`fairseq2 recipe describe NAME` prints one part of it, also of what your extensions register.
"""


def list_topics(topics: Sequence[Topic]) -> str:
    """The names that can be described, by kind."""
    lines = ["usage: fairseq2 recipe describe NAME …", ""]
    for kind, group in groupby(topics, key=lambda topic: topic.kind):
        names = ", ".join(topic.name for topic in group)
        lines += wrap(f"{kind}: {names}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False)

    return "\n".join(lines)


def print_topic(topic: Topic) -> str:
    """All settings of a topic."""
    lines = [f"{topic.kind} {topic.name}", *wrap(topic.summary, _WIDTH), f"  {topic.usage}", ""]
    for item in topic.settings:
        notes = ", ".join(filter(None, (item.unit, item.range)))
        lines.append(f"{item.key}: {item.type} = {item.default}{f'  [{notes}]' if notes else ''}")
        lines += [indent(line, "    ") for line in wrap(item.doc, _WIDTH - 4)]

    return "\n".join(lines)


def write_page(topics: Sequence[Topic]) -> str:
    """The reference in Markdown."""
    parts = [HEADER, _link_topics(topics)]
    for topic in topics:
        heading = f"## {topic.kind}: {topic.name}\n\n{topic.summary}\n\n`{topic.usage}`\n".replace("\n\n\n\n", "\n\n")
        parts.append(heading + ("\n" + _write_table(topic.settings) if topic.settings else ""))

    return "\n".join(parts)


def _link_topics(topics: Sequence[Topic]) -> str:
    lines = ["| kind | names |", "|---|---|"]
    for kind, group in groupby(topics, key=lambda topic: topic.kind):
        links = (f"[{topic.name}](#{_anchor(topic)})" for topic in group)
        lines.append(f"| {kind} | {', '.join(links)} |")

    return "\n".join(lines) + "\n"


def _anchor(topic: Topic) -> str:
    return f"{topic.kind}: {topic.name}".lower().replace(":", "").replace(" ", "-")


def _write_table(settings: Iterable[Described]) -> str:
    lines = ["| key | type | default | range | unit | |", "|---|---|---|---|---|---|"]
    for item in settings:
        limits = f"`{item.range}`" if item.range else ""
        cells = (f"`{item.key}`", f"`{item.type}`", f"`{item.default}`", limits, item.unit, item.doc)
        lines.append(f"| {' | '.join(map(_escape, cells))} |")

    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if not text.startswith("`") else text.replace("|", "\\|")
