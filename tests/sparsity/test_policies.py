"""The registry and its table say what the settings take."""

from __future__ import annotations

from typing import get_args

import pytest

from hse_dist.config import (
    BudgetSettings,
    DropSettings,
    GrowSettings,
    LocalInverseSettings,
    ModelSettings,
    ScheduleSettings,
    SparsitySettings,
    StructureSettings,
    TrainSettings,
)
from hse_dist.sparsity.policies import POLICIES, README, with_table

KINDS = {
    "sparsity.start": SparsitySettings.model_fields["start"],
    "sparsity.local_inverse.pattern": LocalInverseSettings.model_fields["pattern"],
    "sparsity.schedule": ScheduleSettings.model_fields["kind"],
    "sparsity.drop": DropSettings.model_fields["kind"],
    "sparsity.grow": GrowSettings.model_fields["kind"],
    "sparsity.budget": BudgetSettings.model_fields["kind"],
    "sparsity.structure": StructureSettings.model_fields["kind"],
}

GIVEN = {
    "model.user_entries": ModelSettings.model_fields["user_entries"],
    "train.teacher": TrainSettings.model_fields["teacher"],
}
"""Policies that are on where a number, or a folder, is given."""


@pytest.mark.parametrize("setting", KINDS)
def test_every_kind_has_a_line_and_every_line_a_kind(setting):
    written = [policy.kind for policy in POLICIES if policy.setting == setting]
    assert sorted(written) == sorted(get_args(KINDS[setting].annotation))


def test_every_line_belongs_to_a_setting():
    assert {policy.setting for policy in POLICIES} == set(KINDS) | set(GIVEN)
    assert all(policy.kind == "" for policy in POLICIES if policy.setting in GIVEN)
    assert all(field.default is None for field in GIVEN.values())


def test_the_readme_has_the_table_of_now():
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text), "run python -m hse_dist.sparsity.policies"
