# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A network hidden in random weights
#
# Ramanujan et al. (*What's Hidden in a Randomly Weighted Neural Network?*, 2020) found that a network whose weights
# were drawn at random, and are never trained, contains a subnetwork that classifies well. Their algorithm,
# edge-popup, gives each weight a score, keeps the weights with the highest scores, and trains the scores. Here it
# searches a small fully connected network for a subnetwork that reads handwritten digits, and we look at what it has
# found.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from ticket_search import compare, controls, search

os.chdir(tempfile.mkdtemp())  # runs are written here, not beside this notebook
epochs = 12

# %% [markdown]
# ## Search, and train an ordinary network to compare with
#
# `search` returns a run. The method `dense` is the ordinary training of every weight. These networks are small, so
# that one thread is the fastest.

# %%
dense = search("dense", epochs=epochs, threads=1)
hidden = search("edge-popup", density=0.5, epochs=epochs, threads=1)
hidden


# %% [markdown]
# Every number that was logged is in `run.metrics`. One epoch of edge-popup has fewer steps, because its default
# batches are larger; so we draw both over the epochs.


# %%
def validation(run):
    """The accuracy on the validation split after each epoch."""
    rows = [row for row in run.metrics if "accuracy/validation" in row]
    return {row["step"] / run.summary["cost"]["steps"] * epochs: row["accuracy/validation"] for row in rows}


plt.figure(figsize=(6, 3))
for run, label in ((dense, "dense: every weight is trained"), (hidden, "edge-popup: no weight is trained")):
    curve = validation(run)
    plt.plot(list(curve), list(curve.values()), "o-", label=label)
plt.xlabel("epochs")
plt.ylabel("validation accuracy (%)")
plt.legend()
plt.show()

# %% [markdown]
# ## Nothing was trained
#
# All weights of a layer have the same magnitude, and their signs are those that the seed has drawn. So the ticket's
# file holds no weight at all, only a seed and one bit for each weight: kept or dropped.

# %%
network = hidden.ticket.model()
for name in hidden.ticket.masks:
    values, counts = np.unique(network.get_parameter(name).detach().numpy(), return_counts=True)
    print(name, {f"{value:+.4f}": int(count) for value, count in zip(values, counts, strict=True)})
weights, size = hidden.summary["weights"], (hidden.path / "ticket.safetensors").stat().st_size
print(f"{weights:,} weights would take {4 * weights:,} bytes; the ticket's file has {size:,}")

# %% [markdown]
# ## What the mask looks like
#
# Each of the 300 units of the first layer sees the 8 x 8 pixels of the image. On the left is the mean of all digits.
# Next to it is how many units keep their weight of each pixel, and then the masks of eight units, white where a
# weight is kept.

# %%
mask = hidden.ticket.masks["fc1.weight"].numpy().reshape(-1, 8, 8)
figure, axes = plt.subplots(2, 5, figsize=(9, 3.8))
axes[0, 0].imshow(load_digits().images.mean(0), cmap="gray")
axes[0, 0].set_title("mean digit", fontsize=9)
axes[0, 1].imshow(mask.sum(0), cmap="viridis")
axes[0, 1].set_title(f"{mask.sum(0).min()} to {mask.sum(0).max()} units", fontsize=9)
for unit, place in enumerate(axes.flat[2:]):
    place.imshow(mask[unit], cmap="gray")
    place.set_title(f"unit {unit}", fontsize=9)
for place in axes.flat:
    place.axis("off")
plt.show()

# %% [markdown]
# To the eye the masks are noise, and no pixel is preferred: what counts is which weights stay together, with their
# signs.
#
# ## Is it the mask, or would any mask do?
#
# A control differs from the ticket in one thing. The ticket is evaluated once more with other random weights under
# its mask (`reinit`), with its mask shuffled within each layer (`shuffle`), and with a random mask of the same
# density (`random`). There are ten digits, so that guessing is right in one case of ten.

# %%
print(f"the ticket: {hidden.summary['test_accuracy']:.1f} % of the test split")
for row in controls(hidden):
    print(f"{row['control']}: {row['test_accuracy']:.1f} %")

# %% [markdown]
# All of them guess. The mask fits these weights at these places: it is what has been learned.
#
# ## How much should be kept?
#
# With every weight kept there is nothing to choose, and the network is random. With very few kept there are few
# networks to choose from. In between there are the most subnetworks: of $n$ weights one can keep $k$ in
# $\binom{n}{k}$ ways.

# %%
densities = (0.05, 0.2, 0.5, 0.8, 0.95)
found = [
    hidden if density == hidden.config.density
    else search("edge-popup", density=density, epochs=epochs, threads=1, progress=False)
    for density in densities
]  # fmt: skip
plt.figure(figsize=(6, 3))
plt.plot(densities, [run.summary["test_accuracy"] for run in found], "o-", label="edge-popup")
plt.axhline(dense.summary["test_accuracy"], color="gray", linestyle="--", label="dense, trained")
plt.xlabel("fraction of the weights kept")
plt.ylabel("test accuracy (%)")
plt.legend()
plt.show()

# %% [markdown]
# `compare` puts the runs side by side, groups those that differ in their seeds only, and says what can be claimed. Of
# one seed nothing is: `ticket search --method edge-popup --seeds 0-4` makes five.

# %%
compare([dense, *found])
