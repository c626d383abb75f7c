"""Conditional flow matching over synth parameters: the loss, the sampler, guidance.

A patch and its note, as quantiles in [-1, 1] with one-hot blocks of -1 and 1, are `x1`; noise is `x0`; the model
learns the velocity `x1 - x0` on the straight line between them (Lipman et al. 2023; Liu et al. 2023), given the
sound. Following it from noise to t = 1 draws from the patches that may have made the sound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import lightning
import numpy as np
import torch
from torch import nn

from synthnb.data.datamodule import Batch, coarse
from synthnb.features import SAMPLE_RATE, log_mel
from synthnb.models.encoders import MelEncoder
from synthnb.models.vector_field import VectorField
from synthnb.space import ParameterSpace


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the model and how it is trained.

    Args:
        channels: of the spectrogram, 1 or 2.
        sound: width of what the encoder says.
        dim, hidden, depth: of the vector field's MLP: its stream, its hidden layers, how many.
        draws: times and noises per encoded clip in a training step.
        condition_dropout: share of clips whose sound is hidden, for guidance.
        learning_rate, warmup, steps, weight_decay: AdamW with linear warm-up, then cosine to 1 %.
    """

    channels: int = 1
    sound: int = 512
    dim: int = 768
    hidden: int = 1024
    depth: int = 3
    draws: int = 4
    condition_dropout: float = 0.1
    learning_rate: float = 3e-3
    warmup: int = 200
    steps: int = 10_000
    weight_decay: float = 0.02


class FlowModel(lightning.LightningModule):
    """Encoder, vector field, loss and sampler.

    Args:
        space: whose patches it estimates.
        settings: see `ModelSettings`.
        mean, std: float32 `(channels, bands, 1)`, of the training clips' coarse spectrograms in dB.
        weights: float32 `(width,)`, of the columns in the loss; a finished model needs none.
    """

    def __init__(
        self,
        space: ParameterSpace,
        settings: ModelSettings,
        mean: torch.Tensor,
        std: torch.Tensor,
        weights: torch.Tensor | None = None,
    ):
        super().__init__()
        self.space, self.settings = space, settings
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        s = settings
        silence = coarse(log_mel(torch.zeros(1, s.channels, round(space.seconds * SAMPLE_RATE))))
        self.encoder = MelEncoder(*silence.shape[1:], s.sound)
        centre, variance = (torch.from_numpy(part) for part in space.moments())
        self.field = VectorField(
            2 * centre - 1, (4 * variance).clamp_min(1e-3), s.dim, s.hidden, s.depth, s.sound
        )
        self.unheard = nn.Parameter(torch.randn(s.sound) * 0.02)  # stands for a hidden sound
        weights = torch.ones(space.width) if weights is None else weights
        self.register_buffer("weights", weights, persistent=False)

    def hear(self, mel: torch.Tensor) -> torch.Tensor:
        """Coarse mel in dB `(batch, channels, bands, frames)` to what the field is told, `(batch, sound)`."""
        return self.encoder((mel - self.mean) / self.std)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean squared error of the velocity, `settings.draws` logit-normal times and noises for every clip."""
        heard, draws = self.hear(batch["mel"]), self.settings.draws
        device, rows = heard.device, len(heard) * draws
        hidden = torch.rand(len(heard), device=device, generator=generator) < self.settings.condition_dropout
        heard = self.field.hear(torch.where(hidden[:, None], self.unheard.to(heard.dtype), heard))
        x1 = (2 * batch["quantiles"] - 1).repeat_interleave(draws, 0)
        x0 = torch.randn(x1.shape, device=device, generator=generator)
        t = torch.sigmoid(torch.randn(rows, device=device, generator=generator))
        x = torch.lerp(x0, x1, t[:, None])
        velocity = self.field(x, t, [part.repeat_interleave(draws, 0) for part in heard])
        return ((velocity.float() - (x1 - x0)).square() * self.weights).mean()

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator(self.device).manual_seed(index)  # the same times and noises every time
        self.log("val_loss", self.loss(batch, generator), batch_size=len(batch["mel"]))

    def on_before_optimizer_step(self, _) -> None:
        # Here, for Lightning does not clip for a fused optimizer.
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def configure_optimizers(self):
        s = self.settings
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=s.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
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
        guidance: float = 3.0,
        interval: tuple[float, float] = (0.15, 0.95),
        temperature: float = 0.6,
        midpoint: bool = False,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw `count` candidates for one sound, which is encoded once.

        Args:
            mel: dB, `(channels, bands, frames)`, from `log_mel`.
            steps: equal steps from t = 0 to 1.
            guidance: scale; 1 is the plain conditional flow, more leans harder on the sound (Ho and Salimans 2022).
            interval: times between which guidance acts (Kynkäänniemi et al. 2024).
            temperature: of the noise it starts from; 1 is the model's own, less stays nearer to what is most likely.
            midpoint: two evaluations a step instead of Euler's one.
            seed: of the noise.

        Returns:
            Vectors float32 `(count, width)` in [0, 1], for `space.decode`.
        """
        generator = torch.Generator().manual_seed(seed)
        x = temperature * torch.randn(count, self.space.width, generator=generator).to(self.device)
        summary = self.hear(coarse(mel[None].to(self.device)))
        heard = [part.expand(count, -1) for part in self.field.hear(summary)]
        unheard = [part.expand(count, -1) for part in self.field.hear(self.unheard[None])]
        both = [torch.cat(pair) for pair in zip(heard, unheard)]

        def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
            if guidance == 1.0 or not interval[0] <= t <= interval[1]:
                return self.field(x, torch.full((count,), t, device=x.device), heard)
            with_sound, without = self.field(
                x.repeat(2, 1), torch.full((2 * count,), t, device=x.device), both
            ).chunk(2)
            return without + guidance * (with_sound - without)

        for step in range(steps):
            t, size = step / steps, 1 / steps
            v = velocity(x, t)
            if midpoint:
                v = velocity(x + v * size / 2, t + size / 2)
            x = x + v * size
        return self.space.from_quantiles(((x + 1) / 2).clamp(0, 1).cpu().numpy())

    def description(self) -> dict:
        """What is needed, beside the weights, to build this model again."""
        return {"space": self.space.text, "settings": asdict(self.settings)}
