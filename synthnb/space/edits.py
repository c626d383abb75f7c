"""Edits: a patch with some of its parameters changed, as a sound designer goes on from one.

What all parameters together do to a sound is hard to learn; what a few of them change in a sound that is known is
much less so. Datasets can hold edits of their clips for that, and a model that learnt from them goes on from patches
whose sound it knows.
"""

from __future__ import annotations

import itertools

import numpy as np

from synthnb.space import Note, Parameter, ParameterSpace, Patch

NUDGE = 0.15  # standard deviation of a small change, in quantiles
SMALLEST_SHARE = 0.1  # of a module's parameters that change


def edit(space: ParameterSpace, patch: Patch, note: Note, rng: np.random.Generator) -> tuple[Patch, Note]:
    """Change a few things in one module, or much everywhere, or something in between.

    The number of modules (the note is one of them) is log-uniform, and so is the share of each one's parameters that
    change, at least one. They are all drawn from the prior again, or, in every second edit, all nudged; a category is
    always drawn again. By chance the result may be what it was.
    """
    drawn, drawn_note = space.sample(rng)
    drawn |= drawn_note._asdict()
    edited = patch | note._asdict()
    modules: dict[str, list[Parameter]] = {}
    for p in space:
        modules.setdefault(p.module, []).append(p)
    count = round(np.exp(rng.uniform(0, np.log(len(modules)))))
    share = np.exp(rng.uniform(np.log(SMALLEST_SHARE), 0))
    nudged = rng.random() < 0.5
    for name in rng.choice(list(modules), count, replace=False).tolist():
        parameters = modules[name]
        chosen = rng.random(len(parameters)) < share
        chosen[rng.integers(len(parameters))] = True
        for p in itertools.compress(parameters, chosen):
            if nudged and p.kind != "categorical":
                quantile = p.to_quantile(p.to_unit(edited[p.name])) + NUDGE * rng.standard_normal()
                edited[p.name] = p.from_unit(p.from_quantile(np.clip(quantile, 0, 1)))
            else:
                edited[p.name] = drawn[p.name]
    return {name: edited[name] for name in patch}, space.note(edited)
