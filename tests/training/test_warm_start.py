"""A warm start: weights follow items, codes and nodes into a longer catalogue, and steps read new windows first."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from genrec.data.sequences import make_windows
from genrec.model import code_decoder
from genrec.model.saved import build_network
from genrec.training.fit import with_rules
from genrec.training.plan import FitPlan, WarmStart, model_key
from genrec.training.warm_start import choose_windows, copy_weights


@pytest.mark.parametrize("large_trie", [0, 1 << 30])
def test_weights_follow_items_codes_and_nodes(prepared_run, network, monkeypatch, large_trie):
    monkeypatch.setattr(code_decoder, "LARGE_TRIE", large_trie)
    old_ids, config = prepared_run.ids, with_rules(prepared_run.config, prepared_run.dataset)
    new = pl.DataFrame({"title": ["red lamp", "steel kettle", "blue tent"], "brand": [None, "Vox", None]})
    catalogue = old_ids.append(new).ids.catalogue
    torch.manual_seed(9)
    actions = len(prepared_run.dataset.actions_chain)
    made = build_network("genrec", config, catalogue, actions, network.time_base, True).eval()
    assert copy_weights(made, network) == []
    n_old = old_ids.catalogue.n_items
    with torch.no_grad():
        before, after = network.item_encoder(), made.item_encoder()
        torch.testing.assert_close(after[:n_old], before)
        # The decoder's own vectors of the nodes that were there, without the means of items below, which may be new.
        nodes = old_ids.catalogue.trie.item_path, made.catalogue.trie.item_path[:n_old]
        for table in (network.decoder.nodes, network.decoder.codes):
            assert table.weight.std() > 0
        own = [own_vectors(one.decoder, path) for one, path in ((network, nodes[0]), (made, nodes[1]))]
        learnt = own[1].any(-1)  # of nodes that no search reads there is none
        torch.testing.assert_close(own[1][learnt], own[0][learnt])
        assert learnt.all() == (large_trie > 0)
        codes = [one.decoder.codes(one.decoder.code_row[path]) for one, path in ((network, nodes[0]), (made, nodes[1]))]
        torch.testing.assert_close(codes[1], codes[0])
    decoder = made.decoder.null.clone()
    with torch.no_grad():
        made.decoder.null.zero_()
        made.request.zero_()
    copy_weights(made, network, "decoder.")
    torch.testing.assert_close(made.decoder.null, decoder)
    assert not made.request.any()  # not named by the prefix


def own_vectors(decoder, nodes):
    return decoder.nodes(nodes if decoder.node_row is None else decoder.node_row[nodes])


def test_steps_read_new_windows_first_and_replay_the_rest(prepared_run):
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(2), 10, 5)
    counts = np.full(len(windows), 3)
    counts[::7] = 0
    users = data.user_of(windows.start)
    learnt = data.known_lengths(2).copy()[:-1]  # nothing of the last user, who is new
    learnt[::4] -= 1
    is_new = (users % 4 == 0) & (windows.stop == windows.end) | (users == len(learnt))
    start = WarmStart(None, learnt, steps=4, replay=0.25)
    chosen = choose_windows(data, windows, counts, start, batch_size=8, seed=1)
    kept = np.flatnonzero(chosen)
    assert len(kept) == 32 and (chosen[kept] == counts[kept]).all() and (counts[kept] > 0).all()
    assert is_new[counts > 0].sum() >= 24 and is_new[kept].sum() == 24
    everything = choose_windows(data, windows, counts, WarmStart(None, learnt, 10_000, 0.5), 8, 1)
    np.testing.assert_array_equal(everything, counts)


def test_a_warm_start_is_no_part_of_the_key(prepared_run):
    config = prepared_run.config
    plain, warm = FitPlan(), FitPlan(warm_start=WarmStart(None, np.zeros(0), 1, 0.0))
    assert model_key(config, "ids", plain) == model_key(config, "ids", warm)
