"""Each optimiser against a loop over the formulas of its paper in NumPy's float64, which shares no line with it."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halfback.optimizers.base import Settings
from halfback.optimizers.table import TABLE
from halfback.parties.holdings import Descent

Array = Any  # float64
STEPS, LR, DECAY, SEED = 7, 0.05, 0.1, 3
SHAPES = ((6, 10), (11, 5), (8, 4), (7,), (), (3, 2, 2, 3))  # of the matrices, the third is an embedding
HIDDEN = (True, True, False, False, False, False)
FACTOR = [1.0, 0.5, 1.5, 1.0, 0.25, 2.0, 1.0]  # of the learning rate, by step


def drawn(shape: Sequence[int], *path: object) -> Array:
    seed = int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(shape)


def gradient(place: int, step: int) -> Array:
    """Sizes differ by step and by row, so that factors and limits have something to do."""
    found = drawn(SHAPES[place], "gradient", place, step) * (1 + 2 * (step % 3))
    if found.ndim > 1:
        found *= np.arange(1, found.shape[0] + 1).reshape(-1, *[1] * (found.ndim - 1)) / 4
    return found


def adamw(g: Array, s: dict[str, Array], t: int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Array:
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g * g
    return (s["m"] / (1 - betas[0] ** t)) / (np.sqrt(s["v"] / (1 - betas[1] ** t)) + eps)


def adam_step(w: Array, g: Array, s: dict[str, Array], t: int, lr: float, **kinds: Any) -> Array:
    return w - lr * DECAY * w - lr * adamw(g, s, t, **kinds)


def apollo(w: Array, g: Array, s: dict[str, Array], t: int, lr: float, *, place: int, rank: int, alpha: float) -> Array:
    """Of a matrix of a hidden layer; rank 0 is Mini's: one direction, and one factor for the tensor."""
    turned = g.shape[0] > g.shape[1]
    G = g.T if turned else g
    m, r = G.shape[0], max(rank, 1)
    path = f"{SEED}/{place}/{(t - 1) // 3}"  # the gap is 3
    draw = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
    )
    P = torch.randn(r, m, generator=draw).double().numpy() / math.sqrt(r)
    R = P @ G
    adapted = adamw(R, s, t, eps=1e-6)
    U = np.empty_like(G)
    for j in range(G.shape[1]):
        if rank:
            factor = math.sqrt((adapted[:, j] ** 2).sum()) / math.sqrt((R[:, j] ** 2).sum())
        else:
            factor = math.sqrt((adapted**2).sum()) / math.sqrt((R**2).sum())
        U[:, j] = alpha * G[:, j] * factor
    length = math.sqrt((U**2).sum())
    if "u" in s and length > 1.01 * s["u"]:
        U, length = U * (1.01 * s["u"] / length), 1.01 * s["u"]
    s["u"] = length
    return w - lr * DECAY * w - lr * (U.T if turned else U)


def foam(w: Array, g: Array, s: dict[str, Array], t: int, lr: float, *, level: int) -> Array:
    m, n = g.shape
    size, new = 2**level, np.empty_like(w)
    count = math.ceil(n / size)
    s.setdefault("m", np.zeros((m, count)))
    s.setdefault("v", np.zeros((m, count)))
    for i in range(m):
        for b in range(count):
            mean = sum(g[i, j] for j in range(b * size, min((b + 1) * size, n))) / size
            s["m"][i, b] = 0.9 * s["m"][i, b] + 0.1 * mean
            s["v"][i, b] = 0.95 * s["v"][i, b] + 0.05 * mean**2
            for j in range(b * size, min((b + 1) * size, n)):
                rest = g[i, j] - mean
                M, V = s["m"][i, b] + rest, s["v"][i, b] + rest**2
                rate = lr * math.sqrt(1 - 0.95**t) / (1 - 0.9**t) * 0.25
                new[i, j] = w[i, j] - rate * M / (math.sqrt(V) + 1e-8) - lr * DECAY * w[i, j]
    return new


def galore(w: Array, g: Array, s: dict[str, Array], t: int, lr: float) -> Array:
    turned = g.shape[0] > g.shape[1]
    G = g.T if turned else g
    if (t - 1) % 3 == 0:
        P = np.linalg.svd(G)[0][:, :2]
        s["P"] = P * np.sign([max(column, key=abs) for column in P.T])
    update = 0.25 * s["P"] @ adamw(s["P"].T @ G, s, t)
    return w - lr * DECAY * w - lr * (update.T if turned else update)


