"""fetch.py against a server in a thread that can resume, refuse to, break off, lie and be the hub. No network."""
import functools
import gzip
import hashlib
import io
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler

import huggingface_hub
import pytest
from conftest import ROOT, on_linux, serving

import commands
import fetch as module
from data import BadInput, load_collection, load_examples
from fetch import BEIR, fetch

CORPUS = "".join(json.dumps({"_id": f"d{i}", "title": "Box", "text": f"number {i * 7919}"}) + "\n" for i in range(99))
QUERIES = '{"_id": "q1", "text": "which?"}\n{"_id": "q2", "text": "where?"}\n'
TSV = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td7\t2\n"
LINES = ('{"query-id": "q1", "corpus-id": "d1", "score": 1.0}\n'
         '{"query-id": "q2", "corpus-id": "d7", "score": 2}\n')
SHA = "0123456789" * 4


# ------------------------------------------------------------------------------------------------------- the server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        asked = self.headers.get("Range")
        server.asked.append((self.command, path, asked, self.headers.get("Authorization")))
        status = server.statuses.pop(0) if server.statuses else 200
        body, headers = server.files.get(path), {"ETag": f'"{abs(hash(path))}"', "X-Repo-Commit": SHA}
        if body is None:
            status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, b"none"
        elif "/resolve/" in path and "gated" in path:
            status, headers, body = 403, {"X-Error-Code": "GatedRepo"}, b"ask"
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges and status == 200 else 0
        if start and start >= len(body):
            status, headers, body = 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        elif start:
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
        body = body[start:]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.close_connection = True  # a client hears of a cut at once

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """files {path: bytes}, asked [(method, path, Range, Authorization)]; cuts: bytes that an answer stops after."""
    with serving(Handler) as server:
        server.files, server.asked, server.statuses, server.cuts, server.ranges = {}, [], [], [], True
        monkeypatch.setattr(module, "PAUSE", 0)
        monkeypatch.setenv("DREAM_BEIR_URL", f"{server.url}/zips/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def make_zip(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def collection(home):
    return {f"{home}corpus.jsonl": CORPUS, f"{home}queries.jsonl": QUERIES, f"{home}qrels/test.tsv": TSV}


@pytest.fixture
def publish(server, monkeypatch):
    """Put a zip on the server, and its MD5 into the table -> its bytes."""

    def put(files, name="scifact"):
        data = files if isinstance(files, bytes) else make_zip(files)
        server.files[f"/zips/{name}.zip"] = data
        monkeypatch.setitem(BEIR, name, hashlib.md5(data).hexdigest())
        return data

    return put


@pytest.fixture
def scifact(publish):
    return publish({"scifact/": "", **collection("scifact/"), "scifact/README.md": "", "__MACOSX/qrels/._test.tsv": ""})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "set"


def check(out, beside=()):
    """`out` is the whole collection, and there is nothing else beside it than `beside`."""
    assert sorted(p.name for p in out.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl", "source.json"]
    assert (out / "corpus.jsonl").read_text() == CORPUS and (out / "qrels" / "test.tsv").read_text() == TSV
    assert load_collection(out).qrels == {"q1": {"d1": 1}, "q2": {"d7": 2}}
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([out.name, *beside])


def refused(name, out, *beside):
    """fetch refuses in one line, with no folder made or left, and `beside` the only files -> the line."""
    before = sorted(out.rglob("*"))
    with pytest.raises(BadInput) as error:
        fetch(name, out)
    message = str(error.value)
    assert message and len(message.splitlines()) == 1 and sorted(out.rglob("*")) == before
    if not before:
        assert not out.is_dir() and sorted(p.name for p in out.parent.glob("*")) == sorted(beside)
    return message


def ranges(server):
    return [asked for _, _, asked, _ in server.asked]


def part_of(out, data, name="scifact"):
    out.parent.mkdir(parents=True)
    part = out.parent / f"{name}.zip.part"
    part.write_bytes(data)
    return part


# ------------------------------------------------------------------------------------------------------ the download


def test_the_table():
    assert len(set(BEIR.values())) == len(BEIR) >= 16
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in BEIR.values())


def test_fetch(server, scifact, out, capsys):
    fetch("scifact", str(out))
    check(out)
    assert server.asked == [("GET", "/zips/scifact.zip", None, None)]
    assert json.loads((out / "source.json").read_text())["name"] == "scifact"
    assert str(out) in capsys.readouterr().out


def test_a_download_is_resumed_with_the_rest_only(server, scifact, out):
    part_of(out, scifact[:700])
    fetch("scifact", out)
    check(out)
    assert ranges(server) == ["bytes=700-"]


def test_broken_connections_go_on_where_they_stopped(server, scifact, out):
    server.cuts = [300, 200, 0, 0, 0, 100, 0, 0]  # in vain three times in a row, twice: one less than too often
    fetch("scifact", out)
    check(out)
    assert ranges(server) == [None, "bytes=300-", *["bytes=500-"] * 4, *["bytes=600-"] * 3]


def test_a_server_that_ignores_range_starts_again(server, scifact, out):
    part_of(out, b"x" * 700)
    server.ranges = False
    fetch("scifact", out)
    check(out)
    assert ranges(server) == ["bytes=700-"]


def test_a_whole_part_is_not_downloaded_again(server, scifact, out):
    part_of(out, scifact)
    fetch("scifact", out)
    check(out)
    assert ranges(server) == [f"bytes={len(scifact)}-"]


@pytest.mark.parametrize("left", [b"", b"wrong", b"y" * 99999])  # served wrong; begun wrong; longer than the file (416)
def test_the_wrong_bytes_are_deleted(server, scifact, out, left):
    if left:
        part_of(out, left)
    else:
        server.files["/zips/scifact.zip"] = scifact[:-1] + b"!"
    message = refused("scifact", out)
    assert "MD5" in message and BEIR["scifact"] in message and "run again" in message
    server.files["/zips/scifact.zip"] = scifact
    fetch("scifact", out)
    check(out)


def test_a_lost_connection_keeps_what_came(server, scifact, out):
    server.cuts = [400, 0, 0, 0, 0]
    message = refused("scifact", out, "scifact.zip.part")
    assert "400" in message and "run again" in message and "scifact.zip.part" in message
    fetch("scifact", out)
    check(out)
    assert ranges(server) == [None, *["bytes=400-"] * 5]


def test_a_server_that_always_breaks_at_the_same_place_ends(server, scifact, out):
    server.ranges, server.cuts = False, [400] * 99
    assert "broke off after 400" in refused("scifact", out, "scifact.zip.part")
    assert len(server.asked) == module.TRIES + 1  # the first one brought something new


def test_busy_servers_are_asked_again_and_missing_files_are_not(server, scifact, out):
    server.statuses = [503, 429]
    fetch("scifact", out)
    check(out)
    server.asked.clear()
    message = refused("nfcorpus", out.parent / "other", "set")
    assert "/zips/nfcorpus.zip" in message and "404" in message and "DREAM_BEIR_URL" in message
    assert len(server.asked) == 1


def test_an_unreachable_server(server, out, monkeypatch):
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{free.getsockname()[1]}", "nonsense", "http://[", "http://host:port"):
            monkeypatch.setenv("DREAM_BEIR_URL", url)
            assert "DREAM_BEIR_URL" in refused("scifact", out)


@pytest.mark.parametrize("name", ["sciface", "", "../scifact", "scifact/", "mteb/scifact"])
def test_an_unknown_name_lists_the_choices(server, out, name):
    message = refused(name, out)
    assert repr(name) in message and all(choice in message for choice in BEIR) and "hub:OWNER/NAME" in message
    assert not server.asked and not out.parent.exists()


# ----------------------------------------------------------------------------------------------------- the unpacking


@pytest.mark.parametrize("evil", ["../evil", "scifact/../../evil/corpus.jsonl", "/evil", "C:/evil", "C:evil", "\\evil",
                                  "..\\evil", "../corpus.jsonl", "scifact/qrels/../../../evil.tsv"])
def test_members_outside_are_refused(publish, out, tmp_path, evil):
    publish({**collection("scifact/"), evil: "evil"})
    assert "refused" in refused("scifact", out, "scifact.zip.part")
    assert [p for p in tmp_path.rglob("*") if p.name != "scifact.zip.part"] == [out.parent]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
@pytest.mark.parametrize("name", ["scifact/qrels/dev.tsv", "scifact/other"])
def test_links_are_refused(publish, out, kind, name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    publish({**collection("scifact/"), info: "/etc/passwd"})
    assert "refused" in refused("scifact", out, "scifact.zip.part")


def test_absurd_sizes_are_refused(publish, out, monkeypatch):
    bomb = make_zip({**collection("scifact/"), "scifact/qrels/dev.tsv": "0" * 3_000_000})
    publish(bomb)
    assert "would unpack to 3,0" in refused("scifact", out, "scifact.zip.part")
    (out.parent / "scifact.zip.part").unlink()
    assert bomb.count(struct.pack("<L", 3_000_000)) == 2  # a bomb that declares 3 bytes: zipfile reads no more
    publish(bomb.replace(struct.pack("<L", 3_000_000), struct.pack("<L", 3)))
    assert "cannot be unpacked" in refused("scifact", out, "scifact.zip.part")
    (out.parent / "scifact.zip.part").unlink()
    publish(collection("scifact/"))
    monkeypatch.setattr(module, "LARGEST", 1000)
    assert "would unpack to" in refused("scifact", out, "scifact.zip.part")


def test_what_is_no_collection(publish, out):
    encrypted = bytearray(make_zip({"scifact/corpus.jsonl": CORPUS}))
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    for data in (b"no zip", bytes(encrypted)):
        publish(data)
        assert "cannot be unpacked" in refused("scifact", out, "scifact.zip.part")
        (out.parent / "scifact.zip.part").unlink()
    for gone in collection(""):
        publish({f"scifact/{k}": v for k, v in collection("").items() if k != gone})
        assert f"no {gone.replace('test', '*')} " in refused("scifact", out, "scifact.zip.part")
        (out.parent / "scifact.zip.part").unlink()


def test_several_collections_in_one(publish, out):
    publish({**collection("cqadupstack/android/"), **collection("cqadupstack/english/")}, "cqadupstack")
    fetch("cqadupstack", out)
    assert sorted(p.name for p in out.iterdir()) == ["android", "english", "source.json"]
    for folder in (out / "android", out / "english"):
        assert load_collection(folder).qrels == {"q1": {"d1": 1}, "q2": {"d7": 2}}
        assert sorted(p.name for p in folder.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]
    fetch("cqadupstack", out)
    (out / "english" / "qrels" / "test.tsv").unlink()
    assert "something else" in refused("cqadupstack", out)
    publish({**collection("cqadupstack/android/"), "cqadupstack/english/queries.jsonl": QUERIES}, "cqadupstack")
    assert "no english/corpus.jsonl" in refused("cqadupstack", out.parent / "again", "set", "cqadupstack.zip.part")


def test_a_zip_without_a_top_folder_and_with_gzipped_files(publish, out):
    packed = {f"{name}.gz": gzip.compress(text.encode()) for name, text in collection("").items()}
    publish(packed)
    fetch("scifact", out)
    assert all((out / name).read_bytes() == data for name, data in packed.items())


def test_there_is_no_half_made_folder_at_any_time(server, scifact, out, monkeypatch):
    """What a kill leaves behind is not OUT, and does not disturb the next call."""
    copy, seen, work = module.shutil.copyfileobj, [], out.with_name("set.fetching")

    def interrupted(source, target, size):
        assert not out.exists()
        seen.append(work.stat().st_ino)
        if len(seen) == 2:
            target.write(b"half")
            raise KeyboardInterrupt
        copy(source, target, size)

    monkeypatch.setattr(module.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("scifact", out)
    assert [p.name for p in out.parent.iterdir()] == ["scifact.zip.part"]
    (work / "qrels").mkdir(parents=True)  # as after a kill that no `finally` sees
    (work / "qrels" / "old.tsv").write_text("half")
    fetch("scifact", out)
    check(out)
    assert len(seen) == 5 and out.stat().st_ino == seen[-1]  # renamed, not copied
    assert ranges(server) == [None, f"bytes={len(scifact)}-"]


# ---------------------------------------------------------------------------------------------------------- the disk


@on_linux
def test_a_full_disk(server, scifact, out, monkeypatch):
    out.parent.mkdir(parents=True)
    part = out.parent / "scifact.zip.part"
    part.symlink_to("/dev/full")
    assert "No space left" in refused("scifact", out, part.name) and len(server.asked) == 1
    part.unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", full)
        assert "No space left" in refused("scifact", out, part.name)
    assert part.read_bytes() == scifact  # kept: the next call has only to unpack
    fetch("scifact", out)
    check(out)


def test_what_cannot_be_written_is_told_before_any_download(server, scifact, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below", "file/far/below"):
        with pytest.raises(BadInput, match="cannot be written|something else"):
            fetch("scifact", tmp_path / place)
    assert not server.asked and (tmp_path / "file").read_text() == "mine"


def test_what_is_there_already(server, scifact, publish, out, capsys):
    out.mkdir(parents=True)  # empty
    fetch("scifact", out)
    check(out)
    server.asked.clear()
    capsys.readouterr()
    fetch("scifact", out)
    assert "already there" in capsys.readouterr().out and not server.asked
    assert "something else" in refused("nfcorpus", out)  # it is complete, but not what is asked for
    (out / "corpus.jsonl").write_text(CORPUS[:-9])
    assert "something else" in refused("scifact", out)
    for text in ("[]", "{}", "?", '{"name": "scifact", "files": 1}', '{"name": "scifact", "files": {"x": 1}}'):
        (out / "source.json").write_text(text)
        assert "something else" in refused("scifact", out)
    assert not server.asked


# ----------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """Put a data set on the server, as the hub has it. The library is the real one, with this endpoint and a cache."""
    monkeypatch.setattr(module, "snapshot_download", functools.partial(
        huggingface_hub.snapshot_download, endpoint=server.url, cache_dir=tmp_path / "cache"))

    def put(repo, files):
        files = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
        info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
        tree = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()]
        for path in (f"/api/datasets/{repo}", f"/api/datasets/{repo}/revision/main"):
            server.files[path] = json.dumps(info).encode()
        for revision in ("main", SHA):
            server.files[f"/api/datasets/{repo}/tree/{revision}"] = json.dumps(tree).encode()
            for name, data in files.items():
                server.files[f"/datasets/{repo}/resolve/{revision}/{name}"] = data

    return put


def test_a_hub_set_with_judgments_in_lines(server, hub, out):
    hub("mteb/set", {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.jsonl": LINES,
                     "README.md": "card", "data/corpus.parquet": "PAR1"})
    fetch("hub:mteb/set", out)
    check(out)
    assert json.loads((out / "source.json").read_text())["version"] == SHA
    assert not [path for _, path, _, _ in server.asked if "README" in path or "parquet" in path]
    server.asked.clear()
    fetch("hub:mteb/set", out)
    assert not server.asked


def test_rows_and_a_corpus_may_be_files_of_a_hub_set(server, hub, tmp_path, capsys):
    rows = [{"question": "Who?", "answer": "Ada"}, {"question": "Where?", "answer": "Rome"}, {"question": "where?", "answer": "in Rome"}]
    corpus = [{"_id": "a", "text": "Ada wrote it."}, {"_id": "b", "text": "It stands in Rome."}]
    hub("me/qa", {"data/train.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus)})
    names = ["hub:me/qa/data/train.jsonl", "hub:me/qa/corpus.jsonl"]
    commands.main(["jsonl", *names, str(tmp_path / "made"), "--query-field", "question", "--target-field", "answer"])
    assert [(e.query, e.target, e.document) for e in load_examples(tmp_path / "made")] == [("Who?", "Ada", "a"), ("Where?", "Rome", "b")]
    assert "2 rows of 2 of them, 2 rows placed by BM25; left out: same question to the same document: 1" in capsys.readouterr().out
    for wrong in ("hub:me/qa/none.jsonl", "hub:me/qa", "hub:me"):
        with pytest.raises(BadInput, match="hub:me"):
            commands.main(["jsonl", wrong, names[1], str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_a_hub_set_with_both_forms_of_judgments(hub, out):
    hub("mteb/set", {**collection(""), "qrels/test.jsonl": LINES.replace("q2", "q3"), "qrels/dev.jsonl": LINES})
    fetch("hub:mteb/set", out)
    check(out)
    assert (out / "qrels" / "dev.tsv").read_text() == TSV


def test_a_hub_set_with_judgments_beside_it(hub, out):
    packed = {"corpus.jsonl.gz": gzip.compress(CORPUS.encode()), "queries.jsonl.gz": gzip.compress(QUERIES.encode())}
    hub("BeIR/set", {**packed, "set.py": "no"})
    hub("BeIR/set-qrels", {"test.tsv": TSV, "train.tsv": TSV, "README.md": "card"})
    fetch("hub:BeIR/set", out)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == [
        "corpus.jsonl.gz", "qrels/test.tsv", "qrels/train.tsv", "queries.jsonl.gz", "source.json"]
    assert all((out / name).read_bytes() == data for name, data in packed.items())
    assert (out / "qrels" / "test.tsv").read_text() == TSV


def test_a_hub_set_that_is_no_collection(hub, out):
    hub("a/parquet", {"corpus/corpus-0.parquet": "PAR1", "queries/queries-0.parquet": "PAR1"})
    assert "hub:mteb/parquet" in refused("hub:a/parquet", out)
    texts = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES}
    hub("a/bare", texts)
    assert "hub:a/bare-qrels: not on the hub" in refused("hub:a/bare", out)
    for name, score in (("s", '"1"'), ("t", "0.5"), ("u", "NaN"), ("v", "Infinity"), ("w", "null")):
        hub(f"a/{name}", {**texts, "qrels/test.jsonl": LINES.replace("2}", score + "}")})
        assert "test.jsonl:2: " in refused(f"hub:a/{name}", out)


def test_a_hub_set_that_cannot_be_had(server, hub, out, monkeypatch):
    hub("a/gated", collection(""))
    message = refused("hub:a/gated", out)
    assert ": gated; " in message and "HF_TOKEN" in message
    assert "hub:a/none: not on the hub" in refused("hub:a/none", out)
    for name in ("hub:a/b/c", "hub:", "hub:a b", "hub:/a", "hub:a/.."):
        assert "OWNER/NAME" in refused(name, out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "snapshot_download", full)
    assert "No space left" in refused("hub:a/set", out)


def test_the_hubs_own_variables_hold(server, hub, out, tmp_path):
    """In processes of their own, because the library reads them when it is imported."""
    hub("a/set", collection(""))
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}

    def run(*arguments, **more):
        code = ("import sys, types; sys.modules['torch'] = types.ModuleType('torch'); "  # its import takes seconds
                "from fetch import fetch; [fetch(*pair) for pair in zip(sys.argv[1::2], sys.argv[2::2])]")
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env={**environment, **more},
                              capture_output=True, text=True)
        assert "hf_secret" not in done.stdout + done.stderr
        return done

    assert run("hub:a/set", out).returncode == 0
    check(out)
    assert {token for _, path, _, token in server.asked if "/datasets/" in path} == {"Bearer hf_secret"}
    server.asked.clear()
    told = run("hub:a/set", out.with_name("cached"), "hub:a/other", out.with_name("other"), HF_HUB_OFFLINE="1").stderr
    check(out.with_name("cached"), ["set"])
    last = told.strip().splitlines()[-1]
    assert last.startswith("files.BadInput: hub:a/other: ") and "HF_HUB_OFFLINE" in last
    assert not server.asked
