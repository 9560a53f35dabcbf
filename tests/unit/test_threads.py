from contextlib import contextmanager

import pytest
from threadpoolctl import threadpool_info

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


def test_an_error_in_the_body_restores_too():
    def threads():
        return [item["num_threads"] for item in threadpool_info() if item["user_api"] == "blas"]

    before, inside = threads(), []
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        inside += [*threads(), 1 // 0]
    with one_blas_thread():
        inside += threads()
    assert set(inside) == {1}
    assert threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_each_does_every_part_and_raises_what_one_raises(threads):
    done = []
    each(threads, done.append, range(9))
    assert sorted(done) == list(range(9))
    with pytest.raises(ZeroDivisionError):
        each(threads, lambda part: 1 // part, range(3))
