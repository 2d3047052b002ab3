"""A GGUF file as a model directory: weights dequantised, tied matrices tied again, each tensor held against the file.

transformers reads the file. What it leaves out without a word (a tensor that it does not know, the scaling of a rotary
base) is refused here, and each written tensor must be what the `gguf` package itself dequantises.
"""

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata

from posttrain import atomic
from posttrain.data.tokenise import open_tokenizer
from posttrain.errors import PosttrainError
from posttrain.models import checkpoints, loading
from posttrain.models.merge import TOLERANCE, largest, logits, probe_ids
from posttrain.models.rope import check_live, write_both_forms

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # those that the tests import
RECORD_FILE = "gguf.json"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FILE_EMBEDDINGS, FILE_HEAD = "token_embd.weight", "output.weight"
# Relative distance of embeddings and head below which they are one matrix, quantised twice. Two bits a weight lose a
# quarter; matrices that have nothing to do with each other are 1.4 apart.
TIED = 0.3
DIGITS_KEPT = 6  # of a number the file keeps as float32: 1e-6, not 9.999999974752427e-07


class GgufError(PosttrainError):
    """A file that cannot be imported, and why."""


@dataclass(frozen=True)
class Imported:
    """What an import was: digest and architecture of the file, how many tensors of which type, what was made of them.

    `logits_differ` is the largest difference of logits between the written model and the file's weights in float32, on
    random tokens; it is what rounding to `dtype` does.
    """

    file: str
    sha256: str
    architecture: str
    tensors: dict[str, int]
    tied: bool
    dtype: str
    tokenizer: str
    logits_differ: float
    largest_logit: float


def check_file(path: Path) -> str:
    """The architecture of a GGUF file; raises GgufError where it is none, is cut, or needs what is not tested."""
    if not path.is_file():
        raise GgufError(f"{path}: no such file; expected a GGUF file")
    try:
        values, names = read_gguf_metadata(str(path))
        GGUFReader(path)  # also looks where the tensors lie
    except Exception as error:  # each of two readers raises whatever a damaged byte leads to
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise GgufError(f"{path}: not a whole GGUF file ({reason}); download it again") from error
    architecture = values["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise GgufError(f"{path}: architecture {architecture!r} is not tested; expected {', '.join(ARCHITECTURES)}")
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    untested = {
        "mixture of experts": values.get(f"{architecture}.expert_count", 0) > 0,
        "a scaled rotary base": scaling != "none" or "rope_freqs.weight" in names,
        "one part of several files": values.get("split.count", 1) > 1,
        "a model of Mistral": architecture == "llama" and "mistral" in str(values.get("general.name", "")).lower(),
    }
    for what, found in untested.items():
        if found:
            raise GgufError(f"{path}: is {what}, which is not tested; import the model from its safetensors")
    return architecture


def import_file(path: Path, out: Path, tokenizer: str | None, dtype: str) -> Imported:
    """Write `out` whole or not at all; raises GgufError where a tensor is not that of the file.

    tokenizer: a directory or a name on the hub; None reads it from the file    dtype: of the written weights
    """
    architecture = check_file(path)
    if out.exists():
        raise GgufError(f"{out}: is there already; choose another directory")
    reader = GGUFReader(path)
    words = read_tokenizer(path, tokenizer)
    check_tokenizer(reader, words, tokenizer)
    model = read_model(path, reader, architecture)
    tied = model.config.tie_word_embeddings
    written = save(model, words, out.with_name(f".{out.name}.unfinished"), dtype)
    try:
        back = loading.load_model(loading.read_checkpoint(str(written)), dtype)
        check_tensors(back, reader, architecture, str(path))
        probe = probe_ids(len(words))
        expected = logits(model, probe)
        difference = largest(logits(back.float(), probe) - expected)
        limit = TOLERANCE * largest(expected)
        if dtype == "float32" and difference > limit:
            raise GgufError(f"{path}: logits as written differ by {difference:.3g}, expected at most {limit:.3g}")
        record = Imported(
            path.name, atomic.sha256_file(path), architecture,
            dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)), tied, dtype,
            tokenizer or "of the file", difference, largest(expected),
        )  # fmt: skip
        atomic.write_json(written / RECORD_FILE, asdict(record))
        checkpoints.mark_complete(written)
        written.rename(out)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise
    return record


