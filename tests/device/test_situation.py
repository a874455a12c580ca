"""The situation of requests on one device, in training and in answers: nothing is read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.situation import Situation, SituationReader
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training.fit import new_network


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_over_requests(prepared_run, one_device, training):
    data = prepared_run.dataset
    situation = Situation.fit(["country", "surface"], data, TRAIN)
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    collator = Collator(prepared_run.config.model, features, situation=SituationReader(situation, data))
    batch = collator.requests(data.requests("valid").take(np.arange(6)))
    network = new_network(prepared_run.config, data, prepared_run.ids, generate=False, situation=situation)
    moved = torch.nn.ModuleList([network]).to("meta")[0].train(training)
    with one_device.OneDevice():
        for there in (batch.to("meta"), replace(batch, situation=None).to("meta")):
            encoded = moved.encode(there, moved.item_encoder())
            assert encoded.requests.device.type == "meta" and encoded.requests.shape[:2] == (6, 1)
