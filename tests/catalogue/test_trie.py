import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.trie import CatalogueTrie, build_trie
from genrec.catalogue.trie_growth import extend_trie
from genrec.errors import UserError
from genrec.model.saved import build_network
from genrec.semantic_ids.prefixes import code_order, prefix_ids

VOCAB = (6, 5, 4)


@pytest.fixture(scope="module")
def codes():
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [torch.randint(size, (80,), generator=generator) for size in VOCAB], dim=1
    )  # 120 cells: leaves are shared


@pytest.fixture(scope="module")
def trie(codes):
    return build_trie(codes, VOCAB)


def children(trie, node):
    start = int(trie.child_start[node])
    return range(start, start + int(trie.child_count[node]))


def test_every_path_spells_the_codes(trie, codes):
    assert torch.equal(trie.node_code[trie.item_path], codes)
    assert torch.equal(trie.item_path[:, -1], trie.item_leaf)
    above = torch.cat([torch.zeros(len(codes), 1, dtype=torch.int64), trie.item_path[:, :-1]], dim=1)
    assert torch.equal(trie.node_parent[trie.item_path], above)


def test_walking_children_by_code_reaches_the_leaf(trie, codes):
    for item, path in enumerate(codes.tolist()):
        node = 0
        for code in path:
            node = next(child for child in children(trie, node) if trie.node_code[child] == code)
        assert node == trie.item_leaf[item]


def test_children_are_contiguous_sorted_and_complete(trie, codes):
    seen = []
    for node in range(trie.n_nodes):
        below = list(children(trie, node))
        edge_codes = trie.node_code[below].tolist()
        assert edge_codes == sorted(set(edge_codes))
        assert all(trie.node_parent[child] == node for child in below)
        seen += below
    assert seen == list(range(1, trie.n_nodes))
    distinct = [len({tuple(row[:length]) for row in codes.tolist()}) for length in (1, 2, 3)]
    assert trie.n_nodes == 1 + sum(distinct)
    assert trie.level_start.tolist() == list(np.cumsum([0, 1] + distinct)) == list(trie.level_bounds)


def test_max_branching(trie):
    for level in range(trie.depth):
        counts = trie.child_count[trie.level_start[level] : trie.level_start[level + 1]]
        assert counts.max() == trie.max_branching[level] and counts.min() > 0
    assert (trie.child_count[trie.level_start[trie.depth] :] == 0).all()


def test_shared_leaves_keep_all_items(trie, codes):
    by_code = {}
    for item, path in enumerate(codes.tolist()):
        by_code.setdefault(tuple(path), []).append(item)
    assert len(by_code) < len(codes)
    assert trie.n_leaves == len(by_code)
    for items in by_code.values():
        leaf = int(trie.item_leaf[items[0]]) - int(trie.level_start[trie.depth])
        assert trie.leaf_items[trie.leaf_item_offsets[leaf] : trie.leaf_item_offsets[leaf + 1]].tolist() == items
    assert trie.leaf_items.sort().values.tolist() == list(range(len(codes)))


def test_item_ranges_hold_the_items_below_a_node(trie):
    for node in range(1, trie.n_nodes):
        start = trie.node_item_start[node]
        below = trie.leaf_items[start : start + trie.node_item_count[node]].tolist()
        assert sorted(below) == (trie.item_path == node).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_restrict_equals_brute_force(trie, share):
    mask = torch.rand(4, trie.n_items, generator=torch.Generator().manual_seed(1)) < share
    allowed = trie.restrict(mask)
    expected = torch.zeros(4, trie.n_nodes, dtype=torch.bool)
    for row in range(4):
        for item in mask[row].nonzero()[:, 0]:
            expected[row, 0] = True
            expected[row, trie.item_path[item]] = True
    assert torch.equal(allowed, expected)
    assert torch.equal(trie.restrict(mask[2]), expected[2])


def test_restrict_rejects_other_masks(trie):
    for mask in (
        torch.ones(3, dtype=torch.bool),
        torch.ones(trie.n_items),
        torch.ones(1, 1, trie.n_items, dtype=torch.bool),
    ):
        with pytest.raises(UserError, match="item_mask"):
            trie.restrict(mask)


