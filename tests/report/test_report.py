"""The report: what lies side by side, what hostile model text becomes, and the page in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from posttrain.errors import PosttrainError
from posttrain.evaluation import results
from posttrain.evaluation.scoring import compute_metrics
from posttrain.report import content as report
from posttrain.report import formulas
from posttrain.report.content import Point
from posttrain.report.figures import draw_curves, draw_outcomes
from posttrain.report.formulas import LONGEST_TEXT, render_text
from posttrain.report.html_page import distinct_labels
from posttrain.report.measures import fifths
from posttrain.report.memory_banks import read_bank_evaluations
from posttrain.report.questions import Answers, Question, spread
from posttrain.report.round_figure import save
from posttrain.report.training_figures import draw_training

VOID = {"meta", "link", "br", "input"}
HOSTILE = [
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "]]>", "<!--",
    r"$\text{<script>alert(1)</script>}$", r"$\text{<img src=x onerror=alert(1)>}$", r"$\href{javascript:alert(1)}{x}$",
    r"$\style{background:url(//example.org)}{x}$", r"$\color{red;background:url(//example.org)}{x}$", "$x<y&z>w$",
    "&lt;b&gt; &#60;script&#62;", '"><svg onload=alert(1)>', "{{ 7*7 }} {% include 'x' %}", "\x00\x07", "\ud800",
    "${" * 3000, "\\boxed{" * 3000, "$" * 5000, "\\(" * 5000, "\\[" + "{" * 399 + "\\]", "$" + "^" * 300 + "$",
    r"$\frac{1$", r"$\left( x \right$", r"\boxed{\frac{1}{2}", r"$\begin{matrix}1&2$", "\u202egnp.exe", "a" * 100_000,
]  # fmt: skip
TEXTS = [text for text in HOSTILE if text != "\ud800"] * 2  # no UTF-8 file holds that one
N = len(TEXTS)


class Strict(HTMLParser):
    """Elements must nest, ids be unique, and nothing may be fetched, executed or open a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.text, self.urls = [], [], [], []
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id"]
        self.urls += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text.append(data)


