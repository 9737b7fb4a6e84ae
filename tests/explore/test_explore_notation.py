# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts, orders and rules as text."""

from __future__ import annotations

import pytest
from explore_strategies import orders, scripts
from hypothesis import given

from guestemu.abi.errors import InputError
from guestemu.migration.model.notation import (
    format_order,
    format_script,
    parse_order,
    parse_rules,
    parse_script,
)
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import ORDERS, SCRIPTS, Order, Script


@given(scripts)
def test_a_script_survives_its_text(script: Script) -> None:
    assert parse_script(format_script(script.steps)).steps == script.steps


@given(orders)
def test_an_order_survives_its_text(order: Order) -> None:
    assert parse_order(format_order(order.steps)).steps == order.steps
    assert parse_order("".join(step.value for step in order.steps)).steps == order.steps


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_of_the_table_have_names(script: Script) -> None:
    assert parse_script(script.name.lower()) == script


@pytest.mark.parametrize("order", ORDERS)
def test_the_orders_of_the_table_have_rows_words_and_letters(order: Order) -> None:
    assert parse_order(str(order.row)) == order
    assert parse_order(order.name) == order
    assert parse_order(format_order(order.steps).lower()) == order


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 steps; give 1 to 32"),
        ("PTE- XX", "step 2: no guest step 'XX'"),
        ("PTE", "step 1: no guest step 'PTE'"),
        ("t100!", "no guest step 't100!'"),
        ("t1", "no guest step 't1'"),
        ("S9", "or the name of a script: S1, S1b"),
        ("t1! " * 33, "33 steps; give 1 to 32"),
    ],
)
def test_a_bad_script_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_script(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" , ", "0 steps; give 1 to 16"),
        ("0", "no row 0 in the table; rows are 1 to 6"),
        ("7", "no row 7"),
        ("²", "no host step"),
        ("D X S", "step 2: no host step 'X'"),
        ("G C E", "nothing is ever sent; add S"),
        ("D S " * 9, "18 steps; give 1 to 16"),
    ],
)
def test_a_bad_order_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_order(text)


def test_rules_by_name() -> None:
    assert parse_rules([]) == Rules()
    assert parse_rules(["pte-sets-dirty"]) == Rules(pte_sets_dirty=True)
    with pytest.raises(InputError, match=r"no rule 'help'; there are starts-clean, .*pte-sets-"):
        parse_rules(["help"])
