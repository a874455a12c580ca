"""The training step on one device: nothing on the CPU, nothing read back but where ``read_back`` says so."""

from __future__ import annotations

import pytest
import torch

from genrec.data.impressions import load_impressions, stage_indices
from genrec.model import code_decoder
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training import generation_losses
from genrec.training.data_module import validation_batches
from genrec.training.validation import Validation

SIZES = 2  # read-backs of a step that learns codes: the walked nodes, and the children on the way of each path

# (settings of the model, settings of the training, read-backs)
STEPS = {
    "backbone": ({}, {"generate_weight": 0.0}, 0),
    "sampled negatives": ({}, {"negatives": 20}, 0),
    "without anchors": ({"anchors": 0}, {}, SIZES),
    "with a decoder": ({}, {}, SIZES),
    "without a pointer": ({"pointer": False}, {}, SIZES),
    "without a teacher": ({}, {"distill_weight": 0.0}, SIZES),
    "hard negatives": ({}, {"infonce_easy": 0.5}, SIZES),
    "search anchors": ({"query_anchors": True}, {}, SIZES),
    "search anchors alone": ({"anchors": 0, "query_anchors": True}, {}, SIZES),
    "user tokens": ({"user_tokens": True, "summary_tokens": 2}, {}, SIZES),
    "steps by codes": ({"reasoning_steps": 2}, {"progressive": "codes"}, SIZES),
    "steps by stages": ({"reasoning_steps": 2, "stages": ["click", "cart"]}, {"progressive": "actions"}, SIZES),
    "ranking of draws": ({"ranking": True, "reasoning_steps": 1}, {}, SIZES),
    "ranking of impressions": (
        {"ranking": True, "stages": ["click", "cart"], "reasoning_steps": 2},
        {"progressive": "actions", "infonce_easy": 0.5},
        SIZES,
    ),
    "without text": ({"item_inputs": ["ids", "codes"]}, {"negatives": 20}, SIZES),
}


