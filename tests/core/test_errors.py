"""What caused an error is found, also where the interpreter has closed a circle of causes."""

from __future__ import annotations

from itertools import islice

from d2v_plugin.core.errors import causes, root_cause


def test_circles_of_causes_end() -> None:
    """What a full disk leaves behind: the error of closing a file has that of writing it as its context, and is its cause."""
    writing, closing = OSError(28, "No space left on device"), RuntimeError("A system error occurred.")
    writing.__cause__, closing.__context__ = closing, writing

    assert list(islice(causes(writing, contexts=True), 5)) == [writing, closing]
    assert list(islice(causes(closing, contexts=True), 5)) == [closing, writing]
    closing.__cause__ = writing
    assert list(islice(causes(writing), 5)) == [writing, closing] and root_cause(writing) is closing