def adalomo(w: Array, g: Array, s: dict[str, Array], t: int, lr: float) -> Array:
    beta, u = 1 - t**-0.8, g * g + 1e-30
    if g.ndim == 2:
        s["r"] = beta * s.get("r", 0.0) + (1 - beta) * u.mean(1)
        s["c"] = beta * s.get("c", 0.0) + (1 - beta) * u.mean(0)
        change = g / np.sqrt(np.outer(s["r"] / s["r"].mean(), s["c"]))
    else:
        s["v"] = beta * s.get("v", 0.0) + (1 - beta) * u
        change = g / np.sqrt(s["v"])
    change = change / max(1.0, math.sqrt((change**2).mean()))
    rate = lr * max(1e-3, math.sqrt((w**2).mean()))
    return (1 - rate * DECAY) * w - rate * change


def adafactor(w: Array, g: Array, s: dict[str, Array], t: int, lr: float) -> Array:
    """Adafactor (arXiv 1804.04235), algorithms 4 and 5; tensors of more dimensions are matrices of the last two."""
    beta, u = 1 - t**-0.8, g * g + 1e-30
    if g.ndim >= 2:
        s["r"] = beta * s.get("r", 0.0) + (1 - beta) * u.mean(-1, keepdims=True)
        s["c"] = beta * s.get("c", 0.0) + (1 - beta) * u.mean(-2, keepdims=True)
        estimate = s["r"] * s["c"] / s["r"].mean(-2, keepdims=True)
    else:
        estimate = s["v"] = beta * s.get("v", 0.0) + (1 - beta) * u
    change = g / np.sqrt(estimate)
    change = change / max(1.0, math.sqrt((change**2).mean()))
    rate = min(lr, 1 / math.sqrt(t)) * max(1e-3, math.sqrt((w**2).mean()))
    return (1 - lr * DECAY) * w - rate * change  # decay as PyTorch has it: the paper has none


def muon(w: Array, g: Array, s: dict[str, Array], t: int, lr: float) -> Array:
    """As in kellerjordan.github.io/posts/muon, as long as in arXiv 2502.16982."""
    s["B"] = 0.95 * s.get("B", 0.0) + g
    X = g + 0.95 * s["B"]
    turned = X.shape[0] > X.shape[1]
    X = (X.T if turned else X) / math.sqrt((X**2).sum())
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return w - lr * DECAY * w - lr * 0.2 * math.sqrt(max(w.shape)) * (X.T if turned else X)


def sgd(w: Array, g: Array, s: dict[str, Array], t: int, lr: float, *, momentum: float) -> Array:
    """Heavy ball, with the decay in the gradient, as PyTorch has it."""
    s["b"] = momentum * s.get("b", 0.0) + g + DECAY * w
    return w - lr * s["b"]


def formula(name: str, place: int) -> Callable[..., Array]:
    """What moves the tensor of this place."""
    hidden = HIDDEN[place]
    of_hidden: dict[str, Callable[..., Array]] = {
        "apollo": lambda *a: apollo(*a, place=place, rank=2, alpha=math.sqrt(4.0)),
        "apollo_mini": lambda *a: apollo(*a, place=place, rank=0, alpha=math.sqrt(128.0)),
        "foam": lambda *a: foam(*a, level=2),
        "galore": galore,
        "muon": muon,
    }
    of_all: dict[str, Callable[..., Array]] = {
        "sgd": lambda *a: sgd(*a, momentum=0.0),
        "momentum": lambda *a: sgd(*a, momentum=0.9),
        "adalomo": adalomo,
        "adafactor": adafactor,
        "foam": lambda *a: adam_step(*a, betas=(0.9, 0.95)),
        "apollo": lambda *a: adam_step(*a, eps=1e-6),
        "apollo_mini": lambda *a: adam_step(*a, eps=1e-6),
    }
    return of_hidden[name] if hidden and name in of_hidden else of_all.get(name, adam_step)


OPTIONS: dict[str, dict[str, Any]] = {
    "apollo": {"rank": 2, "scale": 4.0, "gap": 3},
    "apollo_mini": {"gap": 3},
    "galore": {"rank": 2, "gap": 3},
}


def settings(name: str, **changes: Any) -> Settings:
    return Settings(LR, DECAY, seed=SEED, **OPTIONS.get(name, {}) | changes)


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.tensor(drawn(shape, "weights", place)).to(dtype).requires_grad_() for place, shape in enumerate(SHAPES)
    ]


def descent(name: str, held: Sequence[Tensor], **changes: Any) -> Descent:
    make = lambda moved: TABLE[name].make(moved, HIDDEN[: len(moved)], settings(name, **changes))  # noqa: E731
    return Descent(held, make, schedule=lambda step: FACTOR[step])


def give(held: Sequence[Tensor], step: int) -> None:
    for place, parameter in enumerate(held):
        parameter.grad = torch.tensor(gradient(place, step)).to(parameter.dtype)


