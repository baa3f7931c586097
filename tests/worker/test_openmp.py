"""What an engine process tells OpenMP before torch is imported."""

import os

from workers.worker import openmp


def test_threads_and_a_bounded_spin_are_set(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    openmp.prepare_openmp(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["GOMP_SPINCOUNT"] == str(openmp.SPIN_COUNT)


def test_what_the_operator_said_of_waiting_stays(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    openmp.prepare_openmp(0)
    assert os.environ["GOMP_SPINCOUNT"] == "5"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    openmp.prepare_openmp(0)
    assert "GOMP_SPINCOUNT" not in os.environ
