"""What every command shares: bad input is one line, and no file is ever half written."""
import contextlib
import json
import os
import secrets
import sys
from pathlib import Path


class BadInput(ValueError):
    """Something that the user can mend; commands print it as one line and exit with code 2."""


def command(main):
    """Run a script's main(): 2 and one line for bad input, 130 when interrupted."""
    try:
        main()
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def replacing(path, mode="w"):
    """A file to write beside `path` and rename at the end: a reader never meets half of it. Raises BadInput."""
    path = Path(path)
    device = path.exists() and not path.is_file()  # such as /dev/stdout, which must not be replaced
    part = path if device else path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        if not device:
            os.replace(part, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            device or part.unlink(missing_ok=True)


def write_json(path, data):
    with replacing(path) as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
