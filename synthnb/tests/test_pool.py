"""Work for many processes, of which some die."""

import os
import signal
import sys

import pytest
import torch

from synthnb.data.pool import each
from synthnb.data.shards import DatasetError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")


def double(number, folder):
    """Twice the number; the first to come here dies."""
    try:
        (folder / "somebody died").touch(exist_ok=False)
    except FileExistsError:
        return 2 * number
    os.kill(os.getpid(), signal.SIGKILL)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def threads():
    return torch.get_num_threads()


def test_what_a_dying_worker_left_is_done_again(tmp_path):
    assert dict(each(double, {n: (n, tmp_path) for n in range(6)}, workers=2)) == {n: 2 * n for n in range(6)}
    assert (tmp_path / "somebody died").exists()


def test_workers_that_die_again_and_again_are_an_error(monkeypatch):
    monkeypatch.setattr("synthnb.data.pool.DEATHS", 2)
    with pytest.raises(DatasetError, match=r"workers died 2 times in a row .* is there memory for 2 of them"):
        list(each(die, {1: (), 2: ()}, workers=2))


def test_a_single_worker_is_this_process_and_takes_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(each(threads, {1: ()}, workers=1)) == [(1, 1)] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
