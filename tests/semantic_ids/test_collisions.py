import numpy as np
import pytest

from genrec.errors import UserError
from genrec.semantic_ids import collisions
from genrec.semantic_ids.collisions import resolve_collisions
from genrec.semantic_ids.quantizers import Codebooks, fit_codebooks, reconstruct


def sequential(codes, vectors, codebooks, popularity):
    """The definition, one item after the other, over every free code."""
    codes = codes.copy()
    order = sorted(range(len(codes)), key=lambda item: (-popularity[item], item))
    held, waiting = set(), []
    for item in order:
        waiting.append(item) if tuple(codes[item]) in held else held.add(tuple(codes[item]))
    for item in waiting:
        pairs = np.stack(np.meshgrid(*map(np.arange, codebooks.sizes[-2:]), indexing="ij"), axis=-1).reshape(-1, 2)
        candidates = np.concatenate([np.tile(codes[item, :-2], (len(pairs), 1)), pairs], axis=1)
        distance = ((vectors[item] - reconstruct(codebooks, candidates)) ** 2).sum(1)
        for index in np.argsort(distance, kind="stable"):
            if tuple(candidates[index]) not in held:
                codes[item] = candidates[index]
                held.add(tuple(codes[item]))
                break
    return codes


@pytest.fixture(scope="module")
def crowded():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 7)).astype(np.float32)[rng.integers(0, 40, 300)] + 0.05 * rng.normal(
        size=(300, 7)
    ).astype(np.float32)
    return vectors, *fit_codebooks(vectors, (4, 4, 4), 2, 8, seed=0), rng.permutation(300)


def test_all_codes_become_distinct_where_there_is_room(crowded):
    vectors, codebooks, codes, popularity = crowded
    resolved, report = resolve_collisions(codes, vectors, codebooks, popularity)
    assert len(np.unique(codes, axis=0)) < 300 == len(np.unique(resolved, axis=0))
    assert report.collisions_before == 300 - len(np.unique(codes, axis=0)) == report.moved
    assert report.collisions_after == 0 and report.items == 300
    assert np.array_equal(resolved[:, :-2], codes[:, :-2])
    assert (resolved >= 0).all() and (resolved < codebooks.sizes).all()


def test_most_popular_item_keeps_its_code(crowded):
    vectors, codebooks, codes, popularity = crowded
    resolved, _ = resolve_collisions(codes, vectors, codebooks, popularity)
    for code in np.unique(codes, axis=0):
        members = np.flatnonzero((codes == code).all(1))
        best = members[popularity[members].argmax()]
        assert np.array_equal(resolved[best], code)


def test_equal_popularity_the_lowest_index_keeps_it(crowded):
    vectors, codebooks, codes, _ = crowded
    resolved, _ = resolve_collisions(codes, vectors, codebooks)
    _, first = np.unique(codes, axis=0, return_index=True)
    assert np.array_equal(resolved[first], codes[first])
    assert np.array_equal(resolved, resolve_collisions(codes, vectors, codebooks, np.ones(300))[0])


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_equals_the_sequential_definition(crowded, block, monkeypatch):
    vectors, codebooks, codes, popularity = crowded
    monkeypatch.setattr(collisions, "BLOCK_CELLS", block)
    resolved, report = resolve_collisions(codes, vectors, codebooks, popularity)
    expected = sequential(codes, vectors, codebooks, popularity)
    assert np.array_equal(resolved, expected)
    moved = (expected != codes).any(1)
    growth = [((vectors[moved] - reconstruct(codebooks, table[moved])) ** 2).sum(1) for table in (codes, expected)]
    assert report.mean_extra_error == pytest.approx((growth[1] - growth[0]).mean(), rel=1e-3)


def test_without_opq_the_last_residual_levels_vary(crowded):
    vectors, _, _, popularity = crowded
    codebooks, codes = fit_codebooks(vectors, (4, 8, 16), 0, 0, seed=0)
    resolved, _ = resolve_collisions(codes, vectors, codebooks, popularity)
    assert np.array_equal(resolved, sequential(codes, vectors, codebooks, popularity))


