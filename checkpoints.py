"""What a training run needs to go on as if nothing had happened, on disk: written beside, checked, renamed.

A checkpoint of step n is two files in the run's folder:

    checkpoint-n.safetensors     adapters, the optimiser's moments: tensors alone
    checkpoint-n.json            everything else, and the SHA-256 of the tensors; written last, so that with it all is there

Both are flushed to the disk before they get their names. The last two are kept: should the newest turn out to be damaged,
the one before it serves. Pools, head scores and the learning rate depend on seed and step alone, so that no other state
exists: the loop draws no random numbers of its own.
"""
import hashlib
import json
import os
import sys
from pathlib import Path

from safetensors.torch import load_file, save

from data import BadInput, replacing

KEPT = 2


def digest(*parts):
    """SHA-256 of texts and bytes, each with its length, so that no two lists of parts look alike."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else bytes(part)
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def write_bytes(path, content):
    """Replace a file by one that is on the disk: after a crash it is the old one or the new one. Raises BadInput."""
    with replacing(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on the disk too
    finally:
        os.close(folder)


def numbers(folder):
    """The steps of the checkpoints in a folder, newest first."""
    names = (path.stem.partition("-")[2] for path in Path(folder).glob("checkpoint-*.json"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def write_checkpoint(folder, step, tensors, about):
    """tensors: {name: tensor}; about: what JSON holds. Older checkpoints but the newest are removed."""
    place, content = Path(folder) / f"checkpoint-{step}", save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    write_bytes(place.with_suffix(".safetensors"), content)
    text = json.dumps({"step": step, **about, "sha256": digest(content)})
    write_bytes(place.with_suffix(".json"), json.dumps({"sha256": digest(text), "content": text}).encode())
    for old in numbers(folder)[KEPT:]:
        remove(folder, old)


def remove(folder, step):
    for ending in ("json", "safetensors"):  # the one that says the other is whole goes first
        (Path(folder) / f"checkpoint-{step}.{ending}").unlink(missing_ok=True)


def read_checkpoint(folder, step):
    """-> (tensors, about). Raises ValueError unless both files are what was written."""
    place = Path(folder) / f"checkpoint-{step}"
    outer = json.loads(place.with_suffix(".json").read_text())
    if digest(outer["content"]) != outer["sha256"]:
        raise ValueError("its JSON is damaged")
    about = json.loads(outer["content"])
    if digest(place.with_suffix(".safetensors").read_bytes()) != about["sha256"]:
        raise ValueError("its tensors are damaged")
    return load_file(place.with_suffix(".safetensors")), about


def newest_checkpoint(folder, expected):
    """The newest whole checkpoint -> (tensors, about); (None, None) where there is none. Says what it skips.

    expected: {name: value} of what must be as it was, such as the configuration. Raises BadInput, naming the first difference.
    """
    for step in numbers(folder):
        try:
            tensors, about = read_checkpoint(folder, step)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{folder}: the checkpoint of step {step} is skipped: {error}", file=sys.stderr)
            continue
        for name, value in expected.items():
            if about["run"].get(name) != value:
                raise BadInput(f"--resume: {name} was {about['run'].get(name)!r} and is now {value!r}; the run in {folder} cannot go on")
        return tensors, about
    return None, None
