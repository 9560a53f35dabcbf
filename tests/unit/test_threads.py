import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tamis.threads import Shared, each, one_blas_thread


def test_the_first_body_sets_and_the_last_restores():
    happened = []

    @contextmanager
    def setting():
        happened.append("set")
        yield
        happened.append("restored")

    shared = Shared(setting)
    for _ in range(2):
        first, second = shared(), shared()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert happened == ["set"]
        second.__exit__(None, None, None)
        assert happened == ["set", "restored"]
        happened.clear()


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        yield


def test_blas_has_one_thread_until_the_last_user_leaves(two_blas_threads):
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_an_error_in_the_body_restores_too(two_blas_threads):
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        1 // 0  # noqa: B018
    assert blas_threads() == {2}
    with one_blas_thread():
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_a_library_that_is_loaded_later_is_limited_too():
    """The limited libraries are remembered: an import between two uses is seen."""
    script = (
        "import numpy\n"
        "from threadpoolctl import threadpool_info\n"
        "from tamis.threads import one_blas_thread\n"
        "def threads():\n"
        "    return [pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas']\n"
        "with one_blas_thread():\n"
        "    first = threads()\n"
        "import scipy.linalg\n"
        "with one_blas_thread():\n"
        "    print(first, threads())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[1] [1, 1]\n"


@pytest.mark.parametrize("threads", [1, 3])
def test_each_does_every_part_and_raises_what_one_raises(threads):
    done = []
    each(threads, done.append, range(9))
    assert sorted(done) == list(range(9))
    with pytest.raises(ZeroDivisionError):
        each(threads, lambda part: 1 // part, range(3))