def step(module, batch):
    """One forward and backward pass as the trainer runs it, and the optimiser's step."""
    loss = module.step_loss(batch, 0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
    optimizer = torch.optim.AdamW(p for p in module.network.parameters() if p.grad is not None)
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", STEPS)
def test_a_step_stays_on_its_device(name, one_device, read_backs, collated, on_meta, with_settings):
    model, training, expected = STEPS[name]
    config = with_settings(model, training)
    batch = collated(config.model)
    generate = name not in ("backbone", "sampled negatives")
    module = on_meta(config, generate)
    with one_device.OneDevice():
        loss = step(module, batch.to("meta"))
    assert loss.device.type == "meta" and read_backs.calls == expected


def test_a_step_that_draws_siblings_stays_on_its_device(
    one_device, read_backs, collated, on_meta, with_settings, monkeypatch
):
    for module in (generation_losses, code_decoder):
        monkeypatch.setattr(module, "LARGE_TRIE", 0)
    config = with_settings()
    module = on_meta(config)
    with one_device.OneDevice():
        loss = step(module, collated(config.model).to("meta"))
    assert loss.device.type == "meta" and read_backs.calls == SIZES


@pytest.mark.parametrize("negatives", [0, 20])
def test_untrained_items_are_known_on_the_device(negatives, one_device, read_backs, collated, on_meta, with_settings):
    """With items left out of the softmax, and mined negatives among the others."""
    config = with_settings({"ranking": True}, {"negatives": negatives, "infonce_easy": 0.5})
    batch = collated(config.model)
    module = on_meta(config, trained_items=torch.arange(0, 80, 2))
    with one_device.OneDevice():
        step(module, batch.to("meta"))
    assert read_backs.calls == SIZES


def test_the_decoder_alone(one_device, read_backs, collated, on_meta, with_settings):
    config = with_settings()
    module = on_meta(config, decoder_only=True)
    batch = collated(config.model)
    for _ in range(2):  # the second step uses the item vectors that the first one kept
        read_backs.calls = 0
        with one_device.OneDevice():
            step(module, batch.to("meta"))
        assert read_backs.calls == SIZES


@pytest.mark.parametrize("model", [{}, {"pointer": False}, {"anchors": 0}])
@pytest.mark.parametrize("requests", ["all", "one", "none"])
def test_the_decoder_alone_trains_all_its_parameters(model, requests, collated, on_device, with_settings):
    """On any batch: several processes rely on it and do not look for unused parameters."""
    config = with_settings(model)
    batch = collated(config.model)
    batch.request_queries.zero_()
    keep = {"all": batch.targets.numel(), "one": 1, "none": 0}[requests]
    batch.targets.view(-1)[keep:] = -1
    module = on_device(config, "cpu", decoder_only=True)
    module.step_loss(batch, 0).backward()
    without = [name for name, parameter in module.network.decoder.named_parameters() if parameter.grad is None]
    assert not without


EQUAL = ("backbone", "with a decoder", "hard negatives", "user tokens", "steps by codes", "ranking of impressions")


@pytest.mark.parametrize("name", EQUAL)
def test_a_step_learns_what_it_learns_on_the_cpu(name, simulated_device, collated, on_device, with_settings):
    """Loss and gradients with values. Nothing random: how a device draws is its own affair."""
    model, training, _ = STEPS[name]
    config = with_settings(
        {"dropout": 0.0, "item_dropout": 0.0} | model, {"generate_share": 1.0, "distill_weight": 0.0} | training
    )
    batch = collated(config.model)
    here = on_device(config, "cpu", name != "backbone")
    here.step_loss(batch, 0).backward()
    with simulated_device.SimulatedDevice() as device:
        there = on_device(config, "meta", name != "backbone")
        loss = there.step_loss(batch.to("meta"), 0)
        loss.backward()
        assert device.reads.total() <= SIZES, device.reads
        gradients = {n: p.grad.cpu() for n, p in there.named_parameters() if p.grad is not None}
    for parameter, value in here.named_parameters():
        if value.grad is not None or parameter in gradients:
            own = torch.zeros_like(value) if value.grad is None else value.grad
            torch.testing.assert_close(gradients[parameter], own, atol=1e-5, rtol=1e-3, msg=parameter)


@pytest.mark.parametrize("name", ["with a decoder", "ranking of impressions"])
def test_validation_waits_once_a_pass(name, simulated_device, prepared_run, on_device, with_settings):
    """However many batches there are; and its metrics are the CPU's."""
    model, training, _ = STEPS[name]
    config, data = with_settings(model, training), prepared_run.dataset
    stages = stage_indices(data, config.model.stages) if config.model.stages else None
    collator = Collator(config.model, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder), stages)
    impressions = load_impressions(data, config.model.stages) if stages is not None else None
    batches = validation_batches(data, collator, 0, 1, impressions)
    assert len(batches) > 3

    def metrics(module, device):
        validation = Validation(module.network.eval())
        with torch.no_grad():
            for batch in batches:
                validation.add(batch.to(device))
        return {name: float(value) for name, value in validation.metrics(config.model.stages, device).items()}

    wanted = metrics(on_device(config, "cpu"), "cpu")
    with simulated_device.SimulatedDevice() as device:
        there = on_device(config, "meta").eval()
        device.reads.clear()
        got = metrics(there, "meta")
        waits = device.reads.total() - len(got)
    assert got == pytest.approx(wanted, abs=0.02) and waits <= 12, device.reads


def test_the_dry_run_sees_mixed_devices_and_values_read_back(one_device):
    """The checks themselves: what CUDA refuses, meta lets pass; what waits for the device, meta refuses."""
    here, there = torch.zeros(4, 4), torch.zeros(4, 4, device="meta")
    index = torch.zeros(2, dtype=torch.long)
    for mixed in (lambda: there @ here, lambda: there[index], lambda: there.gather(0, index[:, None])):
        with one_device.OneDevice(), pytest.raises(RuntimeError, match="mixes devices"):
            mixed()
    for read in (lambda: int(there.sum()), lambda: there.nonzero(), lambda: there[there > 0], lambda: there.unique()):
        with one_device.OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with one_device.OneDevice():
        assert (there * torch.tensor(2.0)).device.type == "meta"  # CPU scalars are welcome
        assert here.to("meta").device.type == "meta"
