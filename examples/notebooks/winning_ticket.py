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
# # Is it a winning ticket?
#
# The lottery ticket hypothesis (Frankle & Carbin, 2018) says that a dense network contains a sparse one which,
# trained alone *from the same initial weights*, becomes as accurate. Iterative magnitude pruning finds candidates:
# train, drop the smallest weights, put the others back to their initial values, and train again. Whether a candidate
# is a ticket is another question. It must match the dense network, and it must be better than networks that only look
# like it. Here we ask it of a small network on handwritten digits, with five seeds.

# %%
import os
import tempfile

import matplotlib.pyplot as plt

from ticket_search import compare, controls, search

os.chdir(tempfile.mkdtemp())  # runs are written here, not beside this notebook
epochs, seeds = 8, 5

# %% [markdown]
# ## Train, prune, rewind, repeat
#
# Each run trains the dense network first, which is level 0, and then three levels that keep 50, 25 and 10 % of its
# weights. The seed decides the initial weights and the order of the data. The last run is shown below: its densities
# level by level, what they cost, and how much of each layer the last ticket keeps.

# %%
runs = [
    search("imp", levels=(0.5, 0.25, 0.1), density=0.1, epochs=epochs, seed=seed, threads=1, progress=seed == 0)
    for seed in range(seeds)
]
runs[-1]

# %% [markdown]
# ## Controls
#
# A control is trained as the ticket was and differs from it in one thing. We make those of the last level.
#
# * `reinit`: the same mask, and fresh initial weights. If it does as well, the initialization did not matter.
# * `shuffle`: the same weights kept in each layer, but at random places. If it does as well, only the number of
#   weights in each layer mattered.
# * `random`: a random mask with as many weights. If it does as well, pruning has found nothing.

# %%
for run in runs:
    controls(run, ["reinit", "shuffle", "random"], progress=False)

# %% [markdown]
# ## What was found
#
# `compare` pairs the runs by seed, and its answers are careful: a level *matches* if, with 95 % confidence, it is at
# most half a percentage point worse than the dense network of the same seed. Levels are tested from the densest
# downward, and the first that fails ends it.

# %%
comparison = compare(runs)
comparison

# %%
(group,) = comparison.groups
plt.figure(figsize=(6, 3.5))
lines = {"ticket": group.levels}
for kind in ("reinit", "shuffle", "random"):
    lines[kind] = [row for row in group.controls if row.control == kind]
for place, (label, rows) in enumerate(lines.items()):
    style = "o-" if label == "ticket" else "s"
    density = [100 * row.density * 1.04**place for row in rows]  # beside one another
    below = [row.mean - row.interval[0] for row in rows]
    above = [row.interval[1] - row.mean for row in rows]
    plt.errorbar(density, [row.mean for row in rows], yerr=[below, above], fmt=style, capsize=3, label=label)
plt.axhline(group.levels[0].mean, color="gray", linewidth=1, label="dense")
plt.xscale("log")
plt.gca().invert_xaxis()
plt.xticks([100, 50, 25, 10], ["100", "50", "25", "10"])
plt.xlabel("weights kept (%)")
plt.ylabel(f"test accuracy (%), mean of {group.n} seeds")
plt.legend()
plt.show()

# %% [markdown]
# The verdict has one answer for each question, with the reason. *Undecided* is an answer too: it says how many more
# seeds would probably decide. First whether each level matches the dense network, then all questions, each with the
# density that it is asked at.

# %%
for level in group.levels[1:]:
    print(f"{100 * level.density:.0f} % of the weights: {level.matching.in_words()} ({level.matching.because})")

# %%
for answer in group.verdict.answers.values():
    print(f"{answer.asked} {answer.in_words()}\n    {answer.because}")

# %% [markdown]
# So the last ticket is better than all its controls: which weights are kept matters, and so do their initial values.
# But it does not match the dense network, so it is not a winning ticket. The level at 50 % may be one: `controls(run,
# levels=[1])` makes its controls.
#
# All numbers are there as a pandas data frame, one row for each level and each control.

# %%
columns = ["control", "density", "n", "mean", "low", "high", "difference", "difference_low", "difference_high"]
comparison.frame()[columns].round(2)
