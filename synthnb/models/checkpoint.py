"""Self-describing checkpoints: one `.safetensors` file holds weights, space, settings and training record."""

from __future__ import annotations

import json
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
    path = Path(name_or_path)
    return path if path.suffix == ".safetensors" else CHECKPOINTS / f"{name_or_path}.safetensors"


def read_record(name_or_path: str | Path) -> dict:
    """The training record of a checkpoint. Raises `CheckpointError`."""
    return json.loads(_metadata(checkpoint_path(name_or_path))["record"])


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; train one with notebook 02_train")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable .safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT} checkpoint (its format is {metadata.get('format')})")
    return metadata


def load_model(name_or_path: str | Path, device: str = "cpu") -> FlowModel:
    """Load a checkpoint by path, or by the name of one that comes with the package (`"dexed"`).

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
        settings = ModelSettings(**json.loads(metadata["settings"]))
        model = FlowModel(space, settings, weights["mean"], weights["std"])
        model.load_state_dict(weights)
        if kept:
            model.library = Library(space, **json.loads(metadata["library"]), **kept)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this version of synthnb: {error}") from error
    return model.to(device).eval().requires_grad_(False)
