"""One client lies about its slopes, in a real run: what the server puts into the history."""

from typing import Any

import pytest
import torch

from halfback.engine.federation import Federation
from halfback.errors import UserError
from halfback.parties.by_slopes import mean_slopes
from halfback.parties.cohort import Robust
from halfback.testing import small
from halfback.wire.messages import Slopes

HOSTILE = 3
ABLE = ["ho_sfl", "zo_sfl", "decomfl"]


def _run(algorithm: str, lie: bool, **changes: Any) -> Federation:
    settings: dict[str, Any] = {"clients": 5, "sampled_clients": 5, "algorithm__directions": 3, **changes}
    if lie:
        settings |= {"attack": {"name": "sign_flip", "strength": 1e4, "clients": [HOSTILE]}}
    simulation = small.built(small.images(algorithm, **settings)).federation
    small.run(simulation, 1)
    return simulation


@pytest.mark.parametrize("algorithm", ABLE)
@pytest.mark.parametrize("name", ["clip", "median", "trimmed_mean", "krum", "multi_krum"])
def test_a_liar_does_not_steer_the_step(algorithm: str, name: str) -> None:
    honest = _run(algorithm, lie=False).server.party.agreed.rows[0].abs().max()
    steered = _run(algorithm, lie=True).server.party.agreed.rows[0].abs().max()
    kept = _run(algorithm, lie=True, robust__name=name).server.party.agreed.rows[0].abs().max()
    assert steered > 100 * honest
    assert kept < 10 * honest


@pytest.mark.parametrize("algorithm", ABLE)
def test_without_the_setting_a_run_has_the_bits_that_it_had(algorithm: str) -> None:
    plain = _run(algorithm, lie=False)
    assert plain.server.party.cohort.robust == Robust()
    small.assert_equal_states(plain, _run(algorithm, lie=False, robust__bound=1.0, robust__trim=2))


def test_a_group_is_agreed_on_by_those_that_have_it() -> None:
    """Clients 1 and 3 have the deeper cut, and with it the second group: between two nobody can tell who lies."""
    settings = {"model__cut": [1, 2], "sampled_clients": 4, "algorithm__directions": 2, "robust__name": "median"}
    server = small.built(small.images("ho_sfl", **settings)).federation.server.party
    said = {0: [1.0, 2.0], 1: [3.0, 4.0], 2: [5.0, 6.0], HOSTILE: [1000.0, -1000.0]}
    messages = {client: Slopes(0, torch.tensor(values)) for client, values in said.items()}
    assert mean_slopes(server, messages, 2).tolist() == [4.0, 3.0, 501.5, -498.0]
    shallow = {client: messages[client] for client in (0, 2)}
    assert mean_slopes(server, shallow, 2).tolist() == [3.0, 4.0, 0.0, 0.0]


def test_spry_needs_clients_enough_for_each_group_of_layers() -> None:
    said = "robust.name=median: spry has 1 of sampled_clients=4 measure a group of layers, and 3 are needed"
    with pytest.raises(UserError, match=said) as caught:
        small.built(small.images("spry", sampled_clients=4, robust__name="median"))
    assert "\n" not in str(caught.value)


def test_spry_with_clients_enough_for_each_group_of_layers() -> None:
    settings = {"clients": 60, "sampled_clients": 60, "batch_size": 2, "robust__name": "median"}
    settings |= {"attack": {"name": "scale", "strength": 1e6, "clients": [HOSTILE]}}
    simulation = small.built(small.images("spry", **settings)).federation
    groups = len(simulation.server.party.agreed.replica.groups)
    assert groups <= 20
    small.run(simulation, 1)
    assert simulation.server.party.agreed.rows[0].abs().max() < 1e4
