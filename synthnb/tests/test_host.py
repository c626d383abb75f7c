"""An object in another process: results, errors, crashes, hangs, interrupts."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from synthnb.synths import SynthError
from synthnb.synths.host import Host


class Fragile:
    """What a plugin may do."""

    def __init__(self, size: int = 3):
        if size < 0:
            raise ValueError("a size can't be negative")
        self.data = np.arange(size)

    def twice(self) -> np.ndarray:
        print("chatter on stdout does no harm")
        self.data = self.data * 2
        return self.data

    def fail(self):
        raise SynthError("no such note")

    def crash(self):
        os.write(2, b"first words\nlast words\n")
        os.abort()

    def hang(self):
        time.sleep(60)


@pytest.fixture
def host():
    host = Host("synthnb.tests.test_host:Fragile", 4, name="Fragile")
    yield host
    host.close()


def test_results_come_back_and_the_object_is_kept(host):
    assert host.pid is None  # it starts with the first call
    assert host.call("twice").tolist() == [0, 2, 4, 6]
    assert host.call("twice").tolist() == [0, 4, 8, 12]
    assert host.pid != os.getpid()


def test_an_error_keeps_its_type_and_message(host):
    with pytest.raises(SynthError, match=r"^no such note$"):
        host.call("fail")
    assert host.call("twice").tolist() == [0, 2, 4, 6]


def test_an_object_that_cannot_be_made(host):
    with pytest.raises(ValueError, match="can't be negative"):
        Host("synthnb.tests.test_host:Fragile", -1, name="Fragile").call("twice")


def test_a_crash_is_an_error_and_the_next_call_starts_anew(host):
    host.call("twice")
    with pytest.raises(SynthError, match=r"Fragile crashed \(SIGABRT\): last words"):
        host.call("crash")
    assert host.call("twice").tolist() == [0, 2, 4, 6]


def test_a_process_that_is_killed_from_outside(host):
    host.call("twice")
    os.kill(host.pid, signal.SIGKILL)
    with pytest.raises(SynthError, match=r"Fragile crashed \(SIGKILL\)"):
        host.call("twice")
    assert host.call("twice").tolist() == [0, 2, 4, 6]


def test_what_hangs_is_stopped(host):
    host.call("twice")
    start = time.monotonic()
    with pytest.raises(SynthError, match=r"did not answer for 0.3 s and was stopped"):
        host.call("hang", timeout=0.3)
    assert time.monotonic() - start < 5
    assert host.call("twice").tolist() == [0, 2, 4, 6]


def test_after_an_interrupt_no_answer_is_taken_for_another(host):
    host.call("twice")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
    try:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            host.call("hang")
    finally:
        signal.signal(signal.SIGINT, before)
    assert host.call("twice").tolist() == [0, 2, 4, 6]


def test_threads_take_turns(host):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(host.call("twice")[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [2**i for i in range(1, 9)]


def test_it_ends_with_its_owner(host):
    host.call("twice")
    pid = host.pid
    host.close()
    assert host.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
