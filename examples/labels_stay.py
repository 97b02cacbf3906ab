# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Labels that are not sent
#
# In the U-shape the device has the first blocks and the head, and the server what is between them. The loss is taken on
# the device, so labels are not sent. That is no privacy by itself: the gradients that are sent in their place tell the
# labels to a server that listens (see "What stays private" in the documentation). It needs
# `pip install 'halfback[quickstart]'` and a few seconds.

# %%
import halfback as hb

run = hb.train(
    {
        "algorithm": {"name": "ho_sfl"},
        "task": {"name": "digits"},
        "model": {"name": "resnet8", "cut": 1, "head": 0},
        "bottom": {"train": "full", "optimizer": "sgd", "normalize": True, "lr": 3e-3},
        "top": {"train": "full", "lr": 1e-2},
    },
    steps=30,
    eval_every=15,
    threads=1,
)
print(f"accuracy {run.summary.metric.initial:.1f} % before, {run.summary.metric.final:.1f} % after")

# %% [markdown]
# What was sent, by the kind of message and its field. Labels are not among them.

# %%
for way, kinds in run.summary.bytes_by_kind.items():
    for kind, fields in kinds.items():
        for field, size in fields.items():
            print(f"{way:5s} {kind:20s} {field:20s} {size:12,d} bytes")
assert "labels" not in str(run.summary.bytes_by_kind)
