"""A GGUF file becomes the model it was made of; a damaged one, or one that is not tested, is one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

pytest.importorskip("gguf")

from tiny_gguf import write_gguf

from posttrain.models import gguf as module
from posttrain.models.gguf import GgufError, check_file, import_file
from posttrain.models.merge import logits, probe_ids
from posttrain.models.rope import read_rope

TINY = REPOSITORY / "assets/tiny_base"
SHAPE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=24, tie_word_embeddings=False),
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def model_of(architecture):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture])
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):  # of fresh ones, all are 1 and 0, so that two could be exchanged
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def written(request, tokenizer, tmp_path_factory):
    """A source model and its file in float32."""
    model = model_of(request.param)
    return model, write_gguf(tmp_path_factory.mktemp(request.param) / "tiny.gguf", model, tokenizer)


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("one") / "tiny.gguf", model_of("qwen2"), tokenizer)


def largest(a, b):
    return (a - b).abs().max().item()


def test_a_file_becomes_the_model_it_was_made_of(written, tmp_path):
    source, file = written
    record = import_file(file, tmp_path / "out", str(TINY), "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is type(source)
    probe = probe_ids(SHAPE["vocab_size"])
    assert largest(logits(model, probe), logits(source, probe)) < 1e-5 * record.largest_logit
    assert record.logits_differ < 1e-5 * record.largest_logit
    assert record.tied is source.config.tie_word_embeddings
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert read_rope(tmp_path / "out").source == "both"
    assert config["rms_norm_eps"] == 1e-6
    assert "quantization_config" not in config
    assert (tmp_path / "out/complete.json").is_file()


@pytest.mark.parametrize(("kind", "loss"), [("F16", 0.05), ("BF16", 0.05), ("Q8_0", 0.1), ("Q4_0", 0.7)])
def test_quantised_weights_are_the_files_own(kind, loss, tokenizer, tmp_path):
    source = model_of("llama")
    file = write_gguf(tmp_path / "tiny.gguf", source, tokenizer, kind)
    record = import_file(file, tmp_path / "out", str(TINY), "bfloat16")  # checks each tensor against the file
    assert record.tensors[kind] == 2 * 7 + 2
    probe = probe_ids(SHAPE["vocab_size"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = logits(source, probe)
    assert (logits(model, probe) - expected).norm() < loss * expected.norm()


def test_a_matrix_that_is_quantised_twice_is_one_again(tokenizer, tmp_path):
    """A file with tied embeddings may hold the head too, in another quantisation."""
    source = model_of("qwen2")
    source.config.tie_word_embeddings = False
    noise = 1 + 0.05 * torch.randn_like(source.lm_head.weight)
    source.lm_head.weight = torch.nn.Parameter(source.lm_head.weight * noise)
    file = write_gguf(tmp_path / "tiny.gguf", source, tokenizer)
    assert import_file(file, tmp_path / "out", str(TINY), "float32").tied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, source.lm_head.weight)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_the_tokenizer_of_the_file_is_that_of_the_model(file, tokenizer, tmp_path):
    import_file(file, tmp_path / "out", None, "float32")
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("12 + 7 = 19\n", "Tom has 3 apples. ", tokenizer.eos_token, "<|im_start|>user\n4?"):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.eos_token == tokenizer.eos_token
    assert read.chat_template == tokenizer.chat_template


def test_a_tokenizer_of_another_model_is_refused(file, tmp_path):
    other = AutoTokenizer.from_pretrained(TINY)
    other.add_tokens([f"<{i}>" for i in range(2000)])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(GgufError, match="the model 1024 embeddings; it is of another model"):
        import_file(file, tmp_path / "out", str(tmp_path / "other"), "float32")
    shuffled = json.loads((TINY / "tokenizer.json").read_text())
    vocabulary = shuffled["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    shutil.copytree(TINY, tmp_path / "shuffled")
    (tmp_path / "shuffled/complete.json").unlink()
    (tmp_path / "shuffled/tokenizer.json").write_text(json.dumps(shuffled))
    with pytest.raises(GgufError, match=r"is 'b', in the file 'a'|is 'a', in the file 'b'"):
        import_file(file, tmp_path / "out", str(tmp_path / "shuffled"), "float32")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[: len(content) // 2], "not a whole GGUF file"),
        (lambda content: content[:100], "not a whole GGUF file"),
        (lambda content: b"", "not a whole GGUF file"),
        (lambda content: b"PK" + content[2:], "not a whole GGUF file"),
        (lambda content: content.replace(b"general.architecture", b"general.architecturf"), "not a whole GGUF file"),
    ],
)
def test_a_damaged_file_is_one_line(damage, said, file, tmp_path):
    (tmp_path / "x.gguf").write_bytes(damage(file.read_bytes()))
    with pytest.raises(GgufError, match=said) as raised:
        check_file(tmp_path / "x.gguf")
    assert "\n" not in str(raised.value)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_of_the_head_is_one_line_or_changes_nothing_that_is_read(data, file, tmp_path):
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, 4000))
    content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "x.gguf").write_bytes(content)
    try:
        assert check_file(tmp_path / "x.gguf") in module.ARCHITECTURES
    except GgufError as error:
        assert "\n" not in str(error)


def test_an_architecture_that_is_not_tested_is_refused(tokenizer, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", model_of("qwen2"), tokenizer, architecture="gemma2")
    with pytest.raises(GgufError, match="architecture 'gemma2' is not tested; expected llama, qwen2, qwen3"):
        check_file(file)


def test_a_tensor_that_has_no_place_in_the_model_is_refused(tokenizer, tmp_path):
    source = model_of("llama")
    file = write_gguf(tmp_path / "x.gguf", source, tokenizer)
    reader = module.GGUFReader(file)
    reader.tensors.append(reader.tensors[-1]._replace(name="blk.0.attn_sinks.weight"))
    with pytest.raises(GgufError, match=r"1 tensors have no place in the model, such as blk\.0\.attn_sinks"):
        module.check_tensors(source, reader, "llama", "x.gguf")


def test_a_tensor_that_was_read_otherwise_is_found(tokenizer, tmp_path):
    source = model_of("llama")
    file = write_gguf(tmp_path / "x.gguf", source, tokenizer)
    module.check_tensors(source, module.GGUFReader(file), "llama", "x.gguf")
    with torch.no_grad():
        source.model.layers[1].mlp.up_proj.weight[0, 0] = np.nextafter(1.0, 2.0)
    with pytest.raises(GgufError, match=r"blk\.1\.ffn_up\.weight and what was made of it"):
        module.check_tensors(source, module.GGUFReader(file), "llama", "x.gguf")


def test_the_command_imports_and_refuses(file, tmp_path):
    done = run_script("src/import_gguf.py", file, tmp_path / "out", "--tokenizer", TINY)
    assert done.returncode == 0, done.stderr
    assert "Every tensor is the file's own in bfloat16" in done.stdout
    for arguments, said in (
        ((file, tmp_path / "out"), "is there already"),
        ((tmp_path / "nosuch.gguf", tmp_path / "b"), "no such file"),
    ):
        refused = run_script("src/import_gguf.py", *arguments, "--tokenizer", TINY)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
