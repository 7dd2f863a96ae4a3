"""Public test collections: BEIR's own zips, and data sets on the Hugging Face hub that have the BEIR layout.

    python data.py beir scifact beir/scifact              # a name of BEIR below
    python data.py beir hub:mteb/scifact beir/scifact     # any data set on the hub

All or nothing: a folder beside OUT is filled, then renamed. A download that breaks off goes on where it stopped.
DREAM_BEIR_URL names a mirror of BEIR's zips; the hub's own variables (HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN) hold. Left
out: sets one must ask for (BioASQ, Signal-1M, TREC-NEWS, Robust04) or without a published MD5 (nq-train), and parquet.
"""
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from tqdm import tqdm

from data import find_file, read_jsonl
from files import BadInput, write_json

BASE = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
BEIR = {  # NAME: the MD5 of BASE/NAME.zip, as published; cqadupstack is 12 collections, OUT/android and so on
    "msmarco": "444067daf65d982533ea17ebd59501e4", "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d", "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114", "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99", "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78", "quora": "18fb154900ba42a600f84b839c173167",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c", "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03", "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1", "germanquad": "95a581c3162d10915a418609bcce851b"}
TRIES, PAUSE, TIMEOUT = 4, 0.5, 30  # attempts in vain; seconds between them, doubling; seconds of silence
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)  # no trouble of the network
BLOCK, LARGEST, DENSEST = 1 << 20, 100e9, 200  # bytes at a time; bytes that a zip may unpack to, and times its own size
MEMBER = re.compile(r"(.*/)?((?:corpus|queries)\.jsonl(?:\.gz)?|qrels/[^/.][^/]*\.tsv(?:\.gz)?)")
QRELS = ("*.tsv", "*.tsv.gz", "*.jsonl")


def fetch(name, out):
    """A name of BEIR, or hub:OWNER/NAME -> `out` with corpus.jsonl, queries.jsonl and qrels/ in it. Raises BadInput."""
    if not name.startswith("hub:") and name not in BEIR:
        raise BadInput(f"there is no data set {name!r}; choose one of {', '.join(BEIR)}, or hub:OWNER/NAME")
    out = Path(out).resolve()
    if is_fetched(out, name):
        print(f"{out}: {name} is already there")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: something else is there; name a folder that is new or empty")
    work, part = Path(f"{out}.fetching"), out.parent / f"{name}.zip.part"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir()  # before any download: a place that cannot be written is told at once
        if name in BEIR:
            version = download(name, part)
            unpack(part, work)
        else:
            version = from_hub(name[4:], work)
        for folder in [f for f in work.iterdir() if f.is_dir() and f.name != "qrels"] or [work]:
            for needed in ("corpus.jsonl", "queries.jsonl", "qrels/*.tsv"):
                if not any(folder.glob(needed)) and not any(folder.glob(f"{needed}.gz")):
                    raise BadInput(f"{name}: no {folder.relative_to(work) / needed} in what was downloaded")
        files = {str(f.relative_to(work)): f.stat().st_size for f in sorted(work.rglob("*")) if f.is_file()}
        write_json(work / "source.json", {"name": name, "version": version, "files": files})
        work.replace(out)
        part.unlink(missing_ok=True)
    except (BadZipFile, RuntimeError) as error:  # of a kind that zipfile cannot read: the MD5 is right
        raise BadInput(f"{part}: cannot be unpacked ({error})") from None
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error}); make room or name another folder, and run again: "
                       "what was downloaded is kept") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{out}: {name}, {len(files)} files, {sum(files.values()):,} bytes")


def is_fetched(out, name):
    """Whether `out` is `name` with all its files at their length: another set's folder must not pass for it."""
    try:
        source = json.loads((out / "source.json").read_bytes())
        return source["name"] == name and all((out / f).stat().st_size == n for f, n in source["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no such file, or not one of ours
        return False


def download(name, part):
    """Complete the file `part` with NAME.zip, over several connections if need be -> its MD5, the published one."""
    base, failures = (os.environ.get("DREAM_BEIR_URL") or BASE).rstrip("/"), 0
    if not base.startswith(("http://", "https://")) or set(base) & set("@?#"):  # a password would end up in messages
        raise BadInput("DREAM_BEIR_URL must be http(s)://HOST/PATH, without a name, password or query")
    url = f"{base}/{name}.zip"
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            receive(url, part, have)
            break
        except (OSError, HTTPException, ValueError) as error:  # silence, a reset, half a header, no such address
            code = getattr(error, "code", None)
            if getattr(error, "errno", None) in DISK:
                raise
            if code == 416 and have:
                break  # nothing is left to ask for; the MD5 decides
            if code and code < 500 and code not in (408, 429):
                raise BadInput(f"{url}: the server answers {code}; DREAM_BEIR_URL names a mirror") from None
            got = part.stat().st_size if part.exists() else 0
            failures = 0 if got > have else failures + 1
            if failures == TRIES:
                rest = f"run again to go on after the {got:,} bytes of {part}" if got else "check the network"
                why = getattr(error, "reason", error)
                raise BadInput(f"{url}: {why}; {rest}, or set DREAM_BEIR_URL to a mirror") from None
            time.sleep(PAUSE * 2**failures)
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == BEIR[name]:
        return found
    part.unlink()
    raise BadInput(f"{url}: its MD5 is {found}, not {BEIR[name]}: damaged or changed, so deleted; run again")


def receive(url, part, have):
    """One connection: append to `part` what comes after its first `have` bytes. OSError when it breaks off."""
    with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT) as response:
        have = have if response.status == 206 else 0  # a server that ignores Range sends all of it again
        total = have + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with (open(part, "ab" if have else "wb") as file,
              tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True) as bar):
            while block := response.read(BLOCK):
                bar.update(file.write(block))
            have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke off after {have:,} of {total:,} bytes")


