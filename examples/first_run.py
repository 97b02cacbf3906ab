# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A first run
#
# Ten devices, three a step, learn to read handwritten digits. Each device runs one block of a small ResNet forward; the
# server has the rest and backpropagates there. The devices' own block learns too, from slopes that they measure with
# forward passes. It needs `pip install 'halfback[quickstart]'` and a few seconds.

# %%
import halfback as hb

run = hb.train(
    {
        "algorithm": {"name": "ho_sfl", "directions": 4},
        "task": {"name": "digits"},
        "model": {"name": "resnet8", "cut": 1},
        "bottom": {"train": "full", "optimizer": "sgd", "normalize": True, "lr": 3e-3},
        "top": {"train": "full", "lr": 1e-2},
    },
    steps=60,
    eval_every=20,
    threads=1,
)

# %% [markdown]
# `run.summary` has what came of it. Bytes are those of messages that were really packed; the peak is that of a device's
# tensors, beside the peak of the same device when it only runs its part.

# %%
summary = run.summary
print(f"accuracy {summary.metric.initial:.1f} % before, {summary.metric.final:.1f} % after {run.config.steps} steps")
print(f"sent by all devices: {summary.up_bytes / 1e6:.1f} MB, received: {summary.down_bytes / 1e6:.1f} MB")
print(f"a device's peak over plain inference: {summary.client_peak_bytes / summary.client_inference_peak_bytes:.2f}")

# %% [markdown]
# One record for each evaluation:

# %%
for record in run.records:
    print(f"step {record.step:3d}  accuracy {record.metric:5.1f} %  loss {record.validation_loss:.3f}")

# %% [markdown]
# The trained model, both parts joined, is a plain `torch.nn.Module`.

# %%
model = run.model()
print(type(model).__name__, sum(parameter.numel() for parameter in model.parameters()), "parameters")