def parse(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    assert all(url.startswith(("#", "data:")) for url in parser.urls)
    return parser


def sample(question: int, verdict: str, completion: str = "The answer is \\boxed{4}.", **more) -> dict:
    right = verdict == "correct"
    return {
        "id": f"q{question:03}", "sample": 0, "prompt_hash": "p", "completion": completion, "tokens": 10 + question,
        "finish_reason": "length" if verdict == "truncated" else "stop", "boxed": right, "format": right,
        "format_compat": right, "correct_lenient": right, "vote": 0 if right else None, "answer": "4", "gold": "4",
        "verdict": verdict, "symbolic": False, **more,
    }  # fmt: skip


def evaluate(directory: Path, samples: list[dict], limit: int | None = None, run_id: str | None = None, **more) -> Path:
    """A finished evaluation as src/eval.py leaves it."""
    directory.mkdir(parents=True)
    each = 1 + max((sample["sample"] for sample in samples), default=0)
    record = {
        "schema": results.SCHEMA_VERSION, "benchmark": directory.name, "data_sha256": "d" * 64, "limit": limit,
        "expected_samples": len(samples), "checkpoint": {"name": "Qwen2.5-1.5B", "run_id": run_id, "rope": {}},
        "grader": {"name": "posttrain", "version": "2"}, "prompt": {"name": "chat", "hash": "p", "form": "boxed"},
        "decoding": {"temperature": 0.0, "num_samples": each, "max_new_tokens": 9, "stop_token_ids": [2]},
        "backend": {"name": "hf_generate", "version": "5"}, "packages": {}, **more,
    }  # fmt: skip
    (directory / "settings.json").write_text(json.dumps(record))
    (directory / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    results.rebuild(directory)
    return directory.parent


def train(directory: Path, run_id: str, steps: int, size: int, base: str = "Qwen2.5-1.5B") -> Path:
    """A finished run as a training script leaves it."""
    directory.mkdir(parents=True)
    dataset, model = {"path": "data/x", "used": {"train": size}}, {"name": base}
    record = {
        "run_id": run_id,
        "inputs": {"dataset": dataset, "model": model},
        "result": {"steps": steps},
        "finished": "now",
    }
    (directory / "run.json").write_text(json.dumps(record))
    lines = [{"step": step, "loss": 1 / step, "reward": 0.1, "seconds/generation": 2.0} for step in (1, steps)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@given(st.text() | st.lists(st.sampled_from([*"$\\{}()[]<>&^_ x2\n", "\\frac", "\\boxed{", "\\text{"])).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_shown_and_nothing_of_it_is_markup(text):
    page = parse(str(render_text(text)))
    assert page.tags <= formulas.TAGS
    if not page.tags and len(text) <= LONGEST_TEXT:
        shown = "".join(page.text)
        assert re.sub(r"\s|\ufffd", "", shown) == re.sub(r"\s|\ufffd", "", formulas.visible(text))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(text):
    page = parse(str(render_text(text)))
    assert page.tags <= formulas.TAGS
    assert page.attributes <= formulas.ATTRIBUTES | {"title"}


@pytest.mark.parametrize(
    "text, drawn",
    [(r"so $x^2$ is", 1), (r"\boxed{\frac{1}{2}}", 1), (r"\(a\) and \[b\]", 2), (r"$$\sqrt{2}$$", 1), ("$5 and $10", 0),
     ("costs $5", 0), (r"$\frac{1$", 0), (r"$\nosuchcommand$", 0), ("$" + "x" * 500 + "$", 0), ("no formula", 0),
     (r"$\begin{pmatrix}1&2\\3&4\end{pmatrix}$", 1), ("$x$ " * 200, formulas.MOST_FORMULAS)],
)  # fmt: skip
def test_formulas_are_drawn_and_money_is_not(text, drawn):
    assert str(render_text(text)).count("<math") == drawn


def test_a_long_text_keeps_its_ends():
    text = str(render_text("start" + "x" * 50_000 + "end"))
    assert text.startswith("start") and text.endswith("end") and "44,008 characters left out" in text


def test_labels_are_as_long_as_they_must_be():
    assert distinct_labels([Path("/a/b"), Path("/a/c")]) == ["b", "c"]
    assert distinct_labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert distinct_labels([Path("/a/b"), Path("/a/b")]) == ["b", "b"]
    assert distinct_labels([]) == []


def test_results_of_one_name_and_of_different_limits_are_kept_apart(tmp_path):
    many, few = [sample(i, "correct") for i in range(6)], [sample(i, "wrong") for i in range(3)]
    first, second = tmp_path / "a/run", tmp_path / "b/run"
    evaluate(first / "gsm8k", many)
    evaluate(second / "gsm8k", few, limit=3)
    evaluate(second / "other", few, data_sha256="e" * 64)
    evaluate(first / "other", few)
    evaluations = report.read_evaluations([first, second])
    assert [evaluation.label for evaluation in evaluations] == ["a/run", "b/run"]
    lines = report.comparison_table(evaluations).split("\n")
    assert [re.split(r"\s{2,}", line)[:2] for line in lines[1:]] == [
        ["gsm8k", "6"], ["gsm8k, first 3", "3"], ["other (data dddddd)", "3"], ["other (data eeeeee)", "3"]
    ]  # fmt: skip
    assert lines[1].rstrip().endswith("-") and " - " in lines[2]


def test_differences_carry_their_refusals(tmp_path):
    evaluate(tmp_path / "a/gsm8k", [sample(i, "wrong") for i in range(20)])
    evaluate(tmp_path / "b/gsm8k", [sample(i, "correct" if i < 9 else "wrong") for i in range(20)])
    other = {"name": "r1_zero", "hash": "q", "form": "boxed"}
    evaluate(tmp_path / "c/gsm8k", [sample(i, "correct") for i in range(20)], prompt=other)
    better, refused = report.differences(report.read_evaluations([tmp_path / name for name in "abc"]))
    assert better.comparison.difference == pytest.approx(0.45)
    assert better.adjusted_p == better.comparison.p
    assert refused.comparison is None and "prompt differs" in refused.refusal


def test_curves_place_checkpoints_of_a_run_and_sizes_of_several(tmp_path):
    runs = [train(tmp_path / f"outputs/{n}", f"run-{n}", steps=n, size=n) for n in (128, 512)]
    evals = [evaluate(tmp_path / "evals/base/gsm8k", [sample(0, "wrong")])]
    for n in (128, 512):
        checkpoint = {"name": f"outputs/{n}/final", "run_id": f"run-{n}", "rope": {}}
        evals.append(evaluate(tmp_path / f"evals/{n}/gsm8k", [sample(0, "correct")], checkpoint=checkpoint))
    middle = {"name": "outputs/512/checkpoint-100", "run_id": "run-512", "rope": {}}
    evals.append(evaluate(tmp_path / "evals/512-100/gsm8k", [sample(0, "correct")], checkpoint=middle))
    evaluations, found = report.read_evaluations(evals), report.read_runs(runs)
    steps = [(point.line, point.x) for point in report.curve_over_steps(evaluations, found)]
    assert steps == [("128", 0), ("128", 128), ("512", 0), ("512", 100), ("512", 512)]
    assert [(point.x, point.evaluation.label) for point in report.curve_over_sizes(evaluations, found)] == [
        (0, "base"), (128, "128"), (512, "512")
    ]  # fmt: skip


def test_a_legend_covers_no_line(tmp_path):
    """The legend stands above all panels; every panel is a rectangle of the drawing, and so is each handle."""
    names = [f"a_benchmark_with_a_long_name_{i}" for i in range(9)]
    for run in ("base", "tuned"):
        for name in names:
            evaluate(tmp_path / run / name, [sample(0, "correct")], checkpoint={"name": run, "run_id": run, "rope": {}})
    points = [
        Point("run", x, e) for x, e in enumerate(report.read_evaluations([tmp_path / "base", tmp_path / "tuned"]))
    ]
    draw_curves(tmp_path, "over_steps", points, "step", "")
    panels, _, legend = (tmp_path / "over_steps.svg").read_text().partition('<g id="legend_1">')
    boxes = re.findall(r'<g id="patch_\d+">\s*<path d="M [\d.]+ ([\d.]+) \nL [\d.]+ [\d.]+ \nL [\d.]+ ([\d.]+)', panels)
    top = min(float(y) for box in boxes[1:] for y in box)  # the first box is the ground of the whole figure
    handles = [float(y) for y in re.findall(r'<path d="M [\d.]+ ([\d.]+) \nL', legend)]
    assert len(boxes) > 4 and len(handles) >= len(names) and max(handles) < top


def test_only_lengths_that_hold_samples_are_shown():
    alike = [sample(0, verdict, id=str(i)) for i, verdict in enumerate(["correct", "wrong"] * 10)]
    (one,) = fifths(compute_metrics(alike))
    assert (one.n, one.accuracy, one.lengths) == (20, 0.5, "10")
    several = fifths(compute_metrics([sample(i // 5, "correct") for i in range(50)]))
    assert len(several) == 5 and sum(fifth.n for fifth in several) == 50
    assert fifths({}) == []


def test_published_scores_are_those_of_the_models_and_benchmarks_at_hand(tmp_path):
    evaluations = report.read_evaluations([evaluate(tmp_path / "base/gsm8k", [sample(0, "correct")])])
    found = report.references(evaluations, [])
    assert {(entry["model"], entry["benchmark"]) for entry in found} == {("Qwen2.5-1.5B", "gsm8k")}
    for entry in yaml.safe_load(report.REFERENCES.read_text()):
        assert 0 <= entry["value"] <= 100 and entry["setting"] and entry["source"]
        assert entry.keys() <= {"model", "benchmark", "value", "spread", "setting", "source"}


def test_a_beginning_of_the_questions_holds_every_outcome():
    outcomes = ["correct"] * 50 + ["wrong"] * 3
    questions = [Question(f"{i:03}", None, "4", [Answers([sample(i, v)])]) for i, v in enumerate(outcomes)]
    ordered = spread(questions)
    assert sorted(question.id for question in ordered) == sorted(question.id for question in questions)
    assert [question.outcome for question in ordered[:6]].count(("wrong",)) == 3


def test_what_a_run_logged_is_drawn_or_named(tmp_path):
    (run,) = report.read_runs([train(tmp_path / "run", "r", 5, 5)])
    run.steps[0] |= {"mean_token_accuracy": 0.5, "text": "x", "kl": float("nan")}
    drawing, rest = draw_training(tmp_path, "training_1", run)
    assert rest == ["mean_token_accuracy"]
    assert drawing.sources == (str(tmp_path / "run/metrics.jsonl"),)
    assert (tmp_path / "training_1.png").stat().st_size > 5_000


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"accuracy": 1}', "\x00"])
def test_a_broken_result_is_named(tmp_path, content):
    (tmp_path / "a/gsm8k").mkdir(parents=True)
    (tmp_path / "a/gsm8k/metrics.json").write_text(content)
    with pytest.raises(PosttrainError, match=r"gsm8k/metrics\.json"):
        report.read_evaluations([tmp_path / "a"])


def test_dollars_in_a_name_are_no_formula(tmp_path):
    evaluations = report.read_evaluations([evaluate(tmp_path / "a$b$\\frac{/x$y$^^/gsm8k", [sample(0, "wrong")])])
    drawing = draw_outcomes(tmp_path, evaluations)
    assert "x$y$^^" in str(drawing.svg)
    run = report.read_runs([train(tmp_path / "r$u$n^{", "r", 5, 5)])[0]
    draw_training(tmp_path, "training", run)


@pytest.mark.parametrize("line", ["[1]", "3", "{}", '{"step": "1"}', "{", '{"step": NaN}'])
def test_a_bad_line_of_a_run_is_named(tmp_path, line):
    with (train(tmp_path / "run", "r", 5, 5) / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(PosttrainError, match=r"metrics\.jsonl:3: "):
        report.read_runs([tmp_path / "run"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"banks": 1, "usage": {}}', '{"banks": {"a": {}}, "usage": {}}'])
def test_a_broken_evaluation_of_banks_is_named(tmp_path, content):
    (tmp_path / "banks.json").write_text(content)
    with pytest.raises(PosttrainError, match=r"banks\.json: "):
        read_bank_evaluations(tmp_path, [tmp_path])


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report on two evaluations with hostile answers and on a run, made by the script."""
    root = tmp_path_factory.mktemp("report")
    before = [sample(i, "truncated" if i % 2 else "wrong", text) for i, text in enumerate(TEXTS)]
    after = [sample(i, "correct" if i % 3 else "wrong", text) for i, text in enumerate(TEXTS)]
    evaluate(root / "evals/base/<b>&gsm8k", before)
    evaluate(root / "evals/tuned/<b>&gsm8k", after, run_id="run-1")
    evaluate(
        root / "evals/tuned/several", [sample(i // 4, "correct" if i % 3 else "wrong", sample=i % 4) for i in range(40)]
    )
    run = train(root / "outputs/tuned", "run-1", 10, 100)
    evals = [root / "evals/base", root / "evals/tuned"]
    done = run_script(
        "src/report.py", *evals, "--runs", run, "--out", root / "page", "--title", "<i>A & B</i>", fresh=True
    )
    assert done.returncode == 0, done.stderr
    return root / "page"


@pytest.mark.slow
def test_the_page_is_sound_and_holds_everything(page):
    text = (page / "index.html").read_text()
    parsed = parse(text)
    assert parsed.tags >= {"svg", "math", "table", "details", "form"}
    assert text.count("<script>") == text.count("</script>") == 1
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"<text.*?</text>", "", text))
    for name in ("accuracy", "outcomes", "lengths", "pass_at_k", "over_steps", "training_1"):
        assert (page / f"{name}.svg").is_file() and (page / f"{name}.png").stat().st_size > 5_000
        assert f"{name}.svg" in text
    assert "evals/tuned/several/metrics.json" in text and "outputs/tuned/metrics.jsonl" in text
    assert sorted(path.name for path in page.iterdir() if path.name.startswith(".")) == []


@pytest.fixture(scope="module")
def browser() -> list[str]:
    """A headless Chromium; as root it runs only without its sandbox, which this page of ours does not need."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "query, shown",
    [("", N + 10), ("set=0&of=0&verdict=truncated", N // 2), ("set=0&of=1&to=0&change=better", N - -(-N // 3)),
     ("set=0&of=0&to=1&change=better", 0), ("set=0&of=0&to=1&change=worse", N - -(-N // 3)), ("text=onerror", 4)],
)  # fmt: skip
def test_filters_in_a_real_browser(page, browser, tmp_path, query, shown):
    command = [*browser, f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{page}/index.html#answers?{query}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert f"<output>{shown} of {N + 10} questions</output>" in done.stdout
    assert "<h1>&lt;i&gt;A &amp; B&lt;/i&gt;</h1>" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_is_drawn(page, browser, tmp_path, width):
    picture = tmp_path / "page.png"
    command = [*browser, f"--user-data-dir={tmp_path}", f"--window-size={width},1200", f"--screenshot={picture}"]
    done = subprocess.run([*command, f"file://{page}/index.html"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 20_000


MEASURE = """<script>
const wide = (element) => element.scrollWidth > element.clientWidth + 1;
document.body.dataset.page = wide(document.documentElement);
document.body.dataset.tables = [...document.querySelectorAll(".scroll")].filter(wide).length;
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width, tables", [(1280, r"0"), (390, r"\d+")])
def test_nothing_is_wider_than_the_page(page, browser, tmp_path, width, tables):
    """On a desk every table fits; on a phone wide ones scroll in their place. Measured in a copy without its policy."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (page / "index.html").read_text())
    (tmp_path / "measured.html").write_text(text.replace("</body>", MEASURE))
    command = [*browser, f"--user-data-dir={tmp_path}", f"--window-size={width},1200", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/measured.html"], capture_output=True, text=True, timeout=120)
    assert re.search(rf'<body data-page="false" data-tables="{tables}">', done.stdout)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for name in "ab":
        figure = Figure()
        figure.subplots().fill_between([0, 1, 2], [0, 1, 0], [1, 2, 1], alpha=0.3)
        (tmp_path / name).mkdir()
        save(figure, tmp_path / name, "curves")
    for file in ("curves.svg", "curves.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
