"""The sizes of a run that is not loaded yet: its recipe, its accelerate config, and the config of its model."""

from dataclasses import dataclass
from typing import Any

from posttrain.plan.memory.activations import FLOAT32, HALF, VARLEN, Batch, Precision
from posttrain.plan.memory.process import FUSED, NO_HEAD, PIECES, TILED, WHOLE, Sizes
from posttrain.plan.shapes import Shape, read_shape
from posttrain.recipe.methods import find_method

RUNTIME = 620 * 2**20  # bytes of a process that has loaded the libraries and a trainer of next to nothing, measured
DTYPES = {"float32": FLOAT32, "auto": HALF, "bfloat16": HALF, "float16": HALF}
WHERE = {  # widths of the two sides of a linear layer, by the name that LoRA targets
    "q_proj": ("hidden", "query"), "k_proj": ("hidden", "key"), "v_proj": ("hidden", "key"),
    "o_proj": ("query", "hidden"), "gate_proj": ("hidden", "feed_forward"), "up_proj": ("hidden", "feed_forward"),
    "down_proj": ("feed_forward", "hidden"),
}  # fmt: skip
STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class Topology:
    """What of an accelerate config decides memory and speed."""

    processes: int = 1
    sharding: str = "none"
    autocast: bool = False
    use_cpu: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"
    offloaded: bool = False

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> "Topology":
        """config: an accelerate config as posttrain.hardware reads it"""
        kind, processes = config.get("distributed_type", "NO"), int(config.get("num_processes") or 1)
        deepspeed, toggles = config.get("deepspeed_config") or {}, config.get("dynamo_config") or {}
        if kind == "DEEPSPEED":
            sharding = STAGES[int(deepspeed.get("zero_stage", 2))]
        else:
            sharding = "fsdp" if kind == "FSDP" else "ddp" if processes > 1 else "none"
        return cls(
            processes=processes,
            sharding=sharding,
            autocast=config.get("mixed_precision") in ("bf16", "fp16"),
            use_cpu=bool(config.get("use_cpu")),
            checkpointing=bool(toggles.get("gradient_checkpointing")),
            attention=toggles.get("attn_implementation", "sdpa"),
            offloaded=deepspeed.get("offload_optimizer_device") == "cpu",
        )


def training_sizes(values: dict[str, Any], topology: Topology, shape: Shape, longest: int | None = None) -> Sizes:
    """The sizes of one process of a training run. `values` are a recipe's keys, of any trainer that trains.

    `longest` is the longest row of the dataset in tokens, where somebody counted: unpacked rows have no more.
    """
    method = find_method(values["trainer"])
    length, packed = row_length(values), bool(values.get("packing"))
    if longest and not packed and values.get("max_length"):
        length = min(length, longest)
    weight, adapter = weight_bytes(values, shape), bool(values.get("use_peft"))
    head = head_of(values, topology)
    teacher, teacher_logits = frozen_models(values, shape)
    parameters = shape.parameters - (shape.embedding if method.head == NO_HEAD and not shape.tied else 0)
    extra = memory_parameters(values, shape)
    return Sizes(
        shape=shape,
        parameters=parameters + extra,
        trainable=extra or trainable_parameters(values, shape, parameters),
        precision=Precision(weight, topology.autocast),
        batch=Batch(
            rows=method.rows * int(values.get("per_device_train_batch_size", 8)),
            length=length,
            attention=topology.attention,
            packed=packed,
            padded=not packed and topology.attention != VARLEN,
        ),
        optim=str(values.get("optim", "adamw_torch_fused")),
        checkpointing=topology.checkpointing,
        head=head,
        accumulation=int(values.get("gradient_accumulation_steps", 1)),
        adapter=adapter or extra > 0,
        sharding=topology.sharding,
        processes=topology.processes,
        offloaded=topology.offloaded,
        frozen_copies=teacher,
        head_bytes=teacher_logits + candidate_bytes(values, shape),
        runtime=RUNTIME if topology.use_cpu else 0.0,
        length_key=length_key(values),
    )


def length_key(values: dict[str, Any]) -> str:
    return "max_length" if "max_length" in values else "max_completion_length"


