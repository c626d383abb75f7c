"""Conditional flow matching over synth parameters: the loss, the sampler, guidance.

A patch and its note, as quantiles in [-1, 1] with one-hot blocks of -1 and 1, are `x1`; noise is `x0`; the model
learns the velocity `x1 - x0` on the straight line between them (Lipman et al. 2023; Liu et al. 2023), given the
sound. Following it from noise to t = 1 draws from the patches that may have made the sound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import lightning
import numpy as np
import torch
from torch import nn

from synthnb.data.datamodule import Batch
from synthnb.models.encoders import MelEncoder
from synthnb.models.vector_field import VectorField
from synthnb.space import ParameterSpace

CATEGORICAL_WEIGHT = 3.0  # of a whole one-hot block in the loss, where a scalar parameter has 1


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the model and how it is trained.

    Args:
        channels: of the spectrogram, 1 or 2.
        widths: channels of the encoder's convolutions.
        dim, depth, heads: of the vector field's transformer.
        draws: times and noises per encoded clip in a training step; they cost little beside the encoder.
        condition_dropout: share of clips whose sound is hidden, for guidance.
        learning_rate, warmup, steps, weight_decay: AdamW with linear warm-up, then cosine to 1 %.
    """

    channels: int = 1
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    dim: int = 256
    depth: int = 3
    heads: int = 4
    draws: int = 2
    condition_dropout: float = 0.1
    learning_rate: float = 8e-4
    warmup: int = 300
    steps: int = 10_000
    weight_decay: float = 0.01


class FlowModel(lightning.LightningModule):
    """Encoder, vector field, loss and sampler.

    Args:
        space: whose patches it estimates.
        settings: see `ModelSettings`.
        mean, std: float32 `(channels, bands, 1)`, of the training clips' spectrograms in dB.
    """

    def __init__(self, space: ParameterSpace, settings: ModelSettings, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.space, self.settings = space, settings
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        modules = [columns.tolist() for columns in space.modules.values()]
        frames = 1 + round(space.seconds * 44_100) // 441
        self.encoder = MelEncoder(settings.channels, settings.widths, settings.dim, mean.shape[1], frames)
        self.field = VectorField(modules, settings.dim, settings.depth, settings.heads)
        self.unheard = nn.Parameter(torch.randn(settings.dim) * 0.02)  # stands for a hidden sound
        weights = torch.ones(space.width)
        for p in space:
            if p.kind == "categorical":
                weights[space.columns[p.name]] = CATEGORICAL_WEIGHT / p.width
        self.register_buffer("weights", weights * space.width / weights.sum(), persistent=False)

    def hear(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mel in dB `(batch, channels, bands, frames)` to tokens `(batch, steps, dim)` and summary `(batch, dim)`."""
        return self.encoder((mel - self.mean) / self.std)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean squared error of the velocity, `settings.draws` logit-normal times and noises for every clip."""
        tokens, summary = self.hear(batch["mel"])
        draws, device = self.settings.draws, tokens.device
        rows = len(tokens) * draws
        hidden = torch.rand(len(tokens), device=device, generator=generator) < self.settings.condition_dropout
        tokens = torch.where(hidden[:, None, None], self.unheard.to(tokens.dtype), tokens)
        summary = torch.where(hidden[:, None], self.unheard.to(summary.dtype), summary)
        heard = [
            (k.repeat_interleave(draws, 0), v.repeat_interleave(draws, 0)) for k, v in self.field.hear(tokens)
        ]
        x1 = (2 * batch["quantiles"] - 1).repeat_interleave(draws, 0)
        x0 = torch.randn(x1.shape, device=device, generator=generator)
        t = torch.sigmoid(torch.randn(rows, device=device, generator=generator))
        x = torch.lerp(x0, x1, t[:, None])
        velocity = self.field(x, t, heard, summary.repeat_interleave(draws, 0))
        return ((velocity.float() - (x1 - x0)).square() * self.weights).mean()

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator(self.device).manual_seed(index)  # the same times and noises every time
        self.log("val_loss", self.loss(batch, generator), batch_size=len(batch["mel"]))

    def configure_optimizers(self):
        s = self.settings
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=s.learning_rate,
            betas=(0.9, 0.98),
        )

        def factor(step: int) -> float:
            if step < s.warmup:
                return (step + 1) / s.warmup
            done = min(1.0, (step - s.warmup) / max(1, s.steps - s.warmup))
            return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def sample(
        self,
        mel: torch.Tensor,
        count: int,
        steps: int = 20,
        guidance: float = 1.5,
        interval: tuple[float, float] = (0.15, 0.95),
        midpoint: bool = False,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw `count` candidates for one sound, which is encoded once.

        Args:
            mel: dB, `(channels, bands, frames)`, from `log_mel`.
            steps: equal steps from t = 0 to 1.
            guidance: scale; 1 is the plain conditional flow, more leans harder on the sound (Ho and Salimans 2022).
            interval: times between which guidance acts (Kynkäänniemi et al. 2024).
            midpoint: two evaluations a step instead of Euler's one.
            seed: of the noise.

        Returns:
            Vectors float32 `(count, width)` in [0, 1], for `space.decode`.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, self.space.width, generator=generator).to(self.device)
        tokens, summary = self.hear(mel[None].to(self.device))
        with_sound = self._expand(tokens, summary, count)
        without = self._expand(self.unheard.expand_as(tokens), self.unheard.expand_as(summary), count)
        both = (
            [tuple(torch.cat(pair) for pair in zip(a, b)) for a, b in zip(with_sound[0], without[0])],
            torch.cat([with_sound[1], without[1]]),
        )

        def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
            if guidance == 1.0 or not interval[0] <= t <= interval[1]:
                return self.field(x, torch.full((count,), t, device=x.device), *with_sound)
            heard, blind = self.field(
                x.repeat(2, 1), torch.full((2 * count,), t, device=x.device), *both
            ).chunk(2)
            return blind + guidance * (heard - blind)

        for step in range(steps):
            t, size = step / steps, 1 / steps
            v = velocity(x, t)
            if midpoint:
                v = velocity(x + v * size / 2, t + size / 2)
            x = x + v * size
        return self.space.from_quantiles(((x + 1) / 2).clamp(0, 1).cpu().numpy())

    def _expand(self, tokens: torch.Tensor, summary: torch.Tensor, count: int):
        heard = [
            (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in self.field.hear(tokens)
        ]
        return heard, summary.expand(count, -1)

    def description(self) -> dict:
        """What is needed, beside the weights, to build this model again."""
        return {"space": self.space.text, "settings": asdict(self.settings)}
