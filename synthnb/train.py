"""Train a flow model on a dataset folder: checkpointed, resumable, ending in one self-describing file.

From the command line, with files of parameters like those of notebook 02, also on several GPUs:

    python -m synthnb.train dexed.yaml
    torchrun --nproc-per-node 8 -m synthnb.train surge.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import math
import os
import platform
import signal
import time
import warnings
from pathlib import Path
from typing import TypeVar

import lightning
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import nn
from tqdm import tqdm

from synthnb.data.feed import Batch, ClipData
from synthnb.data.library import Library
from synthnb.data.shards import open_split
from synthnb.models.checkpoint import save_model
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.space import ParameterSpace

Settings = TypeVar("Settings")
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


def pick(kind: type[Settings], values: dict) -> Settings:
    """Settings of a kind from those `values` (of a file, of a notebook) that it has; the rest as by default."""
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})


def choose_precision(asked: str) -> str:
    """For `"auto"`, bf16-mixed where the GPU or else the processor has products of bfloat16, 32-true elsewhere."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # emulated, it takes six times as long as float32
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def loss_weights(space: ParameterSpace, audible: pd.Series) -> torch.Tensor:
    """Weight of every column of a vector in the loss, float32 `(width,)`, like `audible`; their mean is 1."""
    share = audible / audible.max() + FLOOR
    weights = torch.ones(space.width)
    for p in space:
        block = BLOCK / p.width if p.kind == "categorical" else 1.0
        weights[space.columns[p.name]] = float(share[p.name]) * block
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
        return self.loss(batch)

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
    """A plain bar of steps, the clock, the curves, and `last.ckpt` after every validation; the last step has one too.

    Args:
        out: folder for `last.ckpt` and `curves.csv`.
        began: what a training that goes on must have in common with the one that began.
    """

    def __init__(self, out: Path, began: dict):
        self.out = out
        self.kept = {"began": began, "seconds": 0.0, "clips": 0, "curves": []}

    def on_train_start(self, trainer, module):
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            mininterval=SHOWN,
            disable=not trainer.is_global_zero,
        )
        self.started = self.shown = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        now, step = time.perf_counter(), trainer.global_step
        self.kept["seconds"] += now - self.started
        self.kept["clips"] += len(batch["known"]) * trainer.world_size
        # A GPU would wait for each loss that is asked of it.
        if step % max(1, min(50, trainer.max_steps // 20)) == 0:
            self.kept["curves"].append({"step": step, "train_loss": outputs["loss"].item()})
        if now - self.shown > SHOWN:
            self.bar.set_postfix(loss=f"{outputs['loss'].item():.3f}", refresh=False)
            self.shown = now
        self.started = now
        self.bar.update()
        trainer.should_stop = step == trainer.max_steps  # then Lightning validates

    def on_validation_end(self, trainer, module):
        loss = trainer.callback_metrics["val_loss"].item()
        self.kept["curves"].append({"step": trainer.global_step, "val_loss": loss})
        trainer.save_checkpoint(self.out / "last.ckpt", weights_only=False)
        if trainer.is_global_zero:
            self.curves().to_csv(self.out / "curves.csv", index=False)

    def on_train_end(self, trainer, module):
        self.bar.close()

    def curves(self) -> pd.DataFrame:
        table = pd.DataFrame(self.kept["curves"], columns=["step", "train_loss", "val_loss"])
        return table.groupby("step", as_index=False).last()

    def state_dict(self) -> dict:
        return self.kept

    def load_state_dict(self, state: dict) -> None:
        self.kept = state


def train(
    folder: str | Path, out: str | Path, model: ModelSettings, training: TrainSettings
) -> tuple[Path, pd.DataFrame]:
    """Train, or finish a training that was interrupted in `out`: the result is the same. Then make the library.

    Args:
        folder: a dataset made by `generate`; nothing else is needed, no synth. It may still be being filled.
        out: for `last.ckpt` (to resume from), `curves.csv` and the result, `model.safetensors`.

    Returns:
        The checkpoint's path and the curves: a table with `step`, `train_loss`, `val_loss`.

    Raises:
        ValueError: the training in `out` was begun with other settings, or its `last.ckpt` is damaged.
        DatasetError: the folder is no dataset, or not one that a library can be made of though `generate` made it.
        KeyboardInterrupt: what was done until the last validation is kept.
    """
    out, path = Path(out), Path(out) / "model.safetensors"
    training = dataclasses.replace(training, precision=choose_precision(training.precision))
    began = {**dataclasses.asdict(model), **dataclasses.asdict(training), "dataset": _fingerprint(folder)}
    last = out / "last.ckpt"
    done = _steps_done(last, began) if last.is_file() else 0
    data = ClipData(folder, training.batch_size, training.workers, training.seed, done)
    if data.seeded:
        Library.check(folder)  # can it be made? Better to know it now
    heard = data.audible
    weights = torch.ones(data.space.width) if heard is None else loss_weights(data.space, heard)
    torch.manual_seed(training.seed)
    run = Training(FlowModel(data.space, model, data.mean, data.std), training, weights)
    progress = Progress(out, began)
    decay = min(0.999, max(0.0, 1 - 10 / training.steps))  # a short training averages over its last tenth
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what matters is said below
    trainer = lightning.Trainer(
        max_steps=training.steps,
        accelerator="auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # torchrun says them
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        precision=training.precision,
        val_check_interval=training.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[EMAWeightAveraging(decay=decay, use_buffers=False), progress],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    device = trainer.accelerator.name()
    if trainer.is_global_zero:
        print(f"training on {device} in {training.precision}")
        if heard is None:
            print("the dataset does not say what is audible; all parameters weigh the same")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, where there is no bfloat16
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(num_workers|many workers|LeafSpec).*")
            trainer.fit(run, data, ckpt_path=last if done else None, weights_only=True)
    except SystemExit:  # Lightning's answer to an interrupt; it also makes the process deaf to the next
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    curves = progress.curves()
    if not trainer.is_global_zero:  # one of several processes writes the result
        return path, curves
    run.load_state_dict(_read_state(last)["state_dict"])  # the average
    validated = curves[["step", "val_loss"]].dropna()
    seconds, clips = progress.kept["seconds"], progress.kept["clips"]
    with open_split(Path(folder) / "train.h5") as file:
        clips_now = len(file["param_array"])  # more than at the beginning, if the folder is being filled
    record = {
        "clips": clips_now,
        "dataset_space": data.space.name,
        **dataclasses.asdict(training),
        "library": 0,
        "seconds": round(seconds),
        "clips_per_second": round(clips / max(seconds, 1e-9), 1),
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


def _fingerprint(folder: str | Path) -> str:
    """Of what a dataset's clips depend on, where it says so, else of the first; a folder being filled keeps it."""
    with open_split(Path(folder) / "train.h5") as file:
        drawn = [str(file.attrs.get(name)) for name in ("space", "seed", "edits", "loudness_floor")]
        first = b"" if "seed" in file.attrs else file["param_array"][0].tobytes()
        return hashlib.sha256("\n".join(drawn).encode() + first).hexdigest()[:16]


def _read_state(last: Path) -> dict:
    """What `last.ckpt` holds: tensors and plain values, nothing that could run. Raises `ValueError`."""
    try:
        state = torch.load(last, weights_only=True, map_location="cpu", mmap=True)
        state["state_dict"], state["callbacks"]["Progress"]["began"], state["global_step"] + 0
    except Exception as error:  # anything may be wrong with it
        raise ValueError(
            f"{last} is cut short, or no state of a training; remove it to start afresh"
        ) from error
    return state


def _steps_done(last: Path, began: dict) -> int:
    """Steps of a training that was interrupted. Raises `ValueError` unless it was begun as this one is."""
    state = _read_state(last)
    before = state["callbacks"]["Progress"]["began"]
    for name, value in began.items():
        if before.get(name) != value and name not in ("workers", "validate_every"):
            raise ValueError(
                f"the training in {last.parent} was begun with {name} = {before.get(name)}, not {value}; "
                "use another folder, or remove its last.ckpt to start afresh"
            )
    return state["global_step"]


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
    print(train(values["folder"], values["out"], *(pick(kind, values) for kind in kinds))[0])


if __name__ == "__main__":
    main()
