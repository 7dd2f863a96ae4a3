"""The commands of `python data.py`, which make or fetch collections, and their arguments.

    python data.py --help
    python data.py split --help
"""
import argparse
import sys
from importlib import import_module

OUT = {"out": dict(help="the folder to make; it must be new")}
COMMANDS = {  # name: (module, function, what it does, its arguments; None: the module's own `add_options(parser)` adds them)
    "beir": ("fetch", "fetch", "fetch a public collection in BEIR layout", {
        "name": dict(help="one of BEIR's names (an unknown one lists them), or hub:OWNER/NAME"),
        "out": dict(help="the folder to make")}),
    "squad": ("convert", "squad", "SQuAD's JSON, version 1 or 2, as a training folder", {
        "file": dict(help="such as train-v2.0.json"), **OUT}),
    "qrels": ("convert", "qrels", "a BEIR folder's judgments, and a file of answers, as a training folder", {
        "folder": dict(help="corpus.jsonl, queries.jsonl and qrels/"),
        "answers": dict(help='JSON lines {"_id": query id, "answer" or "target": text}'), **OUT,
        "--split": dict(default="train", help="which judgments: qrels/SPLIT.tsv")}),
    "jsonl": ("convert", "jsonl", "rows of questions and answers, and a corpus, as a training folder", {
        "rows": dict(help='JSON lines {"query", "target"}, with "document", an id, or without; a file, or hub:OWNER/NAME/FILE'),
        "corpus": dict(help='JSON lines {"_id", "title", "text"}, or a folder with such a corpus.jsonl'), **OUT,
        **{f"--{name}-field": dict(default=name, help=f"what the rows call the {name}")
           for name in ("query", "target", "document")},
        "--loose": dict(action="store_true", help="where the target stands literally in none of BM25's ten best documents, "
                                                  "take the first instead of no row: for answers in free form")}),
    "corpus": ("corpus", "make_folder", "rows from raw documents alone, which ask about themselves, as a training folder", None),
    "split": ("convert", "split", "cut a part to choose settings on off a training folder", {
        "data": dict(help="a training folder"), **OUT,
        "--share": dict(type=float, default=0.06, help="of the documents, for dev"),
        "--seed": dict(type=int, default=0, help="decides which")})}


def main(argv=None):
    """Run one command; its module is loaded when it is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="data.py", description="Make or fetch collections.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in argv[:1] if argv and argv[0] in COMMANDS else COMMANDS:
        module, function, told, arguments = COMMANDS[name]
        module = import_module(module)
        one = commands.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if arguments is None:
            module.add_options(one)
        for argument, settings in (arguments or {}).items():
            one.add_argument(argument, **settings)
        one.set_defaults(command=getattr(module, function))
    args = vars(parser.parse_args(argv))
    args.pop("command")(**args)
