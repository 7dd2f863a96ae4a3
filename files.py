"""What every command shares: bad input is one line, and no file is ever half written."""
import contextlib
import json
import os
import re
import secrets
import sys
from pathlib import Path

LONGEST = 10_000_000  # bytes of a line: no document is that long, and tokenizers need a hundred times as much memory


class BadInput(ValueError):
    """Something that the user can mend; commands print it as one line and exit with code 2."""


def brief(error, length=None):
    """An error's text in one line, of `length` characters at most, without the name and password that a URL may hold."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split()))[:length]


def command(main):
    """Run a script's main(): 2 and one line for bad input and for what the system refuses (a full disk, a name that is too
    long, more memory than there is), 130 when interrupted."""
    try:
        if any(re.search("[\ud800-\udfff]", argument) for argument in sys.argv):  # bytes that Python could not decode
            raise BadInput("an argument is not UTF-8 text")
        main()
    except (BadInput, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {brief(error)}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not no_memory(error):
            raise
        print(f"{Path(sys.argv[0]).name}: not enough memory: {brief(error, 160)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def no_memory(error):
    """Does this error of Python, numpy or torch say that memory was asked for and not there?"""
    return isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory|ALLOC_FAILED|bad_alloc", str(error)) is not None


def numbered(file, path, longest=LONGEST):
    """Yield (line number, bytes) of an open file. Raises BadInput for a line of more than `longest` bytes (None: no limit), and
    reads no more of it."""
    for number, line in enumerate(iter(lambda: file.readline(longest + 1 if longest else -1), b""), 1):
        if longest and len(line) > longest:
            raise BadInput(f"{path}:{number}: a line of more than {longest:,} bytes; cut it into documents")
        yield number, line


def check_file(path):
    """Raise BadInput where a file could not be written, before the work that fills it is done; makes nothing."""
    device = os.path.exists(path) and not os.path.isfile(path)  # or a pipe, which is written to
    place = path if device else Path(path).absolute().parent
    if os.path.isdir(path) or not (device or os.path.isdir(place)) or not os.access(place, os.W_OK):
        raise BadInput(f"{path}: cannot be written; name a file in a folder that is there")


@contextlib.contextmanager
def replacing(path, mode="w"):
    """A file to write beside `path` and rename at the end: a reader never meets half of it. Raises BadInput.

    A link stays one: the file that it leads to is replaced. A device or a pipe is written to."""
    path = Path(path)
    device = path.exists() and not path.is_file()
    real = Path(os.path.realpath(path)) if path.is_symlink() and not device else path
    part = path if device else real.with_name(f"{real.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if not device:
                file.flush()
                os.fsync(file.fileno())  # before the name: after a power cut there is the old file or the new one
        if not device:
            os.replace(part, real)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            device or part.unlink(missing_ok=True)


def write_json(path, data):
    """Write `data` as JSON, whole or not at all. Raises BadInput."""
    with replacing(path) as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