def test_saved_tensors_round_trip_through_a_file(trie, tmp_path):
    save_file(trie.saved_tensors(), tmp_path / "trie.safetensors")
    restored = CatalogueTrie.from_saved(load_file(tmp_path / "trie.safetensors"))
    assert (restored.vocab_sizes, restored.max_branching, restored.level_bounds) == (
        VOCAB,
        trie.max_branching,
        trie.level_bounds,
    )
    for name, tensor in trie.saved_tensors().items():
        assert torch.equal(tensor, restored.saved_tensors()[name]), name
    with pytest.raises(UserError, match="node_code"):
        CatalogueTrie.from_saved({key: value for key, value in trie.saved_tensors().items() if key != "node_code"})


def test_a_trie_moves_with_the_module_that_holds_it(codes):
    trie = build_trie(codes, VOCAB)
    numbers = trie.share()
    numbers = numbers.largest_leaf, numbers.open_nodes, [sums.tolist() for sums in numbers.child_sums]
    _ = trie.only_leaf, trie.item_position
    catalogue = Catalogue(torch.rand(80, 3), codes, trie)
    parent = nn.Sequential(catalogue.share()).to("meta")
    assert {tensor.device.type for tensor in parent.buffers()} == {"meta"} and not parent.state_dict()
    moved = parent[0].trie
    assert {tensor.device.type for tensor in (moved.only_leaf, moved.item_position)} == {"meta"}
    assert (moved.largest_leaf, moved.open_nodes, [sums.tolist() for sums in moved.child_sums]) == numbers
    assert {tensor.device.type for tensor in (*catalogue.buffers(), trie.only_leaf)} == {"cpu"}  # a shared one stays


@pytest.mark.parametrize("codes", [[[0]], [[2, 1]], [[1, 1], [1, 1], [1, 1]]])
def test_tiny_catalogues(codes):
    trie = build_trie(torch.tensor(codes, dtype=torch.int32), (3, 3)[: len(codes[0])])
    assert trie.n_leaves == 1 and trie.n_nodes == 1 + len(codes[0])
    assert trie.leaf_items.tolist() == list(range(len(codes)))
    assert trie.max_branching == (1,) * len(codes[0])


@pytest.mark.parametrize(
    "codes, vocab, message",
    [
        (torch.zeros(0, 2, dtype=torch.int64), (2, 2), "shape"),
        (torch.zeros(3, 2, dtype=torch.int64), (2,), "levels"),
        (torch.tensor([[0, 0], [0, 2]]), (2, 2), "item 1 has code 2 at level 2"),
        (torch.tensor([[0, -1]]), (2, 2), "item 0 has code -1"),
        (torch.zeros(3, 2), (2, 2), "whole numbers"),
    ],
)
def test_bad_codes_name_the_item(codes, vocab, message):
    with pytest.raises(UserError, match=message):
        build_trie(codes, vocab)


def test_prefix_ids_follow_code_order(codes):
    table = codes.numpy()
    order, ids = prefix_ids(table)
    assert [tuple(row) for row in table[order]] == sorted(tuple(row) for row in table)
    for length in (1, 2, 3):
        assert np.array_equal(ids[:, length - 1], np.unique(table[:, :length], axis=0, return_inverse=True)[1].ravel())


