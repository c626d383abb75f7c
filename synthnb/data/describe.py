"""What a dataset folder holds."""

from __future__ import annotations

import re
from pathlib import Path

from synthnb.data.shards import (
    SPLITS,
    DatasetError,
    fields_of,
    find_source,
    read_pieces,
    read_space,
    reading,
    reading_split,
)

RECIPE = (
    "space", "seed", "loudness_floor", "keep", "shard_size", "edits", "sample_rate", "seconds", "velocity",
)  # fmt: skip


def describe(folder: str | Path, space: str | Path | None = None) -> list[str]:
    """Space, clips, fields, bytes, recipe and versions of a dataset, as lines to print; no clip is read.

    `space` is its name or path, for a dataset that does not say it. Raises `DatasetError` if there is no `train.h5`.
    """
    folder, clips = Path(folder), []
    for split in ("train", "val", "test"):
        path = folder / f"{split}.h5"
        if split == "train" or path.is_file():
            with reading_split(path) as file:
                clips.append(f"{len(file['param_array']):,} {split}")
    shards, missing = shards_of(folder)
    with reading_split(folder / "train.h5") as file:
        fields, attributes = fields_of(file), dict(file.attrs)
        found = read_space(file, space) if "space" in attributes or space is not None else None
    with reading(shards[0]) as shard:
        summed = [
            name
            for name in fields
            if name in shard and (shard[name].fletcher32 or "crc32" in shard[name].attrs)
        ]
    size = sum(path.stat().st_size for path in {*shards, *folder.iterdir()} if path.is_file())
    elsewhere = sum(path.parent.resolve() != folder.resolve() for path in shards)
    unfinished = "" if (folder / "stats.npz").is_file() else "; not complete"
    lines = [
        f"{folder}: {', '.join(clips[:-1])} and {clips[-1]} clips{unfinished}",
        f"{len(shards)} shards" + (f", {elsewhere} of them in other folders" if elsewhere else "")
        + f", {size / 1e6:,.1f} MB" + (f"; {len(missing)} missing" if missing else ""),
    ]  # fmt: skip
    if found:
        counts = f"{len(found.parameters)} parameters, vectors of {found.width} numbers, {found.seconds:g} s"
        lines.append(f"space '{found.name}' for {found.synth}: {counts}")
    else:
        lines.append("space: not in its attributes; --space names it")
    for name, (shape, dtype) in fields.items():
        sums = "checksums" if name in summed else "no checksums"
        lines.append(f"  {name:12s} {dtype} ({', '.join(['clips', *map(str, shape)])}), {sums}")
    recipe = [f"{name} {attributes[name]}" for name in RECIPE[1:] if name in attributes]
    lines.append(f"recipe: {', '.join(recipe) or 'not in its attributes'}")
    lines.append(f"versions: {attributes.get('versions', 'not in its attributes')}")
    return lines


def shards_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that hold a dataset's clips, its own or, of a subset, those of others; and names of those missing."""
    own = [path for path in sorted(folder.glob("shard-*.h5")) if re.fullmatch(r"shard-\d+", path.stem)]
    shards, missing = {path.resolve(): path for path in own}, set()
    for path in (folder / f"{split}.h5" for split in SPLITS):
        try:
            with reading(path) as file:
                for piece in read_pieces(file):
                    found = find_source(path, piece.file)
                    if found:
                        shards.setdefault(found.resolve(), found)
                    else:
                        missing.add(piece.file)
        except DatasetError:
            continue  # `check` names it
    return list(shards.values()), sorted(missing)
