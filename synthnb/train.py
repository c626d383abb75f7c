"""Train a flow model on a dataset folder: checkpointed, resumable, ending in one self-describing file."""

from __future__ import annotations

import json
import platform
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tqdm import tqdm

from synthnb.data.audibility import audibility, loss_weights
from synthnb.data.feed import ClipData
from synthnb.data.library import Library
from synthnb.models.checkpoint import save_model
from synthnb.models.flow import FlowModel, ModelSettings

EMA_DECAY = 0.999  # a short training averages over fewer steps: the last tenth, roughly


class Progress(Callback):
    """A plain bar of steps, at most one line every few seconds, and the clock behind the training record."""

    def __init__(self):
        self.seconds, self.clips, self.bar = 0.0, 0, None

    def on_train_start(self, trainer, model):
        self.bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", mininterval=5)
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, index):
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        self.clips += len(batch["mel"])
        self.bar.update()
        self.bar.set_postfix(loss=f"{outputs['loss'].item():.3f}", refresh=False)

    def on_train_end(self, trainer, model):
        self.bar.close()

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "clips": self.clips}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.clips = state["seconds"], state["clips"]


def train(
    folder: str | Path,
    out: str | Path,
    settings: ModelSettings,
    batch_size: int = 128,
    seed: int = 0,
    validate_every: int = 1000,
    workers: int = 0,
    precision: str = "32-true",
    audible_patches: int = 40,
) -> tuple[Path, pd.DataFrame]:
    """Train for `settings.steps` steps, or finish a training that was interrupted in `out`; then make the library.

    Args:
        folder: a dataset made by `generate`.
        out: for `last.ckpt` (to resume from), `curves-*/metrics.csv` and the result, `model.safetensors`.
        validate_every: steps between validations; each also saves `last.ckpt`.
        workers: loader processes; 0 is right on a CPU.
        precision: Lightning's; `"bf16-mixed"` on a GPU, and on a CPU that has products of that kind.
        audible_patches: patches on which it is measured how audible each parameter is, for the loss to weight it by;
            kept in `audibility.csv`.

    Returns:
        The checkpoint's path and the curves: a table with `step`, `train_loss`, `val_loss`.

    Raises:
        ValueError: the training in `out` was begun with other settings; the message names them.
    """
    out = Path(out)
    last = out / "last.ckpt"
    run = {"batch_size": batch_size, "seed": seed, "audible_patches": audible_patches}
    _same_settings(out, {**asdict(settings), **run}, last.is_file())
    lightning.seed_everything(seed, verbose=False)
    skip = torch.load(last, weights_only=False, map_location="cpu")["global_step"] if last.is_file() else 0
    data = ClipData(folder, batch_size, workers, seed, skip)
    audible = out / "audibility.csv"
    if not skip:
        audibility(data.space, audible_patches, seed).to_csv(audible, index_label="parameter")
    weights = loss_weights(data.space, pd.read_csv(audible, index_col="parameter")["dB"])
    model = FlowModel(data.space, settings, data.mean, data.std, weights)
    progress = Progress()
    decay = min(EMA_DECAY, max(0.0, 1 - 10 / settings.steps))
    validate_every = min(validate_every, settings.steps)
    keep = ModelCheckpoint(
        out, save_last=True, save_top_k=0, every_n_train_steps=validate_every, enable_version_counter=False
    )  # no counter: in a folder that was moved it would write last-v1.ckpt, and last.ckpt would stay as it is
    if not skip:  # of another training, whose last.ckpt was removed
        for stale in out.glob("curves*/metrics.csv"):
            stale.unlink()
    trainer = lightning.Trainer(
        max_steps=settings.steps,
        accelerator="auto",
        devices=1,
        precision=precision,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(50, settings.steps // 20)),
        callbacks=[EMAWeightAveraging(decay=decay, use_buffers=False), keep, progress],
        logger=CSVLogger(out, name="", version=f"curves-{skip:07d}"),  # it would erase an earlier run's
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|many workers|litlogger|log_dir).*")
        trainer.fit(model, data, ckpt_path=last if skip else None, weights_only=False)
    if skip >= settings.steps:  # nothing was left to do; Lightning restored the last weights, not the average
        model.load_state_dict(torch.load(last, weights_only=False, map_location="cpu")["state_dict"])
    model.library = Library.build(folder) if data.seeded else None
    curves = _curves(out)
    validated = curves[["step", "val_loss"]].dropna()
    record = {
        "clips": data.clips,
        "dataset_space": data.space.name,
        "steps": trainer.global_step,
        "batch_size": batch_size,
        "seed": seed,
        "library": len(model.library or ()),
        "seconds": round(progress.seconds),
        "clips_per_second": round(progress.clips / max(progress.seconds, 1e-9), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {trainer.accelerator.name()}",
        "torch": torch.__version__,
        "val_loss": [[int(step), round(loss, 4)] for step, loss in validated.to_numpy().tolist()],
    }
    return save_model(model, out / "model.safetensors", record), curves


def _same_settings(out: Path, settings: dict, resumed: bool) -> None:
    """Keep them in `settings.json`, or hold a resumed training to those it was begun with."""
    path = out / "settings.json"
    if resumed:
        begun = json.loads(path.read_text()) if path.is_file() else {}
        for name, value in settings.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"the training in {out} was begun with {name} = {begun.get(name)}, not {value}; "
                    "use another folder, or remove its last.ckpt to start afresh"
                )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def _curves(out: Path) -> pd.DataFrame:
    """One row per logged step, over all runs that were resumed in `out`."""
    files = sorted(out.glob("curves*/metrics.csv"))
    table = pd.concat([pd.read_csv(file) for file in files])
    return table.groupby("step", as_index=False).last().reindex(columns=["step", "train_loss", "val_loss"])
