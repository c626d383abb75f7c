"""Train a flow model on a dataset folder: checkpointed, resumable, ending in one self-describing file.

From the command line, with files of parameters like those of notebook 02, also on several GPUs:

    python -m synthnb.train dexed.yaml
    torchrun --nproc-per-node 8 -m synthnb.train surge.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import pickle
import platform
import signal
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from tqdm import tqdm

from synthnb.data.feed import Batch, ClipData
from synthnb.data.library import Library
from synthnb.data.shards import open_split
from synthnb.models.checkpoint import save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.space import ParameterSpace

EMA_DECAY = 0.999  # a short training averages over fewer steps: the last tenth, roughly
PRECISIONS = ("auto", "32-true", "bf16-mixed")
SHOWN = 5.0  # seconds between two lines of progress
BLOCK = 3.0  # weight of a whole one-hot block, where a scalar parameter has 1
FLOOR = 0.05  # of the most audible parameter's weight: what the least audible one keeps


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Args:
        steps, batch_size: how many steps, of so many clips (on each of several GPUs).
        learning_rate, warmup, weight_decay: AdamW with linear warm-up, then cosine to 1 %.
        draws: times and noises per encoded clip in a training step.
        condition_dropout: share of clips whose sound is hidden, for guidance.
        source_dropout: share of clips whose source is hidden, for sampling without one.
        validate_every: steps between validations; each also saves `last.ckpt`, and so does the last step.
        workers: loader processes; 0 is right on a CPU.
        precision: `"32-true"`, `"bf16-mixed"`, or `"auto"`: bfloat16 where the device multiplies it natively.
        seed: of the weights, the order of the clips and all noise.
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.01
    draws: int = 4
    condition_dropout: float = 0.1
    source_dropout: float = 0.25
    validate_every: int = 1000
    workers: int = 0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"no precision '{self.precision}'; there are {', '.join(PRECISIONS)}")
        least = {"steps": 1, "batch_size": 1, "draws": 1, "validate_every": 1, "workers": 0, "seed": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {number} is needed")


def pick(kind: type, values: dict):
    """Settings of a kind from those `values` (of a file, of a notebook) that it has; the rest as by default."""
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})


def choose_precision(asked: str = "auto") -> str:
    """`asked`, or for `"auto"` bf16-mixed where the GPU, or else the processor, has products of bfloat16; 32-true."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # emulated, it would take six times as long as float32
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def loss_weights(space: ParameterSpace, audible: pd.Series) -> torch.Tensor:
    """Weight of every column of a vector in the loss, float32 `(width,)`, like `audible`; their mean is 1."""
    share = audible / audible.max() + FLOOR
    weights = torch.ones(space.width)
    for p in space:
        block = BLOCK / p.width if p.kind == "categorical" else 1.0
        weights[space.columns[p.name]] = share[p.name] * block
    return weights * space.width / weights.sum()


class Training(lightning.LightningModule):
    """A model as Lightning trains it. What is random in a step depends on `(seed, step, rank)` alone.

    Args:
        weights: float32 `(width,)`, of the columns in the loss.
    """

    def __init__(self, model: FlowModel, settings: TrainSettings, weights: torch.Tensor):
        super().__init__()
        self.model, self.settings = model, settings
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        s = self.settings
        return self.model.loss(batch, self.weights, s.draws, s.condition_dropout, s.source_dropout, generator)

    def on_train_batch_start(self, batch: Batch, _: int) -> None:
        mixed = np.random.SeedSequence([self.settings.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator(self.device).manual_seed(index)  # the same times and noises every time
        self.log("val_loss", self.loss(batch, generator), batch_size=len(batch["known"]), sync_dist=True)

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


class Progress(Callback):
    """A plain bar of steps, the clock behind the training record, and `last.ckpt` after every validation.

    There is a validation after the last step too.
    """

    def __init__(self, last: Path):
        self.last, self.seconds, self.clips = last, 0.0, 0

    def on_train_start(self, trainer, model):
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            mininterval=SHOWN,
            disable=not trainer.is_global_zero,
        )
        self.started = self.shown = time.perf_counter()

    def on_train_batch_end(self, trainer, model, outputs, batch, index):
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        self.clips += len(batch["known"]) * trainer.world_size
        if now - self.shown > SHOWN:  # a GPU would wait for each number that is asked of it
            self.bar.set_postfix(loss=f"{outputs['loss'].item():.3f}", refresh=False)
            self.shown = now
        self.bar.update()
        trainer.should_stop = trainer.global_step == trainer.max_steps  # then Lightning validates

    def on_validation_end(self, trainer, model):
        trainer.save_checkpoint(self.last)

    def on_train_end(self, trainer, model):
        self.bar.close()

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "clips": self.clips}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.clips = state["seconds"], state["clips"]