def row_length(values: dict[str, Any], prompt: int = 256) -> int:
    """The longest row; a prompt of a recipe that names none for it is taken for 256 tokens."""
    if values.get("max_length"):
        return int(values["max_length"])
    return prompt + int(values.get("max_completion_length") or 0)


def head_of(values: dict[str, Any], topology: Topology) -> str:
    """What computes the loss, by method and device: see the names in posttrain.plan.memory.process."""
    kind = find_method(values["trainer"]).head
    if kind != FUSED:
        return kind
    if values["trainer"] == "distill" and not values.get("on_policy"):
        return PIECES
    own = values["trainer"] in ("sft", "expert_iteration")
    if own and (topology.use_cpu or values.get("label_smoothing_factor") or values.get("loss_type", "nll") != "nll"):
        return WHOLE
    return TILED if topology.use_cpu else FUSED


def weight_bytes(values: dict[str, Any], shape: Shape) -> float:
    """Bytes of a weight, on average: four bits are for the layers' matrices alone."""
    full = DTYPES.get(values.get("dtype") or "float32", FLOAT32)
    if not (values.get("load_in_4bit") or values.get("load_in_8bit")):
        return full
    small, matrices = (0.5 if values.get("load_in_4bit") else 1.0), shape.layers * shape.matrices
    return (small * matrices + full * (shape.parameters - matrices)) / shape.parameters


def trainable_parameters(values: dict[str, Any], shape: Shape, parameters: int) -> int:
    """Values that train; freeze_patterns is not read, so that with it the count is an upper bound."""
    frozen = values.get("freeze_layers") or 0
    layers = shape.layers - min(shape.layers, len(frozen) if isinstance(frozen, list) else int(frozen))
    if values.get("use_peft"):
        targets = values.get("lora_target_modules") or ["q_proj", "v_proj"]
        names = WHERE if "all-linear" in targets else [name for name in WHERE if name in targets]
        wide = sum(sum(getattr(shape, side) for side in WHERE[name]) for name in names)
        return int(values.get("lora_r", 16)) * wide * layers
    kept = parameters - (shape.layers - layers) * shape.layer
    return kept - (shape.embedding if values.get("freeze_embeddings") else 0)


def frozen_models(values: dict[str, Any], shape: Shape) -> tuple[float, float]:
    """Bytes of a frozen model beside the one that trains, and of what it adds to the loss, for a token."""
    per_value = DTYPES.get(values.get("dtype") or "float32", FLOAT32)
    if values["trainer"] == "distill":
        teacher = read_shape(values["teacher_model_name_or_path"], values.get("teacher_model_revision"))
        return teacher.parameters * per_value, float(FLOAT32 * teacher.hidden)  # its hidden states; logits by pieces
    reference = values["trainer"] in ("dpo", "kto") and not values.get("precompute_ref_log_probs")
    reference = reference or (values["trainer"] == "grpo" and float(values.get("beta") or 0) > 0)
    return (shape.parameters * per_value if reference and not values.get("use_peft") else 0.0), 0.0


def memory_layers(values: dict[str, Any]) -> int:
    layers = values.get("memory_layers", 0)
    return len(layers) if isinstance(layers, list) else int(layers)


def memory_parameters(values: dict[str, Any], shape: Shape) -> int:
    """Values of an explicit memory: per layer its gate, its fusion and its norm (posttrain.memory.layer)."""
    if values["trainer"] != "memory_sft":
        return 0
    h, dim, rank = shape.hidden, int(values.get("knowledge_dim", 128)), int(values.get("fusion_rank") or 0)
    gate_rank, side = int(values.get("gate_rank") or 0), round(int(values["knowledge_num"]) ** 0.5)
    gate = (h + dim) * gate_rank if gate_rank else h * dim
    return memory_layers(values) * (gate + side * dim + (8 * h * rank if rank else 5 * h * h) + h)


def candidate_bytes(values: dict[str, Any], shape: Shape) -> float:
    """What the candidates of a memory take for a token: their mean embeddings in float32, kept in every such layer."""
    if values["trainer"] != "memory_sft":
        return 0.0
    candidates = int(values.get("num_candidates", 16))
    return memory_layers(values) * candidates * shape.hidden * FLOAT32 * 2.0
