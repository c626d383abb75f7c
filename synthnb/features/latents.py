"""Music2Latent: a sound as a pretrained audio codec describes it, beside the log-mel spectrogram.

The codec (Pasini, Lattner, Fazekas 2024, arXiv:2408.06500) is the optional package `music2latent`. It and its weights
are licensed CC-BY-NC 4.0, which is told when they are loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import BinaryIO

import torch

CHANNELS = 64  # of the latents of one audio channel
VARIABLE = "SYNTHNB_MUSIC2LATENT"
LICENCE = "CC-BY-NC 4.0: not for commercial use"
TENSORS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("collections", "OrderedDict"),
}  # what they are pickled with
HUB = "https://huggingface.co/SonyCSLParis/music2latent"


class LatentsError(RuntimeError):
    """Music2Latent or its weights are missing or unusable; the message says what to do."""


class Music2Latent:
    """The codec's encoder.

    Args:
        weights: the file `music2latent.pt`; else the one that the environment variable `SYNTHNB_MUSIC2LATENT` names;
            else the package downloads it once from the Hugging Face hub. Of the pickle only tensors are unpickled.
        device: where it runs. A clip of 4 s takes one core of a CPU several seconds.

    Attributes:
        origin: what made the latents, without any path: the weights' digest and their licence.

    Raises:
        LatentsError: the package or its weights are missing, or the file holds something else.
    """

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu"):
        try:
            from music2latent import inference, models
        except ImportError as error:
            raise LatentsError(
                f"music2latent is not installed; pip install music2latent==0.1.8 ({LICENCE})"
            ) from error
        path = _find_weights(weights)
        _tell_licence()
        # Half precision can give NaN (the package says so too), and a CPU does not have it.
        inference.mixed_precision = False
        # Without its constructor, which downloads the weights even if it is given a path.
        self._codec = object.__new__(inference.EncoderDecoder)
        self._codec.device = torch.device(device)
        try:
            # Not with `weights_only`: the published file holds more than weights, and would be refused.
            found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TensorsOnly)
            self._codec.gen = models.UNet().to(device)
            missing = self._codec.gen.load_state_dict(found["gen_state_dict"], strict=False).missing_keys
        except Exception as error:  # unpickling and a state that does not fit raise all sorts
            raise LatentsError(f"{path} holds no Music2Latent weights; get them from {HUB}") from error
        if missing:
            raise LatentsError(f"{path} lacks {missing[0]} and {len(missing) - 1} more; get it from {HUB}")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.origin = f"Music2Latent, weights {digest[:16]}, {LICENCE}"

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """Latents of a batch; those of the channels follow each other, as in the synth-permutations datasets.

        Args:
            audio: float32 `(clips, channels, samples)` at 44.1 kHz, 5,632 samples or more.

        Returns:
            float32 `(clips, channels * 64, frames)` on the encoder's device, about 10.5 frames a second (4 s: 42), in
            [-16.7, 16.7]. On a CPU a clip's are the same in any batch.
        """
        voices = audio.reshape(-1, audio.shape[-1])
        at_once = 1 if self._codec.device.type == "cpu" else len(voices)  # a CPU gains nothing by more
        latents = self._codec.encode(voices, max_batch_size=at_once)
        return latents.reshape(len(audio), -1, latents.shape[-1])


class _Ignored:
    """Stands for whatever a pickle names that is no tensor, and for what would come of calling it."""

    def __init__(self, *_: object) -> None: ...

    def __call__(self, *_: object) -> _Ignored:
        return self

    def __setstate__(self, _: object) -> None: ...


class _TensorsOnly:
    """A `pickle` for `torch.load` that makes tensors and plain containers, and runs nothing else."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            return super().find_class(module, name) if (module, name) in TENSORS else _Ignored

    @classmethod
    def load(cls, file: BinaryIO, **_: object) -> object:
        return cls.Unpickler(file).load()


def _find_weights(path: str | Path | None) -> Path:
    if named := path or os.environ.get(VARIABLE):
        if not Path(named).is_file():
            whence = "" if path else f" ({VARIABLE})"
            raise LatentsError(f"no Music2Latent weights at {named}{whence}; get them from {HUB} ({LICENCE})")
        return Path(named)
    from music2latent import inference

    try:
        inference.download_model()  # into the package's own folder, if they are not there yet
    except (
        Exception
    ) as error:  # no network, no such page, a folder that can't be written: each raises its own
        raise LatentsError(
            f"Music2Latent's weights are missing and could not be downloaded; get music2latent.pt from {HUB} "
            f"({LICENCE}) and name it in {VARIABLE}"
        ) from error
    return Path(inference.load_path_inference_default)


@functools.cache  # once is enough
def _tell_licence() -> None:
    print(f"Music2Latent and its weights are licensed {LICENCE}.", file=sys.stderr)