@pytest.mark.parametrize("sizes", [(6, 5, 4), (1 << 40, 1 << 40, 4)])
def test_code_order_with_and_without_a_packed_key(sizes):
    generator = np.random.default_rng(0)
    table = generator.integers(0, 4, (200, 3)) * np.array([max(size // 8, 1) for size in sizes])
    assert np.array_equal(code_order(table), np.lexsort(table.T[::-1]))


def same(one, other):
    assert (one.vocab_sizes, one.max_branching, one.level_bounds) == (
        other.vocab_sizes,
        other.max_branching,
        other.level_bounds,
    )
    for name, tensor in one.saved_tensors().items():
        assert torch.equal(tensor, other.saved_tensors()[name]), name


@pytest.mark.parametrize("vocab", [VOCAB, (1 << 30, 1 << 30, 1 << 30)])
@pytest.mark.parametrize("split", [1, 40, 79])
def test_extending_equals_building_anew(codes, vocab, split):
    old = build_trie(codes[:split], vocab)
    grown, node_map = extend_trie(old, codes[split:])
    same(grown, build_trie(codes, vocab))
    assert torch.equal(grown.node_code[node_map], old.node_code)
    assert torch.equal(node_map[old.item_path], grown.item_path[:split])
    with pytest.raises(UserError, match="item 0 has code"):
        extend_trie(old, torch.tensor([[0, 0, 1 << 30]]))


def test_a_trie_may_lack_items(codes):
    """It is that of the others; ids stay, and growth keeps the gaps."""
    held = torch.arange(80) % 3 > 0
    ids, trie, dense = held.nonzero()[:, 0], build_trie(codes, VOCAB, held), build_trie(codes[held], VOCAB)
    assert (trie.n_items, trie.n_held, trie.n_nodes) == (80, len(ids), dense.n_nodes)
    assert torch.equal(trie.held, held) and torch.equal(trie.leaf_items, ids[dense.leaf_items])
    assert torch.equal(trie.item_path[held], dense.item_path) and torch.equal(trie.item_leaf[held], dense.item_leaf)
    assert (trie.item_path[~held] == trie.n_nodes).all() and (trie.item_position[~held] == trie.n_held).all()
    assert torch.equal(trie.item_position[held], dense.item_position)
    for name in ("child_start", "child_count", "node_code", "node_item_start", "node_item_count", "leaf_item_offsets"):
        assert torch.equal(getattr(trie, name), getattr(dense, name)), name
    part, every = build_trie(codes[:50], VOCAB, held[:50]), torch.cat([held[:50], torch.ones(30, dtype=torch.bool)])
    grown, whole = extend_trie(part, codes[50:])[0], build_trie(codes, VOCAB, every)
    for name, tensor in whole.tensors().items():
        assert torch.equal(getattr(grown, name), tensor), name


def test_save_and_load(trie, tmp_path):
    trie.save(tmp_path / "trie.safetensors")
    same(CatalogueTrie.load(tmp_path / "trie.safetensors"), trie)
    (tmp_path / "broken").write_bytes(b"no trie")
    for name in ("broken", "missing"):
        with pytest.raises(UserError, match=name):
            CatalogueTrie.load(tmp_path / name)


def test_only_leaf_and_open_nodes(trie):
    leaves_below = [set(trie.item_leaf[(trie.item_path == node).any(1)].tolist()) for node in range(trie.n_nodes)]
    leaves_below[0] = set(trie.item_leaf.tolist())
    assert trie.only_leaf.tolist() == [next(iter(leaves)) if len(leaves) == 1 else -1 for leaves in leaves_below]
    for level in range(trie.depth):
        nodes = range(trie.level_bounds[level], trie.level_bounds[level + 1])
        assert trie.open_nodes[level] == sum(len(leaves_below[node]) > 1 for node in nodes)


def test_most_children_is_never_exceeded(trie):
    for level in range(trie.depth):
        counts = trie.child_count[trie.level_start[level] : trie.level_start[level + 1]].sort(descending=True).values
        for width in (1, 2, 5, 500):
            assert trie.most_children(level, width) == int(counts[:width].sum())


@pytest.mark.parametrize("kind", ["genrec", "sasrec"])
def test_a_parent_module_moves_a_network_with_its_catalogue(prepared_run, kind):
    """Lightning moves the module that holds the network and calls no method of the network itself."""
    ids = prepared_run.ids
    network = build_network(kind, prepared_run.config, ids.catalogue, 3, 1e4, generate=True)
    names = set(network.state_dict())
    parent = nn.ModuleDict({"network": network}).to("meta")
    tensors = dict(parent.named_buffers(remove_duplicate=False)) | dict(parent.named_parameters())
    assert "network.catalogue.trie.item_path" in tensors
    assert not [name for name, tensor in tensors.items() if tensor.device.type != "meta"]
    assert set(network.state_dict()) == names and not any(name.startswith("catalogue") for name in names)
    assert ids.catalogue.text.device.type == "cpu"
