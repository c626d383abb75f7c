"""Self-describing checkpoints: one `.safetensors` file holds weights, space, settings and training record."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from synthnb.data.library import Library
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.space import ParameterSpace

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
FORMAT = "synthnb-flow-2"
LIBRARY = "library."  # begins the names of its tensors


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this project; the message says what is wrong."""


def save_model(model: FlowModel, path: str | Path, record: dict) -> Path:
    """Write weights as float16, with everything needed to load and to judge them; and the model's library, if any.

    Args:
        record: how it was trained (data, steps, time, seed, losses); plain JSON values.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, metadata = model.state_dict(), {"format": FORMAT, "record": json.dumps(record)}
    metadata |= _json(model.description())
    if (library := model.library) is not None:
        tensors |= {LIBRARY + name: tensor for name, tensor in library.tensors().items()}
        metadata["library"] = json.dumps(library.description())
    weights = {name: _small(value.detach().cpu()).contiguous() for name, value in tensors.items()}
    aside = path.with_name(path.name + ".partial")
    save_file(weights, aside, metadata)
    return aside.replace(path)


def _small(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _json(values: dict) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def checkpoint_path(name_or_path: str | Path) -> Path:
    """Where a checkpoint lies that is given by path, or by the name of one that comes with the package."""
    shipped = CHECKPOINTS / f"{name_or_path}.safetensors"
    return shipped if shipped.is_file() else Path(name_or_path)


def read_record(name_or_path: str | Path) -> dict:
    """The training record of a checkpoint. Raises `CheckpointError`."""
    path = checkpoint_path(name_or_path)
    metadata = _metadata(path)
    try:
        record = json.loads(metadata["record"])
    except (KeyError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} has no readable training record")
    return record


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in CHECKPOINTS.glob("*.safetensors")))
        raise CheckpointError(
            f"no checkpoint '{path}'; there are {shipped}; "
            "or pass the path of a .safetensors file that notebook 02_train wrote"
        )
    if path.suffix == ".ckpt":
        raise CheckpointError(
            f"{path} is what a training goes on from; the model.safetensors beside it, written at its end, is the model"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable .safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT} checkpoint (its format is {metadata.get('format')})")
    return metadata


def load_model(name_or_path: str | Path, device: str = "auto") -> FlowModel:
    """Load a checkpoint by path, or by the name of one that comes with the package (`"dexed"`).

    Args:
        device: PyTorch's name of it; `"auto"` is the GPU where there is one.

    Raises `CheckpointError` if the file is missing, damaged or of another format.
    """
    path = checkpoint_path(name_or_path)
    metadata = _metadata(path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    weights = {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()
    }
    kept = {key.removeprefix(LIBRARY): weights.pop(key) for key in tensors if key.startswith(LIBRARY)}
    try:
        space = ParameterSpace.parse(metadata["space"])
        settings = _settings(metadata["settings"], weights)
        with torch.device("meta"):  # nothing is allocated for a shape that the weights don't have
            model = FlowModel(space, settings, weights["mean"], weights["std"])
        model.load_state_dict(weights, assign=True)
        if kept:
            model.library = Library(space, **json.loads(metadata["library"]), **kept)
    except Exception as error:  # anything may be wrong with a file from somebody else
        raise CheckpointError(f"{path} does not fit this version of synthnb: {error}") from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False)


def _settings(text: str, weights: dict[str, torch.Tensor]) -> ModelSettings:
    """Those of the model (older checkpoints have the training's beside them), if weights can be so many and so wide."""
    known = [field.name for field in fields(ModelSettings)]
    settings = ModelSettings(**{name: value for name, value in json.loads(text).items() if name in known})
    widest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    for name in known:
        if isinstance(value := getattr(settings, name), int) and value > widest:
            raise ValueError(f"its settings say {name} = {value}, its weights are {widest} wide at most")
    return settings
