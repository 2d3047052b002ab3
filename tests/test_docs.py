"""README and docs say what is there: links lead somewhere, names exist, metrics are explained, marked blocks run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import record, script_environment
from pages import (
    DOCS,
    LINK,
    PAGES,
    REPOSITORY,
    SPAN,
    Block,
    accelerate_keys,
    anchors,
    logged_metrics,
    make_targets,
    prose,
    recipe_keys,
    runnable_blocks,
    script_options,
)

README = REPOSITORY / "README.md"
METRICS_PAGE = DOCS / "troubleshooting.md"
page_names = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@page_names
def test_every_internal_link_leads_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_every_page_of_the_docs_is_in_the_contents_and_linked_from_the_readme():
    contents = (DOCS / "index.md").read_text()
    for page in set(DOCS.rglob("*.md")) - {DOCS / "index.md"}:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert f"\n{name}\n" in contents or page.parent != DOCS, f"{name}: not in docs/index.md"
        assert f"docs/{name}.md" in README.read_text() or page.parent != DOCS, f"{name}: not in README.md"


FOLDERS = (
    "recipes/", "src/", "accelerate_configs/", "data_prep/", "studies/", "examples/", "speed/", "slurm/", "tests/",
    "assets/", "docs/", "requirements/",
)  # fmt: skip
NOT_THERE = {"src/datasets.py", "recipes/…", "accelerate_configs/…"}  # what must not be there, and what stands for any


def named_files(text: str) -> set[str]:
    """Paths below the folders of the repository that a text names, without placeholders."""
    found = re.findall(rf"(?<![\w/.…-])(?:{'|'.join(map(re.escape, FOLDERS))})[\w./+*-]*", text)
    return {path.rstrip(".") for path in found if not re.search(r"[*]|/[xyz]\.|\.\.", path)} - NOT_THERE


@page_names
def test_every_file_that_a_page_names_exists(page):
    for name in named_files(page.read_text()):
        assert (REPOSITORY / name).exists(), f"{name}: no such file"


@page_names
def test_every_make_target_that_a_page_names_exists(page):
    named = set(re.findall(r"(?:^|`|\(|&& )make ([a-z][a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= make_targets() | {"bench-"}  # make bench-…


FOREIGN = {  # options of accelerate, sbatch, hf and ray; a faulty one in an example; one that stands for any
    "--config_file", "--num_machines", "--machine_rank", "--num_processes", "--main_process_ip", "--main_process_port",
    "--nodes", "--signal", "--local-dir", "--learning_rat", "--gradient_checkpointing", "--field", "--help",
    "--config-name", "--array", "--gpus-per-node",
    "--head", "--port", "--address",
}  # fmt: skip


@page_names
def test_every_option_that_a_page_names_is_one(page):
    """Of a script of this repository, or a key of recipes."""
    named = set(re.findall(r"(?<![\w-])(--[a-zA-Z][\w-]+)", page.read_text()))
    unknown = named - script_options() - {f"--{key}" for key in recipe_keys()} - FOREIGN
    assert not unknown, sorted(unknown)


@page_names
def test_every_key_that_a_page_gives_a_value_is_one(page):
    """`key: value` is a key of recipes, or of an accelerate config."""
    for span in SPAN.findall(prose(page)):
        if match := re.fullmatch(r"([a-z][a-z_0-9]+): .+", span.replace("\n", " ")):
            assert match[1] in recipe_keys() | accelerate_keys() | {"trainer"}, span


def explained_metrics() -> set[str]:
    return set(re.findall(r"`([\w/<>]+)`", METRICS_PAGE.read_text()))


def test_every_logged_metric_is_explained():
    """Those of TRL's trainers and of ours, by their source code."""
    explained, logged = explained_metrics(), logged_metrics()
    assert {"effective_prompts", "grad_norm", "loss", "eval_loss"} <= explained
    assert {"effective_prompts", "mfu", "hit_rate", "rewards/{}/mean", "completions/clipped_ratio"} <= logged
    unexplained = {
        name
        for name in logged
        if not any(re.fullmatch(re.escape(name).replace(r"\{\}", "[^/]+"), known) for known in explained)
    }
    assert not unexplained, f"not in {METRICS_PAGE.name}: {sorted(unexplained)}"


