"""Small networks of feature interactions, which a re-ranker adds to its linear form; several are kept as their mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 64


def interaction_network(size: int, hidden: int) -> nn.Sequential:
    """A network that starts as zero, so that fitting starts from the linear form."""
    last = nn.Linear(hidden, 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(
        nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, hidden), nn.ReLU(), last
    )


def linear_layer(network: nn.Sequential, index: int) -> nn.Linear:
    """The layer at ``index``."""
    layer = network[index]
    assert isinstance(layer, nn.Linear)
    return layer


def n_members(network: nn.Sequential) -> int:
    """How many networks of ``HIDDEN`` units an ``averaged`` one has; 1 for another one."""
    weight = linear_layer(network, 3).weight.detach()
    members = len(weight) // HIDDEN
    if members < 2 or len(weight) % HIDDEN:
        return 1
    return 1 if weight[~_own_blocks(members, weight.device)].any() else members


def keep_apart(network: nn.Sequential) -> None:
    """Fit the members of an ``averaged`` network further as members: their units stay unconnected."""
    members, weight = n_members(network), linear_layer(network, 3).weight
    if members > 1:
        own = _own_blocks(members, weight.device)
        weight.register_hook(lambda gradient: gradient * own)


def _own_blocks(members: int, device: torch.device) -> Tensor:
    """Which weights between the hidden layers join units of one member: (members x HIDDEN, members x HIDDEN)."""
    member = torch.arange(members * HIDDEN, device=device) // HIDDEN
    return member[:, None] == member


def hidden_states(network: nn.Sequential, x: Tensor, members: int) -> Tensor:
    """The last hidden states (..., hidden) of inputs (..., F); units of other ``members`` are not multiplied."""
    second, states = linear_layer(network, 3), linear_layer(network, 0)(x).relu_()
    rows = second.weight.split(len(second.weight) // members)
    width = len(rows[0])
    parts = [
        torch.nn.functional.linear(
            states[..., begin : begin + width], own[:, begin : begin + width], second.bias[begin : begin + width]
        )
        for begin, own in zip(range(0, len(second.weight), width), rows, strict=True)
    ]
    return (parts[0] if members == 1 else torch.cat(parts, dim=-1)).relu_()


def averaged(networks: list[nn.Sequential]) -> nn.Sequential:
    """One network whose output is the mean of the outputs of ``networks``, all of one size."""
    states = [network.state_dict() for network in networks]
    hidden, size = states[0]["0.weight"].shape
    whole = interaction_network(size, hidden * len(states))
    joined = {
        name: torch.cat([state[name] for state in states]) for name in states[0] if not name.startswith(("3.w", "5."))
    }
    joined["3.weight"] = torch.block_diag(*(state["3.weight"] for state in states))
    joined["5.weight"] = torch.cat([state["5.weight"] for state in states], dim=1) / len(states)
    whole.load_state_dict(joined)
    return whole.eval()
