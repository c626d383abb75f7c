"""Mel encoder: from a coarse log-mel spectrogram, beside that of a source, to one token that says what was heard."""

from __future__ import annotations

import torch
from torch import nn

STEP = 4  # coarse frames in a step of time: 160 ms
DROPOUT = 0.1  # of what the steps say, against learning clips by heart


class MelEncoder(nn.Module):
    """A convolution over time whose kernel spans all bands, then dense layers over all steps at once.

    Cheap by its shape: nearly all of it is large matrix products. All bands are seen at once, for harmonics lie too
    far apart for small kernels; steps are not averaged, for a clip begins with its onset and time is absolute.

    Args:
        shapes: of `mel`, standardised as `coarse` gives it: `(channels, bands, frames)`.
        dim: width of the token.
        width, narrow: channels of a step of time, before and after it is squeezed.
    """

    needs = ("mel",)

    def __init__(self, shapes: dict[str, tuple[int, ...]], dim: int, width: int = 256, narrow: int = 64):
        super().__init__()
        channels, bands, frames = shapes["mel"]
        self.padding = -frames % STEP
        steps = (frames + self.padding) // STEP
        self.step = nn.Linear(3 * channels * bands * STEP, width)  # target, source, their difference
        self.when = nn.Parameter(torch.zeros(steps, width))
        self.mix, self.squeeze = nn.Linear(width, width), nn.Linear(width, narrow)
        self.drop = nn.Dropout(DROPOUT)
        self.join = nn.Linear(steps * narrow, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(2)
        )

    def forward(
        self, target: dict[str, torch.Tensor], source: dict[str, torch.Tensor], known: torch.Tensor
    ) -> torch.Tensor:
        """One token, `(batch, 1, dim)`."""
        silu, shown = nn.functional.silu, known[..., None, None]
        mel, other = target["mel"], source["mel"]
        x = torch.cat([mel, other * shown, (mel - other) * shown], dim=1)
        x = nn.functional.pad(x, (0, self.padding)).unflatten(3, (-1, STEP))
        x = silu(self.step(x.permute(0, 3, 1, 2, 4).flatten(2)) + self.when)
        x = silu(self.squeeze(x + silu(self.mix(x))))
        x = self.join(self.drop(x.flatten(1)))
        for block in self.blocks:
            x = x + block(x)
        return silu(x)[:, None]
