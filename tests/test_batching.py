"""Whatever the lengths, micro-batches cover the work once and keep to their budget."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from backends.local.batching import micro_batches

work = given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    n=st.integers(1, 40),
    budget=st.integers(1, 20_000),
    one_length=st.booleans(),
)


def tokens(batch, lengths):
    return (batch.stop - batch.start) * sum(lengths[row] for row in batch.rows)


@work
def test_every_candidate_meets_every_row_once(lengths, n, budget, one_length):
    met = Counter(
        (candidate, row)
        for batch in micro_batches(lengths, n, budget, one_length)
        for candidate in range(batch.start, batch.stop)
        for row in batch.rows
    )
    assert met == Counter((candidate, row) for candidate in range(n) for row in range(len(lengths)))


@work
def test_no_batch_is_over_budget_unless_it_is_one_sequence(lengths, n, budget, one_length):
    for batch in micro_batches(lengths, n, budget, one_length):
        alone = batch.stop - batch.start == len(batch.rows) == 1
        assert tokens(batch, lengths) <= budget or alone


@work
def test_rows_of_one_length_stand_together(lengths, n, budget, one_length):
    for batch in micro_batches(lengths, n, budget, one_length):
        found = [lengths[row] for row in batch.rows]
        assert found == sorted(found, reverse=True)
        assert not one_length or len(set(found)) == 1


def test_a_population_fills_the_budget():
    lengths = [10] * 4
    batches = micro_batches(lengths, n_candidates=10, token_budget=200)
    assert [tokens(batch, lengths) for batch in batches] == [200, 200]
