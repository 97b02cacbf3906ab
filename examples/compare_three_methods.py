# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Three methods on the same work
#
# HO-SFL, first order (SplitLoRA) and a frozen bottom, each with two seeds on the same rows, the same clients and the
# same first weights; the recipe has rates for each method. The frozen bottom is the fence: where it is as good, the
# device's part has nothing to learn. It needs `pip install 'halfback[quickstart]'` and about half a minute.

# %%
import tempfile

import halfback as hb

folder = tempfile.mkdtemp()
comparison = hb.compare(
    "quickstart",
    ["ho_sfl", "split_lora", "frozen_bottom"],
    seeds=2,
    steps=10,
    eval_every=10,
    out=f"{folder}/compare",
    **{"model.pretrain.steps": 20},
)

# %% [markdown]
# One row a method. With two seeds no difference is established: a real comparison takes three or more, and chooses each
# method's rate (`lr=[1e-3, 3e-3]` in its `Variant`).

# %%
for name, row in comparison.rows.items():
    print(f"{name:14s} accuracy {row.final.mean:5.1f} ± {row.final.sd:.1f}")

# %% [markdown]
# The page with the curves, the bytes and the memory:

# %%
print(f"{folder}/compare/compare.html")
