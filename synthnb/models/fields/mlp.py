"""The vector field: velocity of a parameter vector at a time, given what was heard."""

from __future__ import annotations

import math

import torch
from torch import nn

SMALL = 0.003  # standard deviation of the first weights of a residual branch
FIRST_ODDS = 1.5  # log odds that an edit keeps a parameter, before anything is learnt
LAST = 0.02  # of the way to go at least, in divisions by what is left


class Block(nn.Module):
    """A residual layer of an MLP; the sound shifts its hidden units."""

    def __init__(self, dim: int, hidden: int, sound: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.wide, self.back = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.sound = nn.Linear(sound, hidden)
        nn.init.normal_(self.back.weight, std=SMALL)  # it begins nearly as the identity

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """`x (batch, dim)`, `shift (batch, hidden)` from `self.sound`."""
        return x + self.back(nn.functional.silu(self.wide(self.norm(x)) + shift))


class VectorField(nn.Module):
    """The best linear guess of the velocity, an MLP for what is left of it, and what to keep of a source.

    If the columns of `x1` were independent Gaussians with the prior's mean and variance, the velocity at `x` would be
    known: `mean + (t variance - (1 - t)) / total * (x - t mean)`, `total = t² variance + (1 - t)²`, with standard
    deviation `sqrt(variance / total)`. The network learns the rest, in units of that deviation, from an `x` that is
    standardised likewise (the idea of Karras et al. 2022, "EDM", per column and on the straight path).

    An edit leaves most of its source as it is. If it leaves a column, the velocity is `(source - x) / (1 - t)`. The
    network tells the odds of that from what it hears, Bayes' rule from where `x` is; both velocities are mixed so.

    Args:
        mean, variance: float32 `(width,)`, of `x1` under the prior.
        dim, hidden, depth: of the MLP's stream, its hidden layers, and how many of them.
        sound: width of what the encoder says.
    """

    def __init__(
        self, mean: torch.Tensor, variance: torch.Tensor, dim: int, hidden: int, depth: int, sound: int
    ):
        super().__init__()
        width = len(mean)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("variance", variance, persistent=False)
        self.register_buffer("frequencies", math.pi * torch.logspace(-1, 3, 64, base=2.0), persistent=False)
        self.inputs, self.sound = nn.Linear(width, dim), nn.Linear(sound, dim)
        self.source = nn.Linear(width + 1, dim)
        self.time = nn.Sequential(nn.Linear(128, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, hidden, sound) for _ in range(depth))
        self.norm, self.outputs, self.odds = nn.LayerNorm(dim), nn.Linear(dim, width), nn.Linear(dim, width)
        for last in (self.outputs, self.odds):  # training begins near the linear guess
            nn.init.normal_(last.weight, std=SMALL)
        nn.init.constant_(self.odds.bias, FIRST_ODDS)

    def hear(self, summary: torch.Tensor, source: torch.Tensor, known: torch.Tensor) -> list[torch.Tensor]:
        """What the sound adds to the stream and to every block, and the source; once for all times and candidates.

        Args:
            summary: `(batch, sound)`, from the encoder.
            source: `(batch, width)` in [-1, 1], the patch to go on from.
            known: `(batch, 1)`, 1 where there is a source and 0 where there is none.
        """
        stream = self.sound(summary) + self.source(torch.cat([(source - self.mean) * known, known], dim=-1))
        return [source, known, stream, *(block.sound(summary) for block in self.blocks)]

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: list[torch.Tensor]) -> torch.Tensor:
        """`x (batch, width)`, `t (batch,)` in [0, 1), `heard` from `hear`: velocity like `x`."""
        source, known, stream, *shifts = heard
        angle, t = t[:, None] * self.frequencies, t[:, None]
        left = (1 - t).clamp_min(LAST)
        total = t.square() * self.variance + left.square()
        off, gap = x - t * self.mean, x - t * source
        stream = stream + self.inputs(off * total.rsqrt())
        stream = stream + self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        for block, shift in zip(self.blocks, shifts):
            stream = block(stream, shift)
        stream = self.norm(stream)
        linear = self.mean + (t * self.variance - left) / total * off
        changed = linear + (self.variance / total).sqrt() * self.outputs(stream)
        evidence = (off.square() / total - gap.square() / left.square() + total.log()) / 2 - left.log()
        keep = known * torch.sigmoid(self.odds(stream) + evidence.clamp(-30, 30))
        return changed + keep * ((source - x) / left - changed)
