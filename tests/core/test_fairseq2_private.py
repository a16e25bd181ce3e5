"""The installed fairseq2 has every private name that this package relies on."""

from __future__ import annotations

import inspect

import fairseq2.trainer
import pytest

from d2v_plugin.core import fairseq2_private
from d2v_plugin.core.fairseq2_private import GENERATORS_KEY, MEMBERS, METRICS_KEY, SCHEDULE_KEY, STEP_KEY


@pytest.mark.parametrize("name", fairseq2_private.__all__)
def test_a_private_name_is_there(name: str) -> None:
    assert callable(getattr(fairseq2_private, name))


@pytest.mark.parametrize(("kls", "member"), [(kls, member) for kls, members in MEMBERS.items() for member in members])
def test_a_class_has_the_private_member(kls: type[object], member: str) -> None:
    # Classes of torch that fairseq2's derive from write some of them.
    source = "".join(inspect.getsource(base) for base in kls.__mro__ if base.__module__.startswith(("fairseq2.", "torch.")))

    assert hasattr(kls, member) or f"self.{member}" in source


def test_the_state_of_a_trainer_has_the_keys() -> None:
    source = inspect.getsource(fairseq2.trainer)

    for key in (METRICS_KEY, GENERATORS_KEY, SCHEDULE_KEY, STEP_KEY):
        assert f'"{key}": self' in source
