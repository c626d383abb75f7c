"""Conditional flow matching over synth parameters: the path, the loss, the sampler, guidance.

A patch and its note, as quantiles in [-1, 1] with one-hot blocks of -1 and 1, are `x1`; noise is `x0`; the model
learns the velocity `x1 - x0` on the straight line between them (Lipman et al. 2023; Liu et al. 2023), given the
sound. Following it from noise to t = 1 draws from the patches that may have made the sound. It may also be given a
source: a patch whose sound is known. Then it draws from the edits of that patch which may have made the sound.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from synthnb.data.feed import Batch
from synthnb.data.library import Library
from synthnb.features import coarse
from synthnb.features.mel import BANDS, HOP
from synthnb.models.encoders import ENCODERS
from synthnb.models.fields import FIELDS
from synthnb.models.precondition import Precondition
from synthnb.sound import SAMPLE_RATE
from synthnb.space import ParameterSpace

Sound = dict[str, torch.Tensor]  # what an encoder needs, by name, batch first


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the model.

    Args:
        channels: of the spectrogram, 1 or 2.
        sound: width of the encoder's tokens.
        dim, hidden, depth: of the vector field: its stream, its hidden layers, how many.
        encoder, field: names in `ENCODERS` and `FIELDS`.
    """

    channels: int = 1
    sound: int = 512
    dim: int = 768
    hidden: int = 1024
    depth: int = 3
    encoder: str = "mel"
    field: str = "mlp"

    def __post_init__(self):
        for name, known in (("encoder", ENCODERS), ("field", FIELDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there are {', '.join(known)}")
        for name, value in asdict(self).items():
            if name not in ("encoder", "field") and not (type(value) is int and value > 0):
                raise ValueError(f"{name} is {value!r}; a whole number above 0 is needed")


class FlowModel(nn.Module):
    """Encoder, vector field, loss and sampler.

    Args:
        space: whose patches it estimates.
        settings: see `ModelSettings`.
        mean, std: float32 `(channels, bands, 1)`, of the training clips' coarse spectrograms in dB.

    Attributes:
        library: of the clips it was trained on, to find sources in; None before it is trained.
    """

    def __init__(self, space: ParameterSpace, settings: ModelSettings, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.space, self.settings = space, settings
        s, samples = settings, round(space.seconds * SAMPLE_RATE)
        shape = coarse(torch.empty(1, s.channels, BANDS, 1 + samples // HOP, device="meta")).shape[1:]
        self.register_buffer("mean", mean.expand(*shape[:2], 1))
        self.register_buffer("std", std.expand(*shape[:2], 1))
        self.encoder = ENCODERS[s.encoder]({"mel": tuple(shape)}, s.sound)
        self.field = FIELDS[s.field](space, s.sound, s.dim, s.hidden, s.depth)
        self.precondition = Precondition(space)
        self.unheard = nn.Parameter(torch.randn(s.sound) * 0.02)  # stands for a hidden sound, in every token
        self.library: Library | None = None

    def encode(self, target: Sound, source: Sound, known: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of a sound beside that of its source, `(batch, tokens, sound)`.

        Args:
            target, source: `mel`, coarse, in dB, `(batch, channels, bands, frames)`.
            known: `(batch, 1)`, 1 where there is a source and 0 where there is none.
        """
        target, source = (
            {**sound, "mel": (sound["mel"] - self.mean) / self.std} for sound in (target, source)
        )
        return self.encoder(target, source, known)

    def prepare(self, tokens: torch.Tensor, source: torch.Tensor, known: torch.Tensor) -> list[torch.Tensor]:
        """The condition of `velocity`, once for all times and candidates; see `Precondition.prepare`."""
        return self.precondition.prepare(self.field, tokens, source, known)

    def velocity(self, x: torch.Tensor, t: torch.Tensor, condition: list[torch.Tensor]) -> torch.Tensor:
        """`x (batch, width)` in [-1, 1], `t (batch,)` in [0, 1), condition from `prepare`: velocity like `x`."""
        return self.precondition(self.field, x, t, condition)

    def loss(
        self,
        batch: Batch,
        weights: torch.Tensor | None = None,
        draws: int = 1,
        condition_dropout: float = 0.0,
        source_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the velocity, at logit-normal times.

        Args:
            batch: from `Clips`.
            weights: float32 `(width,)`, of the columns; all 1 without.
            draws: times and noises for every clip.
            condition_dropout, source_dropout: share of clips whose sound, or whose source, is hidden.
            generator: of all that is drawn, on the batch's device.
        """
        device, rows = batch["known"].device, len(batch["known"])

        def chance() -> torch.Tensor:
            return torch.rand(rows, 1, device=device, generator=generator)

        known = batch["known"] * (chance() >= source_dropout)
        target = {name: batch[name] for name in self.encoder.needs}
        tokens = self.encode(target, {name: batch[f"source_{name}"] for name in target}, known)
        hidden = (chance() < condition_dropout)[..., None]
        tokens = torch.where(hidden, self.unheard.to(tokens.dtype), tokens)
        condition = self.prepare(tokens, 2 * batch["source"] - 1, known)
        x1 = (2 * batch["quantiles"] - 1).repeat_interleave(draws, 0)
        x0 = torch.randn(x1.shape, device=device, generator=generator)
        t = torch.sigmoid(torch.randn(len(x1), device=device, generator=generator))
        x = torch.lerp(x0, x1, t[:, None])
        velocity = self.velocity(x, t, [part.repeat_interleave(draws, 0) for part in condition])
        error = (velocity.float() - (x1 - x0)).square()
        return (error if weights is None else error * weights).mean()

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
        begun: tuple[np.ndarray, float] | None = None,
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
            begun: vectors `(count, width)` and a time in [0, 1): it goes on from there, between them and noise,
                instead of from noise alone.

        Returns:
            Vectors float32 `(count, width)` or `(sources * count, width)` in [0, 1], for `space.decode`; the edits of
            the first source come first.
        """
        device = self.unheard.device
        target = coarse(mel[None].to(device))
        if sources is None:
            source_mel, source = target, torch.zeros(1, self.space.width, device=device)
        else:
            source_mel = coarse(sources[0].to(device))
            source = torch.from_numpy(2 * self.space.to_quantiles(sources[1]) - 1).to(device)
        known = torch.full((len(source), 1), float(sources is not None), device=device)
        tokens = self.encode({"mel": target.expand(len(source), -1, -1, -1)}, {"mel": source_mel}, known)
        heard, unheard = (
            [part.repeat_interleave(count, 0) for part in self.prepare(said, source, known)]
            for said in (tokens, self.unheard.expand_as(tokens))
        )
        both = [torch.cat(pair) for pair in zip(heard, unheard)]
        rows, generator = len(source) * count, torch.Generator().manual_seed(seed)
        x = temperature * torch.randn(rows, self.space.width, generator=generator).to(device)
        if begun is not None:
            x1 = torch.from_numpy(2 * self.space.to_quantiles(begun[0]) - 1).to(device)
            x = torch.lerp(x, x1, begun[1])

        def guided(x: torch.Tensor, t: float) -> torch.Tensor:
            if guidance == 1.0 or not interval[0] <= t <= interval[1]:
                return self.velocity(x, torch.full((rows,), t, device=device), heard)
            with_sound, without = self.velocity(
                x.repeat(2, 1), torch.full((2 * rows,), t, device=device), both
            ).chunk(2)
            return without + guidance * (with_sound - without)

        since = begun[1] if begun is not None else 0.0
        for step in range(steps):
            size = (1 - since) / steps
            t = since + step * size
            v = guided(x, t)
            if midpoint:
                v = guided(x + v * size / 2, t + size / 2)
            x = x + v * size
        return self.space.from_quantiles(((x + 1) / 2).clamp(0, 1).cpu().numpy())

    def description(self) -> dict:
        """What is needed, beside the weights, to build this model again."""
        return {"space": self.space.text, "settings": asdict(self.settings)}
