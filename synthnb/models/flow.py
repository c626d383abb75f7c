"""Conditional flow matching over synth parameters: the loss, the sampler, guidance.

A patch and its note, as quantiles in [-1, 1] with one-hot blocks of -1 and 1, are `x1`; noise is `x0`; the model
learns the velocity `x1 - x0` on the straight line between them (Lipman et al. 2023; Liu et al. 2023), given the
sound. Following it from noise to t = 1 draws from the patches that may have made the sound. It may also be given a
source: a patch whose sound is known. Then it draws from the edits of that patch which may have made the sound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import lightning
import numpy as np
import torch
from torch import nn

from synthnb.data.feed import Batch
from synthnb.data.library import Library
from synthnb.features import coarse, log_mel
from synthnb.models.encoders.mel import MelEncoder
from synthnb.models.fields.mlp import VectorField
from synthnb.sound import SAMPLE_RATE
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
        source_dropout: share of clips whose source is hidden, for sampling without one.
        learning_rate, warmup, steps, weight_decay: AdamW with linear warm-up, then cosine to 1 %.
    """

    channels: int = 1
    sound: int = 512
    dim: int = 768
    hidden: int = 1024
    depth: int = 3
    draws: int = 4
    condition_dropout: float = 0.1
    source_dropout: float = 0.25
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

    Attributes:
        library: of the clips it was trained on, to find sources in; None before it is trained.
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
        _, channels, bands, frames = silence.shape
        self.encoder = MelEncoder(3 * channels, bands, frames, s.sound)
        centre, variance = (torch.from_numpy(part) for part in space.moments())
        self.field = VectorField(
            2 * centre - 1, (4 * variance).clamp_min(1e-3), s.dim, s.hidden, s.depth, s.sound
        )
        self.unheard = nn.Parameter(torch.randn(s.sound) * 0.02)  # stands for a hidden sound
        weights = torch.ones(space.width) if weights is None else weights
        self.register_buffer("weights", weights, persistent=False)
        self.library: Library | None = None

    def hear(self, mel: torch.Tensor, source_mel: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of a sound beside that of its source, `(batch, sound)`.

        Args:
            mel, source_mel: coarse, in dB, `(batch, channels, bands, frames)`.
            known: `(batch, 1)`, 1 where there is a source and 0 where there is none.
        """
        target, other = (mel - self.mean) / self.std, (source_mel - self.mean) / self.std
        shown = known[..., None, None]
        return self.encoder(torch.cat([target, other * shown, (target - other) * shown], dim=1))

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean squared error of the velocity, `settings.draws` logit-normal times and noises for every clip."""
        s, device, rows = self.settings, batch["mel"].device, len(batch["mel"])

        def chance() -> torch.Tensor:
            return torch.rand(rows, 1, device=device, generator=generator)

        known = batch["known"] * (chance() >= s.source_dropout)
        source = 2 * batch["source"] - 1
        heard = self.hear(batch["mel"], batch["source_mel"], known)
        heard = torch.where(chance() < s.condition_dropout, self.unheard.to(heard.dtype), heard)
        heard = self.field.hear(heard, source, known)
        x1 = (2 * batch["quantiles"] - 1).repeat_interleave(s.draws, 0)
        x0 = torch.randn(x1.shape, device=device, generator=generator)
        t = torch.sigmoid(torch.randn(len(x1), device=device, generator=generator))
        x = torch.lerp(x0, x1, t[:, None])
        velocity = self.field(x, t, [part.repeat_interleave(s.draws, 0) for part in heard])
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
        sources: tuple[torch.Tensor, np.ndarray] | None = None,
        steps: int = 20,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.15, 0.95),
        temperature: float = 0.8,
        midpoint: bool = False,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw candidates for one sound: `count` from noise alone, or `count` edits of each source.

        Args:
            mel: dB, `(channels, bands, frames)`, from `log_mel`.
            sources: patches to edit: their spectrograms like `mel`, `(sources, channels, bands, frames)`, and vectors
                `(sources, width)`.
            steps: equal steps from t = 0 to 1.
            guidance: scale; 1 is the plain conditional flow, more leans harder on the sound (Ho and Salimans 2022).
            interval: times between which guidance acts (Kynkäänniemi et al. 2024).
            temperature: of the noise it starts from; 1 is the model's own, less stays nearer to what is most likely.
            midpoint: two evaluations a step instead of Euler's one.
            seed: of the noise.

        Returns:
            Vectors float32 `(count, width)` or `(sources * count, width)` in [0, 1], for `space.decode`; the edits of
            the first source come first.
        """
        device, target = self.device, coarse(mel[None].to(self.device))
        if sources is None:
            source_mel, source = target, torch.zeros(1, self.space.width, device=device)
        else:
            source_mel = coarse(sources[0].to(device))
            source = torch.from_numpy(2 * self.space.to_quantiles(sources[1]) - 1).to(device)
        known = torch.full((len(source), 1), float(sources is not None), device=device)
        summary = self.hear(target.expand(len(source), -1, -1, -1), source_mel, known)
        heard, unheard = (
            [part.repeat_interleave(count, 0) for part in self.field.hear(s, source, known)]
            for s in (summary, self.unheard.expand_as(summary))
        )
        both = [torch.cat(pair) for pair in zip(heard, unheard)]
        rows, generator = len(source) * count, torch.Generator().manual_seed(seed)
        x = temperature * torch.randn(rows, self.space.width, generator=generator).to(device)

        def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
            if guidance == 1.0 or not interval[0] <= t <= interval[1]:
                return self.field(x, torch.full((rows,), t, device=device), heard)
            with_sound, without = self.field(
                x.repeat(2, 1), torch.full((2 * rows,), t, device=device), both
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
