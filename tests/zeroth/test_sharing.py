"""Directions of a client's or a sample's own: what they measure, and that it is the gradient on average."""

import pytest
import torch
from probed_models import Run, transformer, with_lora
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.zeroth.directions import direction_of
from halfback.zeroth.perturb import check_rows, perturbed, perturbed_rows
from halfback.zeroth.replay import Replica, UpdateRule
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.sharing import Sharing
from halfback.zeroth.slopes import estimate_sample_slopes, estimate_slopes, inner


def test_every_direction_of_a_step_has_one_owner() -> None:
    sharing = Sharing(seats=3, rows=4)
    assert (sharing.of_client(2), sharing.of_cohort(2)) == (8, 24)
    places = [list(range(24))[sharing.place(seat, 2)] for seat in range(3)]
    assert [place for own in places for place in own] == list(range(24))
    assert Sharing().place(2, 5) == slice(0, 5), "a shared direction is everyone's, whatever the seat"


def test_who_is_absent_leaves_zeros_and_the_others_count_for_more() -> None:
    spread = Sharing(seats=3).spread({0: torch.tensor([1.0, 2.0]), 2: torch.tensor([-4.0, 0.0])})
    assert spread.tolist() == [1.5, 3.0, 0.0, 0.0, -6.0, 0.0]
    assert spread.dtype == torch.float32


TARGETS = {
    "bert": ["query", "value"],
    "gpt2": ["c_attn"],
    "opt": ["q_proj", "v_proj"],
    "llama": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj"],
}


def lora_of(name: str) -> tuple[nn.Module, Run, dict[str, nn.Parameter]]:
    """In float64, so that a row's result does not depend on how it is computed."""
    model, run = transformer(name, torch.float64)
    parameters = with_lora(model, TARGETS[name])
    return model.double(), run, parameters


@pytest.mark.parametrize("name", TARGETS)
def test_each_row_sees_its_own_weights(name: str) -> None:
    """One pass with weights of their own for all rows gives what a pass for each row gives."""
    model, run, parameters = lora_of(name)
    rows = len(run())
    seeds = [seed_for("row", row) for row in range(rows)]
    with torch.no_grad(), perturbed_rows(model, parameters, seeds, 0.1):
        together = run()
    for row, seed in enumerate(seeds):
        with torch.no_grad(), perturbed(model, parameters, seed, 0.1):
            alone = run()
        # float64 sums in another order: matrix products of a row and of a batch differ in their last digits.
        torch.testing.assert_close(together[row], alone[row], rtol=1e-9, atol=1e-11)
    assert not torch.allclose(together, run().detach(), rtol=1e-4), "the probes changed nothing"