# How far a weight may be from float64's, in weights that move by about LR in a step: float32 rounds each operation by
# 6e-8 of numbers of about 1, and leading singular vectors that lie close lose some digits more. Muon's five steps are
# in bfloat16, of 8 bits, which is 4e-3 of an update. No tensor here has the 4,096 values that eight bits begin at.
WITHIN = {"muon": 2e-2, "galore": 2e-5}


@pytest.mark.parametrize("name", list(TABLE))
def test_formulas(name: str) -> None:
    pytest.importorskip(TABLE[name].package or "torch")
    held = weights()
    moving, states = descent(name, held), [dict[str, Array]() for _ in held]
    wanted = [parameter.detach().double().numpy() for parameter in held]
    for step in range(STEPS):
        give(held, step)
        moving.step(step)
        for place, parameter in enumerate(held):
            g = np.float64(gradient(place, step).astype(np.float32))
            move = formula(name, place)
            wanted[place] = move(wanted[place], g, states[place], step + 1, LR * FACTOR[step])
            np.testing.assert_allclose(
                parameter.detach().double().numpy(),
                wanted[place],
                rtol=0,
                atol=WITHIN.get(name, 2e-6),
                err_msg=f"{place} {step}",
            )


def quantised(values: Array, code: Array) -> Array:
    """In blocks of 256, each value as the nearest of its block's largest times the numbers of a code."""
    flat = values.reshape(-1)
    found = np.empty_like(flat)
    for at in range(0, len(flat), 256):
        block = flat[at : at + 256]
        largest = np.abs(block).max()
        nearest = np.abs(block[:, None] / largest - code[None]).argmin(1)
        found[at : at + 256] = code[nearest] * largest
    return found.reshape(values.shape)


def test_eight_bits() -> None:
    """Moments as bitsandbytes' codes have them, of a tensor that is large enough and doesn't fill its last block."""
    functional = pytest.importorskip("bitsandbytes").functional
    signed, unsigned = (functional.create_dynamic_map(signed=kind).double().numpy() for kind in (True, False))
    shape = (69, 71)
    values = drawn(shape, "eight")
    held = [torch.tensor(values).float().requires_grad_()]
    moving = Descent(held, lambda moved: TABLE["adamw8bit"].make(moved, [True], Settings(LR, DECAY)))
    mean = square = np.zeros(shape)
    for step in range(1, 5):
        g = drawn(shape, "of eight", step)
        held[0].grad = torch.tensor(g).float()
        moving.step(step)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        root = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        values = values * (1 - LR * DECAY) - LR * (mean / (1 - 0.9**step)) / root
        mean, square = quantised(mean, signed), quantised(square, unsigned)
        # On a CPU bitsandbytes looks the nearest code up in a table, whose steps are too coarse for the smallest values
        # and near the middle between two codes: there it takes a neighbour, some percent away (seen: of 2 to 3 % of
        # all values). All others are within some roundings of float32, and in the first step nothing was quantised.
        apart = np.abs(held[0].detach().double().numpy() - values)
        assert (apart > 1e-5).mean() <= (0.05 if step > 1 else 0)
        assert apart.max() < 0.1 * LR


def test_galore_takes_its_directions_from_the_first_gradient_that_has_some() -> None:
    """LoRA's A gets none in its first step, since B is 0: directions of nothing would hold for a whole gap."""
    moved = torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = TABLE["galore"].make([moved], [True], Settings(LR, rank=2))
    for step in range(2):
        moved.grad = torch.zeros(8, 12) if step == 0 else torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
        optimizer.step()
    assert (moved.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", ["adalomo", "galore"])
def test_the_library_comes_to_the_same(name: str) -> None:
    """pytorch-optimizer's AdaLOMO and GaLore, of matrices, where each gradient is the mean of one pass and P stays."""
    library = pytest.importorskip("pytorch_optimizer")
    ours, theirs = (torch.nn.Linear(10, 6, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rows = torch.tensor(drawn((STEPS, 5, 10), "rows")).float()
    make = lambda moved: TABLE[name].make(moved, [True], Settings(LR, rank=2 if name == "galore" else None))  # noqa: E731
    moving = Descent(list(ours.parameters()), make)
    if name == "galore":
        group = {"params": theirs.parameters(), "rank": 2, "update_proj_gap": 200, "scale": 0.25}
        reference = library.GaLore([group | {"projection_type": "std"}], lr=LR, eps=1e-8)
    else:
        reference = library.AdaLOMO(theirs, lr=LR, loss_scale=0.0)
    for step, batch in enumerate(rows):
        with moving.last_pass(step):
            (ours(batch) ** 3).mean().backward()
        moving.step(step)
        loss = (theirs(batch) ** 3).mean()
        if name == "galore":
            loss.backward()
            reference.step()
            reference.zero_grad()
        else:
            reference.fused_backward(loss, LR)
    # Moved by some 0.1 in all, in float32 on both sides.
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-6)
