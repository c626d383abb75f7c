"""An MLP over the whole parameter vector; what was heard shifts its hidden units."""

from __future__ import annotations

import math

import torch
from torch import nn

from synthnb.space import ParameterSpace

SMALL = 0.003  # standard deviation of the first weights of a residual branch
FIRST_ODDS = 1.5  # log odds that an edit keeps a parameter, before anything is learnt


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


class MLP(nn.Module):
    """Residual layers on one stream; it hears the mean of the encoder's tokens.

    Args:
        space: whose vectors it moves.
        sound: width of a token.
        dim, hidden, depth: of the stream, the hidden layers, and how many of them.
    """

    def __init__(self, space: ParameterSpace, sound: int, dim: int, hidden: int, depth: int):
        super().__init__()
        frequencies = math.pi * torch.logspace(-1, 3, 64, base=2.0, device="cpu")
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.inputs, self.sound = nn.Linear(space.width, dim), nn.Linear(sound, dim)
        self.source = nn.Linear(space.width + 1, dim)
        self.time = nn.Sequential(nn.Linear(128, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, hidden, sound) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.outputs, self.odds = nn.Linear(dim, space.width), nn.Linear(dim, space.width)
        for last in (self.outputs, self.odds):  # training begins near the linear guess
            nn.init.normal_(last.weight, std=SMALL)
        nn.init.constant_(self.odds.bias, FIRST_ODDS)

    def prepare(self, tokens: torch.Tensor, source: torch.Tensor, known: torch.Tensor) -> list[torch.Tensor]:
        """What the sound and the source add to the stream, and the sound to every block."""
        sound = tokens.mean(dim=1)
        stream = self.sound(sound) + self.source(torch.cat([source, known], dim=-1))
        return [stream, *(block.sound(sound) for block in self.blocks)]

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, condition: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity and log odds, each like `x`."""
        stream, *shifts = condition
        angle = t[:, None] * self.frequencies
        stream = stream + self.inputs(x) + self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        for block, shift in zip(self.blocks, shifts):
            stream = block(stream, shift)
        stream = self.norm(stream)
        return self.outputs(stream), self.odds(stream)
