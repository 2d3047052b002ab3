"""What is secret is neither printed nor stored: in errors, records, recipes and command lines."""

import json

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain import lineage
from posttrain.errors import ArgumentParser, PosttrainError, run_script
from posttrain.hardware import HardwareError, parse_config
from posttrain.recipe.methods import METHODS
from posttrain.recipe.reader import RecipeError, read_recipe
from posttrain.secrets import MASK, masked, masked_arguments, masked_file, masked_text, names_secret

SECRET = "correct-horse-9"
TOKEN = "hf_" + "aBcD1234" * 4
EVAL = str(REPOSITORY / "recipes/eval_greedy.yaml")
ASK = [EVAL, "--model", "m/m", "--benchmarks", "tiny_1step"]


@pytest.mark.parametrize(
    "key",
    ["hub_token", "HF_TOKEN", "--hub-token", "WANDB_API_KEY", "apikey", "password", "db_passwd", "client_secret",
     "aws_secret_access_key", "Authorization", "server.token", "credentials", "private-key"],
)  # fmt: skip
def test_keys_that_name_a_secret(key):
    assert names_secret(key)
    assert masked({key: SECRET}) == {key: MASK}
    assert masked({"outer": [{key: SECRET}]}) == {"outer": [{key: MASK}]}


def test_keys_of_recipes_name_none():
    fields = {key for method in METHODS.values() for key in method.fields}
    assert {key for key in fields if names_secret(key)} == {"hub_token"}
    for path in [*(REPOSITORY / "recipes").glob("*.yaml"), *(REPOSITORY / "accelerate_configs").glob("*.yaml")]:
        assert masked_file(path.read_text()) == path.read_text()


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"http://user:{SECRET}@host:8000/v1", "http://***@host:8000/v1"),
        (f"https://{TOKEN}@hub.co/x", "https://***@hub.co/x"),
        (f"s3://b/k?X-Amz-Signature={SECRET}&n=3", "s3://b/k?X-Amz-Signature=***&n=3"),
        (f"https://h/?api_key={SECRET}", "https://h/?api_key=***"),
        (f"unrecognized arguments: --hub_token {SECRET}", "unrecognized arguments: --hub_token ***"),
        (f"x --wandb-key={SECRET} --seed 3", "x --wandb-key=*** --seed 3"),
        (f"bad token {TOKEN}.", "bad token ***."),
        ("hf://datasets/a/b@main", "hf://datasets/a/b@main"),
        ("--eos_token <|im_end|> --max_tokens 3", "--eos_token <|im_end|> --max_tokens 3"),
        ("row 3: x=4 and y:5 @ home", "row 3: x=4 and y:5 @ home"),
    ],
)
def test_credentials_in_texts(text, shown):
    assert masked_text(text) == shown


def test_a_command_line_keeps_its_words():
    words = ["sft.py", "r.yaml", "--hub_token", SECRET, f"--api-key={SECRET}", "--eos_token", "<|im_end|>", "--token"]
    assert masked_arguments(words) == ["sft.py", "r.yaml", "--hub_token", MASK, f"--api-key={MASK}", *words[5:]]
    assert masked_arguments(["--token", "--seed", "3"]) == ["--token", "--seed", "3"]


def test_a_file_is_masked_line_by_line():
    text = f"a: 1\nhub_token: {SECRET}\n- password: '{SECRET}'\neos_token: <|im_end|>\n# see https://u:{SECRET}@h\n"
    assert masked_file(text).split("\n") == [
        "a: 1", "hub_token: ***", "- password: ***", "eos_token: <|im_end|>", "# see https://***@h", "",
    ]  # fmt: skip


@given(st.text(max_size=200))
def test_masking_is_stable(text):
    assert masked_text(masked_text(text)) == masked_text(text)
    assert masked_file(masked_file(text)) == masked_file(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", SECRET],
        [f"--hub_token={SECRET}"],
        ["--hub_tokne", SECRET],
        ["--my_password", SECRET],
        ["--env", f"{{WANDB_API_KEY: {SECRET}}}"],
        ["--server", f"http://user:{SECRET}@host:8000"],
        ["--prompt", TOKEN],
        ["--seed", "1", "--seed", TOKEN],
        [TOKEN],
    ],
)
def test_a_command_line_with_a_secret_is_refused_without_it(arguments):
    with pytest.raises(RecipeError) as raised:
        read_recipe([*ASK, *arguments], "eval")
    assert SECRET not in str(raised.value) and TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        f"hub_token: {SECRET}",
        f"hub_token: {SECRET}\nhub_token: {SECRET}",
        f"wandb_api_key: '{SECRET}'",
        f"server: http://user:{SECRET}@host",
        f"prompt: chat  # {TOKEN}",
        f"env: {{PASS: {SECRET}}}",
        f'server: "http://user:{SECRET}@host',  # not YAML: the fault must not quote the line
        f"token: {SECRET}: x",
    ],
)
def test_a_recipe_with_a_secret_is_refused_without_it(tmp_path, line):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"trainer: eval\nmodel: m/m\n{line}\n")
    with pytest.raises(RecipeError) as raised:
        read_recipe([str(path)], "eval")
    assert SECRET not in str(raised.value) and TOKEN not in str(raised.value)


def test_a_machine_config_that_is_not_yaml_is_not_quoted():
    with pytest.raises(HardwareError, match="config:3: not YAML") as raised:
        parse_config("config", f"a: 1\ntoken: 'x: {SECRET}: y\n")
    assert SECRET not in str(raised.value)


def test_a_record_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--api_key", SECRET, f"https://u:{SECRET}@h"])
    identity = {"seed": 0, "vllm_server_base_url": f"http://u:{SECRET}@h"}
    details = {"recipe": {"text": f"seed: 0\ntoken: {SECRET}\n"}, "arguments": {"hub_token": SECRET, "n": 3}}
    record = lineage.start_record(tmp_path, identity, details)
    assert SECRET not in (tmp_path / "run.json").read_text() and SECRET not in json.dumps(record)
    assert record["arguments"] == {"hub_token": MASK, "n": 3}
    assert lineage.claim(tmp_path, identity) == record  # the same run, whatever its password is now
    assert lineage.claim(tmp_path, identity | {"vllm_server_base_url": "http://u:other@h"}) == record


@pytest.mark.parametrize("arguments", [["--hub_token", SECRET], [f"--hub-token={SECRET}"], [TOKEN], ["--n", TOKEN]])
def test_refused_arguments_show_no_secret(capsys, arguments):
    parser = ArgumentParser()
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    shown = capsys.readouterr().err
    assert MASK in shown and SECRET not in shown and TOKEN not in shown


def test_every_command_parses_so():
    for path in [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "data_prep").glob("*.py")]:
        assert path.name == "errors.py" or "argparse.ArgumentParser" not in path.read_text(), path


@pytest.mark.parametrize("error", [PosttrainError, OSError])
def test_an_error_shows_no_secret(capsys, error):
    def main() -> None:
        raise error(f"http://user:{SECRET}@host: no answer")

    with pytest.raises(SystemExit):
        run_script(main)
    assert "http://***@host: no answer" in capsys.readouterr().err
