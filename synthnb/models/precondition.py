"""What is known about the velocity before anything is learnt: a linear guess, and that an edit keeps most columns."""

from __future__ import annotations

import torch
from torch import nn

from synthnb.space import ParameterSpace

LAST = 0.02  # of the way to go at least, in divisions by what is left


class Precondition(nn.Module):
    """Wraps any field: the best linear guess of the velocity, what the field adds to it, what is kept of a source.

    If the columns of `x1` were independent Gaussians with the prior's mean and variance, the velocity at `x` would be
    known: `mean + (t variance - (1 - t)) / total * (x - t mean)`, `total = t² variance + (1 - t)²`, with standard
    deviation `sqrt(variance / total)`. The field learns the rest, in units of that deviation, from an `x` that is
    standardised likewise (the idea of Karras et al. 2022, "EDM", per column and on the straight path).

    An edit leaves most of its source as it is. If it leaves a column, the velocity is `(source - x) / (1 - t)`. The
    field tells the odds of that from what it hears, Bayes' rule from where `x` is; both velocities are mixed so.

    It has no weights; the field is passed to it, so that its weights have the same names with and without.

    Args:
        space: whose prior gives mean and variance of every column, in [-1, 1].
    """

    def __init__(self, space: ParameterSpace):
        super().__init__()
        mean, variance = (torch.from_numpy(part) for part in space.moments())
        self.register_buffer("mean", 2 * mean - 1, persistent=False)
        self.register_buffer("variance", (4 * variance).clamp_min(1e-3), persistent=False)

    def prepare(
        self, field: nn.Module, tokens: torch.Tensor, source: torch.Tensor, known: torch.Tensor
    ) -> list[torch.Tensor]:
        """The condition of `forward`; once for all times and candidates.

        Args:
            tokens: `(batch, tokens, dim)`, from the encoder.
            source: `(batch, width)` in [-1, 1], the patch to go on from.
            known: `(batch, 1)`, 1 where there is a source and 0 where there is none.
        """
        return [source, known, *field.prepare(tokens, (source - self.mean) * known, known)]

    def forward(
        self, field: nn.Module, x: torch.Tensor, t: torch.Tensor, condition: list[torch.Tensor]
    ) -> torch.Tensor:
        """`x (batch, width)`, `t (batch,)` in [0, 1), condition from `prepare`: velocity like `x`."""
        source, known, *heard = condition
        time, t = t, t[:, None]
        left = (1 - t).clamp_min(LAST)
        total = t.square() * self.variance + left.square()
        off, gap = x - t * self.mean, x - t * source
        rest, odds = field(off * total.rsqrt(), time, heard)
        linear = self.mean + (t * self.variance - left) / total * off
        changed = linear + (self.variance / total).sqrt() * rest
        evidence = (off.square() / total - gap.square() / left.square() + total.log()) / 2 - left.log()
        keep = known * torch.sigmoid(odds + evidence.clamp(-30, 30))
        return changed + keep * ((source - x) / left - changed)
