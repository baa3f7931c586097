"""Fewer threads beside a neighbour, as many as before once it has gone, and never to and fro."""

import pytest
import torch

from workers.cpu_times import CpuTimes
from workers.engine.thread_count import LONGEST_PAUSE, TRIAL, WINDOW, ThreadCount


class Machine:
    """Cores with neighbours on some of them, each of which halves the threads it meets."""

    def __init__(self, cores, neighbours=0, noise=0.02):
        self.cores, self.neighbours, self.noise = cores, neighbours, noise
        self.now = self.waits = self.idle = 0.0
        self.told = []
        self.threads = ThreadCount(cores, self.told.append, self.read, lambda: self.now)

    def read(self):
        return CpuTimes({1: self.waits}, self.idle)

    def run(self, seconds, step=0.05):
        for _ in range(round(seconds / step)):
            self.threads.adapt()
            wanted = self.threads.current + self.neighbours
            self.now += step
            self.waits += step * (max(0, wanted - self.cores) + self.noise * self.cores)
            self.idle += step * max(0, self.cores - wanted - self.noise)


def test_on_a_quiet_machine_all_threads_compute():
    machine = Machine(2, noise=0.1)
    machine.run(600)
    assert machine.told == []


def test_a_neighbour_costs_one_thread_and_gives_it_back():
    machine = Machine(2)
    machine.run(5)
    machine.neighbours = 1
    machine.run(2.5 * WINDOW)
    assert machine.told == [1]
    machine.run(600)
    assert machine.told == [1], "it stays while the neighbour does"
    machine.neighbours = 0
    machine.run(2.5 * WINDOW)
    assert machine.told == [1, 2]


@pytest.mark.parametrize(("neighbours", "left"), [(1, 15), (3, 13), (15, 1), (40, 1)])
def test_each_neighbour_costs_one_of_many(neighbours, left):
    machine = Machine(16, neighbours, noise=0.01)
    machine.run(5)
    assert machine.threads.current == left
    machine.neighbours = 0
    machine.run(20)
    assert machine.threads.current == 16


def test_the_last_thread_stays():
    machine = Machine(1, neighbours=3)
    machine.run(60)
    assert machine.told == []


def test_what_looks_idle_in_vain_is_tried_ever_less_often():
    machine = Machine(2, neighbours=1)
    read = machine.read
    # Cores that another group may use, as in a container with a quota.
    machine.threads._read = lambda: CpuTimes(read().waits, machine.now)
    machine.run(60)
    first = len(machine.told)
    machine.run(600)
    assert machine.threads.current == 1
    assert len(machine.told) - first <= 2 * (600 / LONGEST_PAUSE + 2) < 600 / TRIAL
    machine.neighbours = 0
    machine.run(LONGEST_PAUSE + 1)
    assert machine.threads.current == 2


def test_without_figures_nothing_changes():
    threads = ThreadCount(2, pytest.fail, lambda: None)
    for _ in range(3):
        threads.adapt()
    assert threads.current == 2


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe", "qwen3_5"])
@pytest.mark.parametrize("settings", [{}, {"attention_backend": "torch"}, {"dtype": "bfloat16"}])
def test_answers_do_not_depend_on_it(drive, prompts, name, settings):
    said = []
    for counts in ([2], [2, 1, 1], [1]):
        driver = drive(name, **settings)
        for key, prompt in enumerate(prompts(6, longest=90)):
            driver.add(key, prompt, logprobs=1)
        while driver.engine.has_work:
            torch.set_num_threads(counts[driver.steps % len(counts)])
            driver.step()
        chunks = [chunk for key in range(6) for chunk in driver.chunks[key]]
        said.append((driver.tokens(3), [chunk.logprobs[0].logprob for chunk in chunks]))
    # Of floats of 32 bits, sums may be in another order.
    tolerance = 0 if "dtype" in settings else 1e-4
    for tokens, logprobs in said[1:]:
        assert tokens == said[0][0]
        assert logprobs == pytest.approx(said[0][1], abs=tolerance, rel=0)


def test_the_engine_computes_with_as_many_as_it_says(drive, prompts):
    driver = drive("qwen3", threads=2)
    machine = Machine(2, neighbours=1)
    machine.threads._set = torch.set_num_threads
    driver.engine._threads = machine.threads
    driver.add(0, prompts(1)[0])
    machine.now, machine.waits = 1.0, 0.9
    driver.run()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)


@pytest.mark.parametrize("settings", [{"deterministic": True}, {"threads": 1}])
def test_it_is_fixed_where_results_may_not_change(drive, settings):
    threads = drive("qwen3", **{"threads": 2} | settings).engine._threads
    assert threads.current == 1 and threads._known is None
