"""What a training run needs to go on as if nothing had happened, on disk: written beside, checked, renamed.

A checkpoint of step n is two files in the run's folder:

    checkpoint-n.safetensors     adapters, the optimiser's moments: tensors alone
    checkpoint-n.json            everything else, and a digest of the tensors; written last, so that with it all is there

Both are flushed to the disk before they get their names. The last two are kept: should the newest turn out to be damaged,
the one before it serves. Pools, head scores and the learning rate depend on seed and step alone, so that no other state
exists: the loop draws no random numbers of its own.
"""
import fcntl
import itertools
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save

from cache import code, configuration, digest, in_words, settings, tensor_bytes, vocabulary
from files import BadInput, replacing
from processes import processes

KEPT = 2
NO_MATTER = ("out", "resume", "save_every", "plot")  # flags that change no result


def write_bytes(path, content):
    """Replace a file by one that is on the disk, and its name with it where the file system can: after a crash it is the old one or
    the new one. Raises BadInput."""
    with replacing(path, "wb") as file:
        file.write(content)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some file systems cannot do this with a folder
        pass
    finally:
        os.close(folder)


def numbers(folder):
    """The steps of the checkpoints in a folder, newest first."""
    names = (path.stem.partition("-")[2] for path in Path(folder).glob("checkpoint-*.json"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def write_checkpoint(folder, step, tensors, about):
    """tensors: {name: tensor}; about: what JSON holds. Older checkpoints but the newest are removed, and those of later steps, which
    the run has skipped as damaged."""
    place, content = Path(folder) / f"checkpoint-{step}", save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    write_bytes(place.with_suffix(".safetensors"), content)
    text = json.dumps({"step": step, **about, "sha256": digest(content)})
    write_bytes(place.with_suffix(".json"), json.dumps({"sha256": digest(text), "content": text}).encode())
    there = numbers(folder)
    for other in set(there) - set([number for number in there if number <= step][:KEPT]):
        clear(folder, f"checkpoint-{other}.*")


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


def identity(run):
    """{name: value} of what a run depends on, and what a checkpoint must have been made with to be resumed."""
    config = {f"--{name.replace('_', '-')}": value for name, value in vars(run.config).items()
              if name not in NO_MATTER}
    texts = itertools.chain((x for item in run.corpus.items() for x in item), (x for e in run.examples for x in vars(e).values()))
    collections = (x for name, c in run.collections.items() for part in (c.corpus, c.queries, c.qrels) for row in ((name, ""), *part.items())
                   for x in map(str, row))
    reads = [run.retriever.prompts, settings(run.retriever)]
    if run.own_llm:
        reads += [configuration(run.own_llm), vocabulary(run.prompts.tokenizer)]
    weights = (x for llm in (run.retriever.llm, run.own_llm) if llm for name, tensor in llm.state_dict().items()
               if "lora_" not in name for x in (name, tensor_bytes(tensor)))
    return {"torch": torch.__version__, "transformers": transformers.__version__, **code("train", {}), **config,
            "the number of processes": processes()[1], "the data": digest(more=texts), "the backbone": digest(more=weights),
            "the tokenizer, or the configuration": digest(in_words(reads)), "what is measured": digest(more=collections)}


def finished(folder, config, data_digest):
    """Is the run of this configuration and data whole? Raises BadInput, naming the first difference, if another one's is there."""
    path = Path(folder) / "result.json"
    if not path.is_file():
        return False
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        there = dict(result["config"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"--resume: {path} is not what train.py writes; remove it") from None
    for name, value in vars(config).items():
        was = there.get(name, getattr(type(config), name))  # a flag that did not exist then has its default
        if name not in NO_MATTER and was != value:
            raise BadInput(f"--resume: --{name.replace('_', '-')} was {was!r} and is now {value!r}; the finished run in {folder} is another one")
    if result.get("data_digest", data_digest) != data_digest:  # older results do not say
        raise BadInput(f"--resume: the data is no longer what the finished run in {folder} was trained on")
    return True


def check_out(config):
    """Raise BadInput where a run's folder could not be written to, or a run would be lost: one that was interrupted, and is
    not resumed. Makes nothing."""
    path = Path(config.out).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"--out {config.out}: {there} is not a folder that can be written to")
    foreign = [name for name in ("config.json", "modules.json", "tokenizer_config.json", "adapter_config.json") if (path / name).exists()]
    if foreign and not (foreign == ["adapter_config.json"] and (path / "retriever.json").exists()):  # both: a run's own adapter
        raise BadInput(f"--out {config.out}: a model is there ({foreign[0]}), which a run's files would change; name another folder")
    if numbers(path) and not config.resume:
        raise BadInput(f"--out {config.out}: a run was interrupted there after step {numbers(path)[0]}; go on with --resume, "
                       "choose another --out, or remove its checkpoint files")


@contextmanager
def claim(config):
    """Within this block a run's folder is there, locked, and free of what would be lost -> Path. Raises BadInput, also if another run
    writes there.

    The system itself unlocks it when the process ends, however it ends.
    """
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written to ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"--out {folder}: another run is writing there") from None
        except OSError as error:  # some network file systems cannot
            print(f"--out {folder}: cannot be locked ({error.strerror}); see that no other run writes there", file=sys.stderr)
        check_out(config)  # again: what was stopped there may have left its checkpoint since
        yield folder
    finally:
        os.close(lock)


def clear(folder, *patterns):
    """Remove the files of a folder that have these names, with * and ?."""
    for pattern in patterns:
        for path in sorted(Path(folder).glob(pattern)):  # checkpoint-n.json, which calls its tensors whole, goes before them
            if not path.is_dir():  # such as checkpoint-500/ of another tool
                path.unlink()


class Stop:
    """SIGINT and SIGTERM, while a run trains: noted, and acted upon when a step is done. As a context."""

    def __enter__(self):
        self.asked, self.before = False, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.asked = True

    def __exit__(self, kind, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.asked and kind is None:  # while the last step was written down
            raise KeyboardInterrupt