def test_every_parameter_of_a_network_may_be_moved_row_by_row() -> None:
    """Convolutions, norms and plain layers: weights and biases, in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.LayerNorm(5)).eval()
    inputs, parameters = torch.randn(3, 3, 6, 6), dict(model.named_parameters())
    seeds = [1, 2, 3]
    with torch.no_grad(), perturbed_rows(model, parameters, seeds, 0.05):
        together = model(inputs)
    for row, seed in enumerate(seeds):
        with torch.no_grad(), perturbed(model, parameters, seed, 0.05):
            # About a hundred float32 sums of size one in another order.
            torch.testing.assert_close(together[row], model(inputs)[row], rtol=1e-4, atol=1e-5)


def test_live_weights_are_untouched_also_when_a_probe_raises() -> None:
    model, run, parameters = lora_of("bert")
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    forwards = [module.forward for module in model.modules()]
    with torch.no_grad(), perturbed_rows(model, parameters, [1, 2], 0.1):
        run()
    # Three sets of weights for two rows: the first module that uses one fails in the middle of its pass.
    with pytest.raises((RuntimeError, ValueError)), torch.no_grad(), perturbed_rows(model, parameters, [1, 2, 3], 0.1):
        run()
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert forwards == [module.forward for module in model.modules()]


def test_an_embedding_table_is_refused() -> None:
    model, _ = transformer("bert", torch.float32)
    with pytest.raises(
        UserError, match=r"algorithm\.directions_per=sample: .*embeddings.* is trained, and can't differ"
    ):
        check_rows(model, dict(model.named_parameters()))
    check_rows(model, with_lora(model, TARGETS["bert"]))


def test_a_module_around_others_that_move_is_refused() -> None:
    model, _ = transformer("vit", torch.float32)
    with pytest.raises(UserError, match="cls_token is trained, and can't differ from row to row"):
        check_rows(model, dict(model.named_parameters()))


@pytest.mark.parametrize("target", ["fc1", "fc2"])
def test_a_layer_that_sees_all_tokens_in_one_dimension(target: str) -> None:
    """OPT makes (B · T, H) of (B, T, H) before its feed-forward layers."""
    model, run = transformer("opt", torch.float64)
    parameters = with_lora(model, [target])
    model.double()
    with torch.no_grad(), perturbed_rows(model, parameters, [1, 2], 0.1):
        together = run()
    for row, seed in enumerate((1, 2)):
        with torch.no_grad(), perturbed(model, parameters, seed, 0.1):
            torch.testing.assert_close(together[row], run()[row], rtol=1e-9, atol=1e-11)  # as above


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_a_samples_slope_is_that_of_its_own_loss(estimator: str) -> None:
    model, run, parameters = lora_of("bert")
    result = run()
    cotangent = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seeds = [[seed_for("own", row, p) for p in range(3)] for row in range(len(result))]
    found = estimate_sample_slopes(
        run, model, parameters, cotangent, inner(cotangent, result.detach()), seeds, radius=1e-6, estimator=estimator,
    )  # type: ignore[arg-type]  # fmt: skip
    assert found.shape == (len(result), 3)
    for row in range(len(result)):
        gradients = torch.autograd.grad(
            (result[row] * cotangent[row]).sum(), list(parameters.values()), retain_graph=True
        )
        for p, seed in enumerate(seeds[row]):
            wanted = sum(
                (g * direction_of(seed, n, g)).sum().item() for n, g in zip(parameters, gradients, strict=True)
            )
            # Truncation at this radius, and the rounding of float64 over it: both of order 1e-6 of a slope's size.
            assert found[row, p].item() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_with_one_direction_for_all_rows_their_slopes_add_up_to_the_batchs() -> None:
    model, run, parameters = lora_of("bert")
    result = run().detach()
    cotangent = torch.ones_like(result)
    base, seed = inner(cotangent, result), 7
    of_rows = estimate_sample_slopes(run, model, parameters, cotangent, base, [[seed]] * len(result), radius=1e-4)
    of_batch = estimate_slopes(run, model, parameters, cotangent, base, [seed], radius=1e-4)
    assert of_rows.sum().item() == pytest.approx(of_batch.item(), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_replayed_step_is_the_gradient_on_average(rows: int) -> None:
    """Two clients with batches of four: what is agreed moves θ along the mean gradient, whoever had which direction."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    parameters, directions, steps = dict(model.named_parameters()), 2, 400
    batches = [torch.randn(4, 2, dtype=torch.float64) for _ in range(2)]
    cotangent = torch.full((4, 1), 0.25, dtype=torch.float64)  # of a mean over the batch
    truth = torch.zeros(13, dtype=torch.float64)
    for batch in batches:
        found = torch.autograd.grad((model(batch) * cotangent).sum(), list(parameters.values()))
        truth += torch.cat([g.flatten() for g in found]) / 2
    sharing = Sharing(seats=2, rows=rows)

    def seed_of(step: int, p: int) -> int:
        return seed_for("mean", step, p)

    moves = []
    for step in range(steps):
        held = {name: p.detach().float() for name, p in parameters.items()}
        replica = Replica(held, rule=UpdateRule(lr=1.0), seed_of=seed_of)
        replica.position = step
        seeds, measured = replica.seeds(sharing.of_cohort(directions)), {}
        for seat, batch in enumerate(batches):
            own = seeds[sharing.place(seat, directions)]
            base = inner(cotangent, model(batch))
            if rows == 1:
                slopes = estimate_slopes(lambda b=batch: model(b), model, parameters, cotangent, base, own, radius=1e-6)  # type: ignore[misc]
            else:
                of_rows = [own[row * directions : (row + 1) * directions] for row in range(rows)]
                slopes = (
                    rows
                    * estimate_sample_slopes(
                        lambda b=batch: model(b),
                        model,
                        parameters,
                        cotangent,
                        base,
                        of_rows,
                        radius=1e-6,  # type: ignore[misc]
                    ).flatten()
                )
            measured[seat] = slopes
        before = _flat(held)
        replica.replay(step, sharing.spread(measured).unsqueeze(0))
        moves.append(before - _flat(held))
    samples = torch.stack(moves)
    errors = samples.std(dim=0) / steps**0.5
    assert ((samples.mean(dim=0) - truth).abs() < 4 * errors).all()
    assert errors.norm() < 0.25 * truth.norm(), "the test could not fail"


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])
