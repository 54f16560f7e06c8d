"""Whatever the lengths, micro-batches cover the work once and keep to their budget."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from backends.local.batching import PADDED_TOKENS, micro_batches

work = given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    n=st.integers(1, 40),
    budget=st.integers(1, 20_000),
)


def size(batch):
    return (batch.stop - batch.start) * len(batch.rows)


@work
def test_every_candidate_meets_every_row_once(lengths, n, budget):
    met = Counter(
        (candidate, row)
        for batch in micro_batches(lengths, n, budget)
        for candidate in range(batch.start, batch.stop)
        for row in batch.rows
    )
    assert met == Counter((candidate, row) for candidate in range(n) for row in range(len(lengths)))


@work
def test_no_batch_is_over_budget_unless_it_is_one_sequence(lengths, n, budget):
    for batch in micro_batches(lengths, n, budget):
        assert batch.length * size(batch) <= budget or size(batch) == 1


@work
def test_a_batch_is_as_long_as_its_longest_row(lengths, n, budget):
    for batch in micro_batches(lengths, n, budget):
        assert batch.length == max(lengths[row] for row in batch.rows)


@work
def test_only_small_batches_are_padded(lengths, n, budget):
    for batch in micro_batches(lengths, n, budget):
        if len({lengths[row] for row in batch.rows}) > 1:
            assert batch.length * len(batch.rows) * n <= PADDED_TOKENS


def test_a_large_population_has_no_padding_at_all():
    lengths = [9, 30, 12, 30, 9, 30]
    batches = micro_batches(lengths, n_candidates=200, token_budget=16384)
    assert all(lengths[row] == batch.length for batch in batches for row in batch.rows)


def test_rows_of_one_length_go_together():
    assert [batch.rows for batch in micro_batches([7, 30, 7, 30], 100, 10**6)] == [(1, 3), (0, 2)]


def test_a_single_short_candidate_goes_in_one_padded_batch():
    (batch,) = micro_batches([9, 30, 12, 5], n_candidates=1, token_budget=16384)
    assert (sorted(batch.rows), batch.length) == ([0, 1, 2, 3], 30)


def test_a_population_fills_the_budget():
    batches = micro_batches([10] * 4, n_candidates=10, token_budget=200)
    assert [size(batch) * batch.length for batch in batches] == [200, 200]
