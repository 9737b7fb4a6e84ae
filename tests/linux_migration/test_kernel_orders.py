# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of a host's steps on a real kernel, at all instants that a host can tell apart."""

from __future__ import annotations

import pytest

from guestemu.migration.sweep.orders import ORDERS
from guestemu.migration.sweep.tuples import Matrix, visible_instants

MEASURED_IMAGE = "6.1.0-56-cloud-amd64"
MEASURED = {
    "D+E+S STOP": (666, 0),
    "D STOP": (666, 0),
    "E STOP final-reuses-status": (666, 253),
    "D+E+S STOP final-reuses-status": (666, 253),
    "D E+S STOP": (8436, 0),
    "E D+S STOP": (8436, 276),
    "G+E+S C STOP clear-is-unconditional": (8436, 813),
    "D E S STOP": (82251, 0),
    "E D S STOP": (82251, 299),
}
"""Tuples and losing tuples of the feasibility study, which ran on this image with other code."""


def matrix_of(experiment, every: int) -> Matrix:
    made = Matrix(experiment, visible_instants(experiment.recording)[::every])
    assert len(list(made.run())) == made.size == len(made.arrivals)
    return made


@pytest.fixture(scope="module")
def matrix(experiment_of) -> Matrix:
    """Of every second instant: a quarter of the migrations."""
    return matrix_of(experiment_of("6.1"), 2)


def test_every_migration_of_the_matrix_ends_alike(matrix: Matrix) -> None:
    assert {arrival.difference for arrival in matrix.arrivals.values()} == {None}


def test_right_orders_lose_nothing_and_wrong_ones_do(matrix: Matrix) -> None:
    results = {result.order: result for result in matrix.judge_all()}
    for order in ORDERS:
        assert (results[order.name].lost == 0) == order.is_right, order.name
        assert (results[order.name].example is None) == order.is_right


@pytest.mark.soak
def test_all_instants_say_the_same(experiment_of) -> None:
    matrix = matrix_of(experiment_of("6.1"), 1)
    assert {arrival.difference for arrival in matrix.arrivals.values()} == {None}
    for result in matrix.judge_all():
        assert (result.lost == 0) == result.is_right, result.order


@pytest.mark.soak
def test_the_counts_of_the_measured_image(experiment_of) -> None:
    if experiment_of("6.1").kernel.version != MEASURED_IMAGE:
        pytest.skip("another image has other instants")
    matrix = matrix_of(experiment_of("6.1"), 1)
    results = {result.order: (result.tuples, result.lost) for result in matrix.judge_all()}
    assert len(matrix.instants) == 36
    assert matrix.size == 1368
    assert results == MEASURED


def test_a_correct_final_pass_does_not_heal_the_wrong_order(matrix: Matrix, experiment_of) -> None:
    """It loses where the status changed between copy and log and the guest stores no more."""
    order = next(order for order in ORDERS if order.name == "E D+S STOP")
    example = matrix.judge_order(order).example
    assert example is not None
    copied, log, stop = example
    assert matrix.is_private(copied) != matrix.is_private(log)
    assert not experiment_of("6.1").recording.stored(log, stop)