def test_items_without_a_free_code_keep_sharing():
    codebooks = Codebooks(
        [np.zeros((1, 1), np.float32), np.array([[0.0], [1.0]], np.float32), np.array([[0.0], [0.1]], np.float32)]
    )
    vectors = np.zeros((6, 1), np.float32)
    codes = np.zeros((6, 3), np.int64)
    resolved, report = resolve_collisions(codes, vectors, codebooks, np.arange(6))
    assert resolved[:, 1:].tolist() == [[0, 0], [0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]
    assert (report.collisions_before, report.collisions_after, report.moved) == (5, 2, 3)


def test_one_level_and_two_levels():
    centroids = np.array([[0.0], [1.0], [3.0]], np.float32)
    vectors = np.array([[0.1], [0.2]], np.float32)
    resolved, _ = resolve_collisions(np.zeros((2, 1), np.int64), vectors, Codebooks([centroids]))
    assert resolved.tolist() == [[0], [1]]
    resolved, _ = resolve_collisions(np.zeros((2, 2), np.int64), vectors, Codebooks([centroids, centroids / 10]))
    assert resolved.tolist() == [[0, 0], [0, 1]]


def test_nothing_to_resolve_changes_nothing():
    centroids = np.array([[0.0], [1.0]], np.float32)
    codes = np.array([[0], [1]])
    resolved, report = resolve_collisions(codes, centroids, Codebooks([centroids]))
    assert np.array_equal(resolved, codes)
    assert (report.collisions_before, report.moved, report.mean_extra_error) == (0, 0, 0.0)


def test_input_is_left_alone(crowded):
    vectors, codebooks, codes, popularity = crowded
    before = codes.copy()
    resolve_collisions(codes, vectors, codebooks, popularity)
    assert np.array_equal(codes, before)


def test_user_errors(crowded):
    vectors, codebooks, codes, popularity = crowded
    with pytest.raises(UserError, match="codes"):
        resolve_collisions(codes[:, :3], vectors, codebooks)
    with pytest.raises(UserError, match="vectors"):
        resolve_collisions(codes, vectors[:5], codebooks)
    with pytest.raises(UserError, match="popularity"):
        resolve_collisions(codes, vectors, codebooks, popularity[:5])


def test_fixed_rows_keep_their_codes_and_the_others_make_way(crowded):
    vectors, codebooks, codes, popularity = crowded
    resolved, report = resolve_collisions(codes, vectors, codebooks, popularity, fixed=200)
    assert np.array_equal(resolved[:200], codes[:200])
    held = {tuple(code) for code in codes[:200]}
    assert not held & {tuple(code) for code in resolved[200:]} and len({tuple(code) for code in resolved[200:]}) == 100
    assert report.collisions_after == 200 - len(held)  # those among the fixed rows


@pytest.fixture(scope="module")
def sized():
    """Codebooks of four levels with 8 x 4 x 2 x 2 codes, and what their items are."""
    rng = np.random.default_rng(3)
    tables = [rng.normal(size=(size, 6)).astype(np.float32) / 2**level for level, size in enumerate((8, 4, 2, 2))]
    return Codebooks(tables), (tables[0][5] + tables[1][2])[None] + 0.01 * rng.normal(size=(60, 6)).astype(np.float32)


def test_added_items_with_one_text_get_codes_of_their_own(sized):
    codebooks, vectors = sized
    vectors = np.repeat(vectors[:1], 100, 0)
    codes = np.tile([5, 2, 1, 0], (100, 1))
    resolved, report = resolve_collisions(codes, vectors, codebooks, fixed=1)
    assert len(np.unique(resolved, axis=0)) == 100 and report.collisions_after == 0
    # the nearest first: the prefix's own pairs, then those of the same first code, then others
    assert (resolved[:4, :2] == [5, 2]).all() and (resolved[:16, 0] == 5).all() and (resolved[16:44, 0] != 5).all()
    half = resolve_collisions(codes[:50], vectors[:50], codebooks, fixed=1)[0]
    again = resolve_collisions(np.concatenate([half, codes[50:]]), vectors, codebooks, fixed=50)[0]
    assert np.array_equal(again, resolved)  # added at once or in two parts


def test_no_code_holds_more_than_the_stated_number(sized, monkeypatch):
    codebooks, vectors = sized
    codes = np.tile([5, 2, 1, 0], (60, 1))
    sharing = np.unique(resolve_collisions(codes, vectors, codebooks)[0], axis=0, return_counts=True)[1]
    assert sharing.max() == 16 and len(sharing) == 4 + 41
    monkeypatch.setattr(collisions, "MAX_LEAF", 100)
    assert np.unique(resolve_collisions(codes, vectors, codebooks)[0], axis=0, return_counts=True)[1].max() == 57


def test_a_full_code_space_is_shared(sized):
    codebooks, vectors = sized
    codes = np.tile([5, 2, 1, 0], (200, 1))
    resolved, report = resolve_collisions(codes, np.repeat(vectors[:1], 200, 0), codebooks, fixed=1)
    assert len(np.unique(resolved, axis=0)) == 128 and report.collisions_after == 72
