"""Mel encoder: from a log-mel spectrogram to a few tokens, one per stretch of time, and one vector for the whole."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from synthnb.models.vector_field import attend

PATCH = (4, 16)  # bands x frames


class MelEncoder(nn.Module):
    """Patches of 4 bands x 16 frames, convolutions that halve, then one token per time step that sees all frequencies.

    Cheap by its shape: nearly all of it is matrix products on a 32 x 26 grid and smaller. Frequencies are mixed by a
    full linear map, for harmonics lie too far apart for small kernels.

    Args:
        channels: of the input, 1 (mono) or 2.
        widths: channels of the patches and after each halving.
        dim: of the tokens and of the summary.
        bands, frames: of the input.
    """

    def __init__(self, channels: int, widths: list[int], dim: int, bands: int = 128, frames: int = 401):
        super().__init__()
        self.padding = -frames % PATCH[1]
        self.patches = nn.Linear(channels * PATCH[0] * PATCH[1], widths[0])
        pairs = list(itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(before) for before, _ in pairs)
        self.halvings = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.halvings.to(memory_format=torch.channels_last)
        with torch.no_grad():
            high, steps, wide = self._map(torch.zeros(1, channels, bands, frames)).shape[1:]
        self.to_tokens = nn.Sequential(nn.LayerNorm(wide * high), nn.Linear(wide * high, dim))
        self.when = nn.Parameter(torch.randn(steps, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)
        )
        self.summary = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def _map(self, mel: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, bands, frames)` to `(batch, height, steps, width)`."""
        x = nn.functional.pad(mel, (0, self.padding))
        x = x.unflatten(2, (-1, PATCH[0])).unflatten(
            4, (-1, PATCH[1])
        )  # batch, channels, rows, 4, columns, 16
        x = self.patches(x.permute(0, 2, 4, 1, 3, 5).flatten(3))
        for norm, halve in zip(self.norms, self.halvings):  # channels stay last, which suits both
            x = halve(nn.functional.silu(norm(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return nn.functional.silu(x)

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised mel `(batch, channels, bands, frames)`: tokens `(batch, steps, dim)`, summary `(batch, dim)`."""
        x = self._map(mel)
        tokens = self.to_tokens(x.transpose(1, 2).flatten(2)) + self.when
        query, key, value = (
            p.unflatten(-1, (4, -1)).transpose(1, 2) for p in self.qkv(self.norm(tokens)).chunk(3, -1)
        )
        tokens = tokens + self.attended(attend(query, key, value).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(tokens)
        return tokens, self.summary(torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=-1))
