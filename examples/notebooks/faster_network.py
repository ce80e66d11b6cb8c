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
# # From a ticket to a faster network
#
# A network of which nine weights in ten are zero is as slow as before: the zeros are multiplied like any other
# number. What makes a network faster is to drop whole filters, because the layers become smaller. Li et al. (*Pruning
# Filters for Efficient ConvNets*, 2016) train, drop the filters with the smallest weights, and train a little more.
# Here we do both to a small convolutional network, and measure.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import torch

import supermask
from ticket_search import bench, search

os.chdir(tempfile.mkdtemp())  # runs are written here, not beside this notebook
recipe = {"model": "conv2", "optimizer": "adam", "lr": 1e-3, "batch_size": 60, "threads": 1, "epochs": 6}
seconds = 0.5

# %% [markdown]
# ## Two tickets
#
# The first keeps a quarter of the filters of each convolution, and a quarter of the units of each hidden layer; it is
# retrained longer, since fewer filters have more to learn anew. The second keeps one weight in ten, wherever it is.

# %%
filters = search("filters", density=0.25, retrain_epochs=12, **recipe)
filters

# %%
weights = search("one-shot", density=0.1, **recipe)
weights

# %% [markdown]
# ## Remove what was dropped
#
# A dropped filter takes its bias along, and what reads its output. So its channel is exactly zero, and `shrink` can
# remove it: the result is an ordinary, smaller module with the same outputs. A quarter of the *filters* is kept, and
# what they read of dropped ones counts as kept until it is removed: so far fewer parameters are left than a quarter.

# %%
network = filters.ticket.model().eval()
images = torch.randn(8, 1, 8, 8)
small = supermask.shrink(network, filters.ticket.masks, images).model
small

# %%
with torch.no_grad():
    difference = (small(images) - network(images)).abs().max().item()
counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (network, small)]
print(f"{counts[0]:,} parameters before, {counts[1]:,} after; the outputs differ by at most {difference:.1e}")

# %% [markdown]
# ## Measure
#
# `bench` times the variants of a network in turns, so that whatever else the machine does disturbs all alike: the
# dense network, the network with zeros (*masked*), the one without what was dropped (*compacted*), and one with
# sparse layers where these are faster (*sparse*).

# %%
measured = {
    "a quarter of the filters": bench(
        filters.ticket, batch_sizes=(64,), engines=("eager",), threads=1, seconds=seconds, progress=False
    ),
    "a tenth of the weights": bench(
        weights.ticket, batch_sizes=(64,), engines=("eager",), threads=1, seconds=seconds, progress=False
    ),
}
figure, places = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for place, (title, result) in zip(places, measured.items(), strict=True):
    rows = [row for row in result.rows if row.median_ms is not None]
    bars = place.bar([row.variant for row in rows], [row.median_ms / rows[0].median_ms for row in rows])
    place.bar_label(bars, fmt="%.2f")
    place.tick_params(axis="x", labelsize=8)
    place.set_title(f"{title} kept", fontsize=10)
    place.set_ylim(0, 1.3)
places[0].set_ylabel("time (dense network = 1)")
plt.show()

# %% [markdown]
# The network with zeros takes about as long as the dense one. Without the dropped filters it takes a small part of that
# time, though a larger one than of the multiplications: small layers have less to do at once. With one weight in ten,
# wherever it is, there is little or nothing to win. `bench` says so in a sentence, and adds where the machine was too
# busy for its times to be relied on.

# %%
for title, result in measured.items():
    print(f"{title}: {result.best.sentence}\n")

# %% [markdown]
# ## What it costs
#
# Fewer filters are not free, and the comparison is with the dense network of the same run, which is its level 0.

# %%
for run, result in zip((filters, weights), measured.values(), strict=True):
    dense, last = run.levels[0], run.levels[-1]
    print(
        f"{run.config.method}: {last['test_accuracy']:.1f} % of the test split, dense {dense['test_accuracy']:.1f} %; "
        f"{result.sizes.compacted_macs or result.sizes.macs:,} of {result.sizes.macs:,} multiplications"
    )
