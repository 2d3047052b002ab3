"""`final/README.md`: a model card with the Hub's front matter, from a run's record and the results of its evaluations.

It is outside the mark of completeness: a card that is rewritten, or changed by hand, is no damage. Results live in its
front matter, under `model-index`, so that a card that was published and fetched again still has them.
"""

import shlex
from pathlib import Path
from typing import Any

import yaml

from posttrain import atomic, lineage
from posttrain.console import clock, interval, is_main_process, say

CARD = "README.md"
OURS = "<!-- Written by posttrain, and again after every evaluation. Remove this line to keep what you change. -->"
TASKS = {"reward_model": "text-classification", "value": "token-classification"}
Results = dict[str, dict[str, Any]]  # by benchmark: an entry of the model index


def update(final: Path, finished: list[dict[str, Any]] | None = None) -> None:
    """Write the card of a run's `final/`, with the results of an evaluation that ended beside those it has.

    A directory that is not of a finished run, as a model that was copied from one, and a card that is not ours, are
    left alone.
    """
    of_a_run = is_main_process() and final.is_dir() and (final.parent / lineage.RUN_FILE).is_file()
    record = lineage.read_lineage(final) if of_a_run else None
    if not record or not record.get("result"):
        return
    card = final / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else OURS
    if OURS not in text:
        say(f"{card}: is not of posttrain; left as it is")
        return
    results = results_of(text) | {metrics["benchmark"]: index_entry(metrics) for metrics in finished or []}
    try:
        content = render(record, results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        say(f"{card}: not written, as the record of {final} is of another version ({type(error).__name__}: {error})")
        return
    atomic.write_bytes(card, content.encode())


def results_of(card: str) -> Results:
    """The results in a card's front matter; none where it has none that can be read."""
    try:
        front = yaml.safe_load(card.split("---", 2)[1])
        entries = front["model-index"][0]["results"]
        return {entry["dataset"]["type"]: entry for entry in entries}
    except (IndexError, KeyError, TypeError, yaml.YAMLError):
        return {}


def index_entry(metrics: dict[str, Any]) -> dict[str, Any]:
    """A result in the form of the Hub's model index, from the metrics of a finished evaluation."""
    decoding, accuracy = metrics["decoding"], metrics["accuracy"]
    drawn = "greedy" if not decoding["temperature"] else f"temperature {decoding['temperature']}"
    samples = decoding["num_samples"]
    how = f"{metrics['n']} answers, {samples} a question, {drawn}, prompt {metrics['prompt']['name']}"
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": metrics["benchmark"], "name": metrics["benchmark"]},
        "metrics": [
            {
                "type": "accuracy", "value": round(accuracy["value"], 4), "name": f"accuracy {interval(accuracy)}",
                "args": {"how": how, "grader": metrics["grader"]["name"]},
            }
        ],
    }  # fmt: skip


def front_matter(record: dict[str, Any], results: Results) -> dict[str, Any]:
    """What the Hub reads of the card."""
    identity, trainer = record["identity"], record["identity"]["trainer"]
    front: dict[str, Any] = {
        "library_name": "peft" if identity.get("use_peft") else "transformers",
        "pipeline_tag": TASKS.get(trainer, "text-generation"),
        "tags": ["posttrain", "trl", trainer],
    }
    base, source = str(identity["model_name_or_path"]), record["inputs"]["dataset"].get("source") or {}
    if is_hub_name(base):
        front["base_model"] = base
    if is_hub_name(str(source.get("id"))):
        front["datasets"] = [source["id"]]
    if results:
        front["model-index"] = [{"name": record["run_id"], "results": list(results.values())}]
    return front


def is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "outputs/", "assets/", "data/"))


def render(record: dict[str, Any], results: Results) -> str:
    """The whole card."""
    front = yaml.safe_dump(front_matter(record, results), sort_keys=False, allow_unicode=True)
    title = f"# {record['run_id'].rpartition('-')[0] or record['run_id']}"
    parts = [f"---\n{front}---", OURS, title, *about(record), *result_table(results), *again(record)]
    return "\n\n".join(parts) + "\n"


def about(record: dict[str, Any]) -> list[str]:
    """Base, data with its counts, training, and what it took."""
    identity, result, dataset = record["identity"], record["result"], record["inputs"]["dataset"]
    source = dataset.get("source") or {}
    used = ", ".join(f"{count:,} {split}" for split, count in (dataset.get("used") or {}).items())
    dropped = sum((dataset.get("dropped_too_long") or {}).values())
    counts = record["parameters"].values()
    trained = sum(part["trainable"] for part in counts)
    every = trained + sum(part["frozen"] for part in counts)
    lines = [
        f"- **Base**: `{shown(str(identity['model_name_or_path']))}`, {trained:,} of {every:,} parameters trained",
        f"- **Method**: `{identity['trainer']}`, prompt `{record['prompt']}`, end token `{record['eos_token']}`",
        f"- **Data**: `{shown(str(dataset.get('path')))}` from {source.get('id', 'an unknown source')} "
        f"(licence {source.get('licence', 'unknown')}): {used or 'rows not counted'}"
        + (f"; {dropped:,} too long and left out" if dropped else ""),
        f"- **Training**: {result['steps']:,} steps, {result['tokens_seen']:,} tokens, {took(record)}",
    ]
    if result.get("last_loss") is not None:
        lines.append(f"- **Loss**: {result['first_loss']} at the first logged step, {result['last_loss']} at the last")
    return ["\n".join(lines)]


def took(record: dict[str, Any]) -> str:
    """Time, on what, and device hours."""
    seconds, gpus = record["result"]["wall_seconds"], record["hardware"]["gpus"]
    processes = record["accelerate"]["num_processes"]
    device = gpus[0] if gpus and not record["accelerate"]["use_cpu"] else "CPU"
    hours = seconds * processes / 3600
    sessions = len(record["sessions"])
    several = "" if sessions == 1 else f" in {sessions} sessions"
    return f"{clock(seconds)}{several} on {processes} × {device} ({hours:.2f} device hours)"


def result_table(results: Results) -> list[str]:
    """A row for every benchmark; a sentence where there is none yet."""
    if not results:
        return ["## Results", "Not evaluated yet."]
    rows = ["| benchmark | accuracy | how |", "|---|---|---|"]
    for name, entry in results.items():
        (metric,) = entry["metrics"]
        rows.append(f"| {name} | {metric['name'].removeprefix('accuracy ')} | {metric['args']['how']} |")
    return ["## Results", "\n".join(rows), "Intervals are of 95 %."]


def again(record: dict[str, Any]) -> list[str]:
    """The command, the commit and the recipe."""
    code, versions = record["code"], record["packages"]
    commit = code["commit"] or "not run from git"
    changed = ", with changes that were not committed" if code["dirty"] else ""
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions)
    config = record["accelerate"]["path"]
    launcher = ["accelerate", "launch", "--config_file", config] if config else ["python"]
    command = shlex.join(shown(word) for word in [*launcher, *record["argv"]])
    return [
        "## How to get it again", f"```bash\n{command}\n```", f"Commit {commit}{changed}; {packages}. The recipe:",
        f"```yaml\n{record['recipe']['text'].rstrip()}\n```",
    ]  # fmt: skip


def shown(word: str) -> str:
    """A path of this machine by its last two parts; everything else as it is."""
    return "/".join(Path(word).parts[-2:]) if word.startswith("/") else word
