"""The vector field: velocity of a parameter vector at a time, given what was heard."""

from __future__ import annotations

import math

import torch
from torch import nn

SMALL = 0.003  # standard deviation of the first weights of a residual branch


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
    """The best linear guess of the velocity, and an MLP for what is left of it.

    If the columns of `x1` were independent Gaussians with the prior's mean and variance, the velocity at `x` would be
    known: `mean + (t variance - (1 - t)) / total * (x - t mean)`, `total = t² variance + (1 - t)²`, with standard
    deviation `sqrt(variance / total)`. The network learns the rest, in units of that deviation, from an `x` that is
    standardised likewise (the idea of Karras et al. 2022, "EDM", per column and on the straight path).

    Args:
        mean, variance: float32 `(width,)`, of `x1` under the prior.
        dim, hidden, depth: of the MLP's stream, its hidden layers, and how many of them.
        sound: width of what the encoder says.
    """

    def __init__(
        self, mean: torch.Tensor, variance: torch.Tensor, dim: int, hidden: int, depth: int, sound: int
    ):
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("variance", variance, persistent=False)
        self.register_buffer("frequencies", math.pi * torch.logspace(-1, 3, 64, base=2.0), persistent=False)
        self.inputs, self.sound = nn.Linear(len(mean), dim), nn.Linear(sound, dim)
        self.time = nn.Sequential(nn.Linear(128, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, hidden, sound) for _ in range(depth))
        self.norm, self.outputs = nn.LayerNorm(dim), nn.Linear(dim, len(mean))
        nn.init.normal_(self.outputs.weight, std=SMALL)  # training begins near the linear guess

    def hear(self, summary: torch.Tensor) -> list[torch.Tensor]:
        """What the sound `(batch, sound)` adds to the stream and to every block; once for all times and candidates."""
        return [self.sound(summary), *(block.sound(summary) for block in self.blocks)]

    def forward(self, x: torch.Tensor, t: torch.Tensor, heard: list[torch.Tensor]) -> torch.Tensor:
        """`x (batch, width)`, `t (batch,)` in [0, 1], `heard` from `hear`: velocity like `x`."""
        angle, t = t[:, None] * self.frequencies, t[:, None]
        total = t.square() * self.variance + (1 - t).square()
        off = x - t * self.mean
        stream = self.inputs(off * total.rsqrt()) + self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        stream = stream + heard[0]
        for block, shift in zip(self.blocks, heard[1:]):
            stream = block(stream, shift)
        linear = self.mean + (t * self.variance - (1 - t)) / total * off
        return linear + (self.variance / total).sqrt() * self.outputs(self.norm(stream))