def unpack(path, folder):
    """Unpack a zip's collections: NAME/corpus.jsonl -> corpus.jsonl; where there are several, NAME/SUB/ -> SUB/."""
    members = {}  # (home, file) -> ZipInfo
    with ZipFile(path) as archive:
        for info in archive.infolist():
            member = PureWindowsPath(info.filename)  # knows both kinds of slashes, and drives
            kind = stat.S_IFMT(info.external_attr >> 16)
            if member.anchor or ".." in member.parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadInput(f"{path}: refused, because {info.filename!r} is a link or lies outside the folder")
            if match := MEMBER.fullmatch(member.as_posix()):
                members[match[1] or "", match[2]] = info
        total = sum(info.file_size for info in members.values())  # zipfile reads no more than a member declares
        if total > min(LARGEST, DENSEST * path.stat().st_size):
            raise BadInput(f"{path}: refused, because it would unpack to {total:,} bytes")
        several = len({home for home, _ in members}) > 1
        for (home, name), info in members.items():
            target = folder / (PurePosixPath(home).name if several else "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with (archive.open(info) as packed, open(target, "xb") as file,
                  tqdm.wrapattr(packed, "read", info.file_size, desc=f"unpacking {home}{name}") as source):
                shutil.copyfileobj(source, file, BLOCK)


def from_hub(repo, folder):
    """Copy a data set of the hub into `folder` -> its commit. Judgments: in qrels/, or in a data set REPO-qrels."""
    texts = ("corpus.jsonl", "queries.jsonl")
    home = snapshot(repo, *texts, *(f"{name}.gz" for name in texts), *(f"qrels/{pattern}" for pattern in QRELS))
    for path in (find_file(home, name) for name in texts):
        if not path.is_file():
            raise BadInput(f"hub:{repo}: no {path.name} there; parquet is not read, try hub:mteb/{repo.split('/')[-1]}")
        shutil.copyfile(path, folder / path.name)
    qrels = home / "qrels"
    if not any(any(qrels.glob(pattern)) for pattern in QRELS):
        qrels = snapshot(f"{repo}-qrels", *QRELS)
    (folder / "qrels").mkdir()
    for path in (*qrels.glob("*.tsv"), *qrels.glob("*.tsv.gz")):
        shutil.copyfile(path, folder / "qrels" / path.name)
    for path in (p for p in qrels.glob("*.jsonl") if not find_file(folder / "qrels", f"{p.stem}.tsv").is_file()):
        judgments = []
        for number, row in read_jsonl(path, "query-id", "corpus-id"):
            if not isinstance(row.get("score"), int | float) or row["score"] % 1:
                raise BadInput(f"{path}:{number}: the field 'score' is missing or not a whole number")
            judgments.append((row["query-id"], row["corpus-id"], int(row["score"])))
        with open(folder / "qrels" / f"{path.stem}.tsv", "w", encoding="utf-8", newline="") as file:
            write_qrels(file, judgments)
    return home.name


def write_qrels(file, judgments):
    """(query id, document id, relevance) into an open file, as BEIR's are: csv with tabs, below a header (data.load_qrels reads them)."""
    lines = csv.writer(file, delimiter="\t", lineterminator="\n")
    lines.writerow(("query-id", "corpus-id", "score"))
    lines.writerows(judgments)


def local(name):
    """A file, or hub:OWNER/NAME/FILE, which is one of a data set on the hub -> its path here. Raises BadInput."""
    if not str(name).startswith("hub:"):
        return name
    owner, repo, file = (name[4:].split("/", 2) + ["", ""])[:3]
    path = snapshot(f"{owner}/{repo}", file) / file
    if not file or not path.is_file():
        raise BadInput(f"{name}: not a file of that data set; name it as hub:OWNER/NAME/FILE")
    return path


def snapshot(repo, *patterns):
    """A data set's files that match, downloaded or from the hub's own cache -> their folder."""
    try:
        return Path(snapshot_download(repo, repo_type="dataset", allow_patterns=list(patterns)))
    except GatedRepoError:
        why = "gated; accept its conditions on the hub, then set HF_TOKEN"
    except RepositoryNotFoundError:
        why = "not on the hub; check the name, or set HF_TOKEN if it is private"
    except HFValidationError:
        why = "not of the form hub:OWNER/NAME"
    except Exception as error:  # of many libraries; its text may hold a signed address, so only its name is told
        if getattr(error, "errno", None) in DISK:
            raise
        why = f"the hub cannot be reached ({type(error).__name__}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    raise BadInput(f"hub:{repo}: {why}")
