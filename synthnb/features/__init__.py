"""What a model hears: `mel` (log-mel spectrograms), `latents` (Music2Latent), `fast` (spectra by matrix products)."""

from synthnb.features.mel import BANDS, HOP, TOP_DB, coarse, log_mel

__all__ = ["BANDS", "HOP", "TOP_DB", "coarse", "log_mel"]