def train(
    folder: str | Path, out: str | Path, model: ModelSettings, training: TrainSettings
) -> tuple[Path, pd.DataFrame]:
    """Train, or finish a training that was interrupted in `out`: the result is the same. Then make the library.

    Args:
        folder: a dataset made by `generate`; nothing else is needed, no synth.
        out: for `last.ckpt` (to resume from), `curves-*/metrics.csv` and the result, `model.safetensors`.

    Returns:
        The checkpoint's path and the curves: a table with `step`, `train_loss`, `val_loss`.

    Raises:
        ValueError: the training in `out` was begun with other settings, or its `last.ckpt` is damaged.
        DatasetError: the folder is no dataset, or not one that a library can be made of though `generate` made it.
        KeyboardInterrupt: what is done until the last validation is kept.
    """
    out = Path(out)
    last = out / "last.ckpt"
    done = _read_state(last)["global_step"] if last.is_file() else 0
    training = dataclasses.replace(training, precision=choose_precision(training.precision))
    data = ClipData(folder, training.batch_size, training.workers, training.seed, done)
    began = {**dataclasses.asdict(model), **dataclasses.asdict(training), "dataset": _fingerprint(folder)}
    _same_settings(out, began, last.is_file())
    if data.seeded:
        Library.build(folder, workers=1, most=16)  # can it be made? Better to know it now
    if not done:  # of another training, whose last.ckpt was removed
        for stale in out.glob("curves*/metrics.csv"):
            stale.unlink(missing_ok=True)
    torch.manual_seed(training.seed)
    weights = torch.ones(data.space.width)
    if data.audible is None:
        warnings.warn("the dataset does not say what is audible; all parameters weigh the same", stacklevel=2)
    else:
        weights = loss_weights(data.space, data.audible)
    run = Training(FlowModel(data.space, model, data.mean, data.std), training, weights)
    progress = Progress(last)
    decay = min(EMA_DECAY, max(0.0, 1 - 10 / training.steps))
    trainer = lightning.Trainer(
        max_steps=training.steps,
        accelerator="auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # torchrun says them
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        precision=training.precision,
        val_check_interval=training.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(50, training.steps // 20)),
        callbacks=[EMAWeightAveraging(decay=decay, use_buffers=False), progress],
        logger=CSVLogger(out, name="", version=f"curves-{done:07d}"),  # it would erase an earlier run's
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    device = trainer.accelerator.name()
    if trainer.is_global_zero:
        print(f"training on {device} in {training.precision}")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, where there is no bfloat16
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*(num_workers|many workers|litlogger|log_dir|logs directory).*"
            )
            trainer.fit(run, data, ckpt_path=last if done else None, weights_only=True)
    except SystemExit:  # Lightning's answer to an interrupt; it also makes the process deaf to the next
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    run.load_state_dict(_read_state(last)["state_dict"])  # the average
    path, curves = out / "model.safetensors", _curves(out)
    if not trainer.is_global_zero:
        return path, curves
    validated = curves[["step", "val_loss"]].dropna()
    record = {
        "clips": data.clips,
        "dataset_space": data.space.name,
        **dataclasses.asdict(training),
        "library": 0,
        "seconds": round(progress.seconds),
        "clips_per_second": round(progress.clips / max(progress.seconds, 1e-9), 1),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "torch": torch.__version__,
        "val_loss": [[int(step), round(loss, 4)] for step, loss in validated.to_numpy().tolist()],
    }
    save_model(run.model, path, record)  # before anything else can fail
    if data.seeded:
        run.model.library = Library.build(folder)
        save_model(run.model, path, record | {"library": len(run.model.library)})
    return path, curves


def _read_state(last: Path) -> dict:
    """What `last.ckpt` holds: tensors and plain values, nothing that could run."""
    try:
        state = torch.load(last, weights_only=True, map_location="cpu", mmap=True)
        state["global_step"], state["state_dict"]
    except (
        pickle.UnpicklingError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise ValueError(
            f"{last} is cut short, or no state of a training; remove it to start afresh"
        ) from error
    return state


def _fingerprint(folder: str | Path) -> str:
    """Of a dataset's space and first training clip; a folder that is being filled keeps both."""
    with open_split(Path(folder) / "train.h5") as file:
        text = str(file.attrs.get("space", "")).encode()
        return hashlib.sha256(text + file["param_array"][0].tobytes()).hexdigest()[:16]


def _same_settings(out: Path, settings: dict, resumed: bool) -> None:
    """Keep them in `settings.json`, or hold a resumed training to those it was begun with."""
    path = out / "settings.json"
    if resumed:
        begun = json.loads(path.read_text()) if path.is_file() else {}
        for name, value in settings.items():
            if begun.get(name) != value and name not in ("workers", "validate_every"):
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m synthnb.train", description="Train a model.")
    parser.add_argument("parameters", nargs="+", type=Path, help="YAML files; a later one wins")
    values = {}
    for path in parser.parse_args().parameters:
        values |= yaml.safe_load(path.read_text())
    kinds = ModelSettings, TrainSettings
    known = {"folder", "out"} | {field.name for kind in kinds for field in dataclasses.fields(kind)}
    if unknown := values.keys() - known or {"folder", "out"} - values.keys():
        parser.error(f"unknown or missing: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    path, _ = train(values["folder"], values["out"], *(pick(kind, values) for kind in kinds))
    print(path)


if __name__ == "__main__":
    main()