def read_model(path: Path, reader: GGUFReader, architecture: str) -> PreTrainedModel:
    """The file's weights in float32, as a plain model without a trace of their quantisation."""
    directory, name = str(path.parent), path.name
    config = AutoConfig.from_pretrained(directory, gguf_file=name, trust_remote_code=False)
    key_length = reader.get_field(f"{architecture}.attention.key_length")
    if key_length is not None and hasattr(config, "head_dim"):  # transformers 5.23 takes Qwen3's default for it
        config.head_dim = int(key_length.contents())
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.{DIGITS_KEPT}g}")
    loaded = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=name, config=config, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True), trust_remote_code=False,
    )  # fmt: skip
    weights = dict(loaded.state_dict())
    del loaded
    config = AutoConfig.for_model(config.model_type, **plain_values(config))
    embeddings, head = weights[EMBEDDINGS], weights[HEAD]
    if (embeddings - head).norm() < TIED * head.norm():
        config.tie_word_embeddings = True
        weights[EMBEDDINGS] = weights[HEAD] = embeddings if stores_better(reader) else head
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise GgufError(f"{path}: tensors missing: {missing}, unknown: {unexpected}; it is not a whole {architecture}")
    model.tie_weights()
    check_live(model, str(path))
    return model


def plain_values(config: Any) -> dict[str, Any]:
    """A configuration's values without what reading it from a GGUF file left there."""
    left = (
        "model_type",
        "quantization_config",
        "_name_or_path",
        "_model_name_or_path",
        "dtype",
        "transformers_version",
    )
    return {key: value for key, value in config.to_dict().items() if key not in left}


def stores_better(reader: GGUFReader) -> bool:
    """Whether the file keeps the embeddings in more bits a weight than the head, or has no head."""
    bits = {}
    for tensor in reader.tensors:
        if tensor.name in (FILE_EMBEDDINGS, FILE_HEAD):
            block, size = GGML_QUANT_SIZES[tensor.tensor_type]
            bits[tensor.name] = size / block
    return bits[FILE_EMBEDDINGS] > bits.get(FILE_HEAD, 0.0)


def read_tokenizer(path: Path, other: str | None) -> Any:
    """The tokenizer of a directory or of the hub, or the one in the file; raises PosttrainError where it is none."""
    if other:
        return open_tokenizer(other)
    try:
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    except Exception as error:  # the file may have none, or one that transformers does not know
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise GgufError(f"{path}: has no tokenizer that can be read ({reason}); name one: --tokenizer DIR") from error


def check_tokenizer(reader: GGUFReader, tokenizer: Any, other: str | None) -> None:
    """Raise GgufError where the tokenizer has other words than the file, or more than the model has embeddings."""
    where = other or "the file's own tokenizer"
    rows = next(int(t.shape[1]) for t in reader.tensors if t.name == FILE_EMBEDDINGS)
    if len(tokenizer) > rows:
        raise GgufError(f"{where}: has {len(tokenizer)} tokens, the model {rows} embeddings; it is of another model")
    field = reader.get_field("tokenizer.ggml.tokens")
    if field is None:
        return
    known = field.contents()
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if token is not None and token != known[index]:
            raise GgufError(
                f"{where}: token {index} is {token!r}, in the file {known[index]!r}; it is of another model"
            )


def save(model: PreTrainedModel, tokenizer: Any, directory: Path, dtype: str) -> Path:
    """Weights of `dtype`, tokenizer, and a generation config that ends at the tokenizer's end."""
    shutil.rmtree(directory, ignore_errors=True)
    loading.set_generation_end(model, tokenizer)
    copy = AutoModelForCausalLM.from_config(model.config, dtype=getattr(torch, dtype), trust_remote_code=False)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_both_forms(directory)
    return directory


def check_tensors(model: PreTrainedModel, reader: GGUFReader, architecture: str, where: str) -> None:
    """Raise GgufError unless every parameter is its dequantised tensor to the bit, and no tensor is left over."""
    config = model.config
    names = get_tensor_name_map(
        next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture), config.num_hidden_layers
    )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    left = set(stored)
    for key, parameter in model.state_dict().items():
        base, _, suffix = key.rpartition(".")
        name = f"{names.get_name(base)}.{suffix}"
        if key in (EMBEDDINGS, HEAD) and config.tie_word_embeddings:
            left -= {FILE_EMBEDDINGS, FILE_HEAD}
            name = FILE_EMBEDDINGS if stores_better(reader) else FILE_HEAD
        if name not in stored:
            raise GgufError(f"{where}: has no tensor {name} for {key}; it is not a whole model")
        found = torch.from_numpy(dequantize(stored[name].data, stored[name].tensor_type).copy())
        if architecture == "llama" and (heads := heads_of(name, config)):
            found = unpermuted(found, heads)
        if not torch.equal(found.to(parameter.dtype).reshape(parameter.shape), parameter):
            raise GgufError(f"{where}: {name} and what was made of it, {key}, differ; this release cannot import it")
        left.discard(name)
    if left:
        raise GgufError(f"{where}: {len(left)} tensors have no place in the model, such as {sorted(left)[0]}")


def heads_of(name: str, config: Any) -> int | None:
    """Heads whose rows a GGUF file of Llama keeps in another order, None for other tensors."""
    if ".attn_q." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".attn_k." in name else None


def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as transformers rotates them: the two halves of a head apart, which Llama's files keep interleaved."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
