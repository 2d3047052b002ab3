"""Bytes that a layer and a loss keep for the backward pass, for a token, counted from what their operations save.

A decoder layer of Llama or Qwen2 (RMSNorm, SwiGLU) saves 16h of norms and residuals in float32, and for what its matrix
products and its attention read d (2h + 2q + 2k + 4f); autocast keeps 6h more in copies. h is the hidden size, q and k
are the widths of all query and all key heads, f is the feed-forward size, d the bytes of an activation. Where the
weights themselves are half precision a norm saves a float32 copy of its input and its half result, 12h for both. Tests
hold this against what autograd saves. Korthikanti et al. 2022 (arXiv 2205.05198) count GPT's layers the same way.
"""

from dataclasses import dataclass

from posttrain.plan.shapes import Shape

FLOAT32, HALF = 4, 2
EAGER = "eager"  # writes the scores of all pairs of positions down
MASKED = "sdpa"  # takes a mask of all pairs where rows are padded or packed; the others are told where rows end
VARLEN = "varlen_sdpa"
SOFTMAX_BACKWARD = 2 * FLOAT32  # the gradient of its result, and the one that comes of it, both in float32
TILE = (4096, 32768)  # tokens and words that TRL's fused head computes at once
TILE_COPIES = 3  # of a tile in the inputs' type, where a Triton kernel works in place
PIECE = 2**24  # logits of a piece of distillation
PIECE_COPIES = 7  # of a piece in float32, beside its logits: both models' scaled and their log-softmax, the divergence
TORCH_COPIES = 7.25  # in float32 beside it, where torch does what that kernel does: counted from its operations


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, and whether autocast computes in half precision over it."""

    weight: float
    autocast: bool

    @property
    def activation(self) -> int:
        return HALF if self.autocast or self.weight == HALF else FLOAT32

    @property
    def half_weights(self) -> bool:
        """Whether nothing is float32 but what a norm computes, also where autocast finds nothing to convert."""
        return self.weight <= HALF == self.activation


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one process: rows of up to `length` tokens, packed rows one after another in a single one."""

    rows: int
    length: int
    attention: str = MASKED
    packed: bool = False
    padded: bool = True

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def span(self) -> int:
        """Positions that a position is held against: a packed micro-batch is one long row to what takes a mask."""
        return self.tokens if self.packed else self.length


def layer_bytes(shape: Shape, precision: Precision, batch: Batch) -> float:
    """What one layer keeps of a token."""
    h, q, k, f, d = shape.hidden, shape.query, shape.key, shape.feed_forward, precision.activation
    norms = 12 * h if precision.half_weights else 16 * h
    copies = 6 * h if precision.autocast and not precision.half_weights else 0
    heads = (6 if d == HALF else 8) * (q + k) if shape.head_norms else 0
    return norms + copies + heads + d * (2 * h + 2 * q + 2 * k + 4 * f) + attention_bytes(shape, precision, batch)


def attention_bytes(shape: Shape, precision: Precision, batch: Batch) -> float:
    """What attention keeps of a token beside queries, keys, values and its result."""
    d, repeated = precision.activation, 2 * (shape.query - shape.key)  # keys and values, a copy for every query head
    if batch.attention == EAGER:
        scores = FLOAT32 + (d if d < FLOAT32 else 0)  # softmax in float32, and its result in the activations' type
        return shape.heads * batch.span * scores + d * repeated
    if batch.attention == VARLEN and batch.packed:
        return d * shape.query  # results of single examples, put together
    masked = batch.attention == MASKED and (batch.packed or batch.padded)
    return FLOAT32 * shape.heads + (d * repeated if masked else 0)  # a logarithm of a sum for every head


def mask_bytes(batch: Batch, precision: Precision) -> float:
    """The mask of all pairs of positions, which all layers share."""
    pairs = batch.span * batch.tokens
    if batch.attention == EAGER:
        return pairs * precision.activation
    return pairs if batch.attention == MASKED and (batch.packed or batch.padded) else 0


def layer_work(shape: Shape, precision: Precision, batch: Batch) -> float:
    """What the backward pass of one layer holds of a token for a moment: gradients inside SwiGLU, or of the scores."""
    inside = 3 * precision.activation * shape.feed_forward
    if batch.attention != EAGER:
        return inside
    given_back = precision.activation if precision.activation < FLOAT32 else 0  # softmax's result in half, read by then
    return max(inside, (SOFTMAX_BACKWARD - given_back) * shape.heads * batch.span)


def whole_logits(shape: Shape) -> float:
    """A loss on all logits, at its largest, for a token: log-softmax and two gradients, all in float32.

    The logits themselves are gone by then, as log-softmax saves its result alone.
    """
    return 3 * FLOAT32 * shape.vocabulary


def fused_head(shape: Shape, precision: Precision, tokens: int, kernel: bool, trained: bool = True) -> float:
    """TRL's fused head at its largest: gradients of a trained head and of its input in float32, and a tile of logits.

    `kernel` says whether Triton's kernels run, as on CUDA.
    """
    tile, d = min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1]), precision.activation
    copies = TILE_COPIES * d if kernel else d + TORCH_COPIES * FLOAT32
    return FLOAT32 * (trained * shape.embedding + tokens * shape.hidden) + copies * tile


def pieces_head(shape: Shape, precision: Precision, tokens: int) -> float:
    """The offline loss of distillation at its largest: the head's gradient in float32, and the copies of a piece."""
    piece = min(PIECE, tokens * shape.vocabulary)
    return FLOAT32 * (shape.embedding + tokens * shape.hidden) + (precision.activation + PIECE_COPIES * FLOAT32) * piece
