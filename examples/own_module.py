# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A module of your own
#
# Any `nn.Sequential` can be cut: every child is a block, and the last one that has parameters is the head. It needs
# nothing but `pip install halfback`.

# %%
import torch
from torch import nn

import halfback as hb

draw = torch.Generator().manual_seed(0)
numbers = torch.randn(600, 8, generator=draw)
labels = (numbers[:, :4].sum(1) > numbers[:, 4:].sum(1)).long()
rows = list(zip(numbers, labels.tolist(), strict=True))
net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

# %% [markdown]
# The device gets the first two children, a layer and its activation. `hb.Data` takes training and validation rows; each
# is a tensor and a class.

# %%
run = hb.train(
    {"algorithm": {"name": "ho_sfl", "directions": 4}, "model": {"cut": 2}},
    model=net,
    data=hb.Data(rows[:500], rows[500:]),
    steps=60,
    eval_every=20,
    bottom={"train": "full", "optimizer": "sgd", "normalize": True, "lr": 1e-2},
    top={"train": "full", "lr": 1e-2},
)
print(f"accuracy {run.summary.metric.initial:.1f} % before, {run.summary.metric.final:.1f} % after")

# %% [markdown]
# Your module is as it was; the run's own copy has what was trained.

# %%
trained = run.model()
print(trained(numbers[500:504]).argmax(1).tolist(), labels[500:504].tolist())