def test_every_reason_of_the_filter_and_every_verdict_and_reward_is_explained():
    from posttrain.data.traces.filters import REASONS
    from posttrain.grading.grader import Verdict
    from posttrain.methods.grpo.rewards import FUNCTIONS

    for names, page in ((REASONS, "data.md"), (Verdict, "grading.md"), (FUNCTIONS, "grpo.md")):
        table = re.findall(r"^\| `([\w]+)` \|", (DOCS / page).read_text(), re.MULTILINE)
        assert set(names) <= set(table), sorted(set(names) - set(table))


def test_every_recipe_and_study_is_in_the_catalogue():
    text = (DOCS / "recipes.md").read_text() + (DOCS / "pipelines.md").read_text()
    for path in [*REPOSITORY.glob("recipes/*.yaml"), *REPOSITORY.glob("studies/*.yaml")]:
        assert str(path.relative_to(REPOSITORY)) in text, path.name


BLOCKS = runnable_blocks()
FAST = [block for block in BLOCKS if not block.slow]


def checkout(directory: Path) -> Path:
    """What the commands of a page need from a checkout; code is copied, as a page may change it."""
    for name in ("recipes", "assets", "accelerate_configs", "studies"):
        (directory / name).symlink_to(REPOSITORY / name)
    for name in ("src", "data_prep", "speed"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return directory


def run(text: str, language: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a block's text where a checkout lies, with the environment's `python` first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**script_environment(config=None), "PATH": path, "PYTHONPATH": str(directory / "src")}
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=1200)


def output_of(block: Block) -> str | None:
    """What the page shows below a block, or None."""
    after = block.page.read_text().split(block.text + "```\n", 1)[1]
    shown = re.match(r"\n```\n(.*?)```", after, re.DOTALL)
    return shown[1] if shown else None


@pytest.mark.parametrize("block", FAST, ids=lambda block: f"{block.page.stem}-{block.text[:20]!r}")
def test_a_runnable_block_runs_and_prints_what_the_page_shows(block, tmp_path, capsys):
    if block.options and block.options[0].startswith("file "):
        (tmp_path / block.options[0].removeprefix("file ")).write_text(block.text)
        compile(block.text, str(block.page), "exec")
        return
    if block.language == "python":  # in this process, which has the libraries already
        exec(compile(block.text, str(block.page), "exec"), {"__name__": "__main__"})
        printed = capsys.readouterr()
        outputs = (printed.out, printed.err)
    else:
        done = run(block.text, block.language, checkout(tmp_path))
        assert done.returncode == (2 if "exit 2" in block.options else 0), done.stderr[-2000:]
        outputs = (done.stdout, done.stderr)
    if shown := output_of(block):
        assert shown in outputs, "".join(outputs)


SLOW = [block for block in BLOCKS if block.slow]


MINUTES = {"own_data"}  # nine commands, one after another

WALKS = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.exhaustive] if page.stem in MINUTES else [])
    for page in sorted({block.page for block in SLOW})
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_the_walk_through_of_a_page_runs(page, tiny_data, tmp_path):
    """All its slow blocks, one after another in one process, in a fresh checkout."""
    blocks = [block for block in SLOW if block.page == page]
    assert len({block.language for block in blocks}) == 1
    directory = checkout(tmp_path)
    if page.stem != "own_data":
        (directory / "data").symlink_to(tiny_data)
    done = run("\n".join(block.text for block in blocks), blocks[0].language, directory)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    runs = [record(path.parent) for path in directory.glob("outputs/*/run.json")]
    assert runs
    assert all(run["finished"] for run in runs)


def test_the_reward_of_the_page_is_one(tmp_path, monkeypatch):
    """The example loads as a reward, and earns what its docstring says."""
    from posttrain.grading.grader import Grade, Verdict
    from posttrain.methods.grpo.custom_rewards import load_reward

    (block,) = [b for b in FAST if "file my_rewards.py" in b.options]
    (tmp_path / "my_rewards.py").write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)
    reward = load_reward("my_rewards:short_and_right")
    grades = [Grade(Verdict.CORRECT, "1"), Grade(Verdict.WRONG, "2")]
    earned = reward(grade=grades, completion_ids=[[0] * 50] * 2, max_completion_length=[100] * 2, id=["a"] * 2)
    assert earned == [0.75, 0.0]
