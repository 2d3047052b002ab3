"""A tiny world of facts, and a random network to be frozen: what it then answers right can only come from its memory.

Every fact joins a relation, a first and a last name with one of 64 places: `home of ada berg is kona`. A question is
the same without the place. Training and validation ask about the same rows, but no wrong option of one is an option of
the other; so a row edited to a validation option states what training never said.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from posttrain.data.rows import row_id

RELATIONS = ("home", "school", "grave", "garden")
FIRST = [
    "ada",
    "ben",
    "cleo",
    "dan",
    "eva",
    "finn",
    "gita",
    "hugo",
    "iris",
    "jon",
    "kaia",
    "leo",
    "mona",
    "nils",
    "olga",
    "paul",
]
LAST = [
    "berg",
    "chan",
    "diaz",
    "evans",
    "frei",
    "gupta",
    "holm",
    "ito",
    "jung",
    "kern",
    "lund",
    "mori",
    "nash",
    "otto",
    "pratt",
    "quinn",
]
PLACES = [
    a + b
    for a in ("ko", "ru", "mi", "sa", "lo", "ve", "du", "ta")
    for b in ["na", "ra", "li", "mo", "zu", "pe", "vik", "sk"]
]
PAD, END = "<pad>", "<end>"
OTHERS = {"train": 7, "validation": 4}  # wrong options of a question


@dataclass(frozen=True)
class TinyFact:
    """A fact and the wrong options that each split offers for it."""

    relation: str
    name: str
    place: str
    others: dict[str, list[str]]

    @property
    def question(self) -> str:
        return f"{self.relation} of {self.name} is"

    @property
    def uuid(self) -> str:
        return row_id(self.relation, self.name)

    def as_sentence(self) -> dict[str, str]:
        """The fact as an entry of sentences.json, from which a bank is built."""
        names = {"subject": self.name, "predicate": self.relation, "object": self.place}
        return {"sentence": f"{self.question} {self.place}", "uuid": self.uuid, **names}

    def as_item(self, split: str) -> dict[str, list[dict[str, object]]]:
        """The fact as a question of an OMCQ file, without options in the text."""
        choices = sorted([self.place, *self.others[split]])
        target = {"question": self.question, "correct_answer": self.place, "uuid": self.uuid, "choices": choices}
        return {"target": [target]}


def make_facts(names: int, seed: int) -> list[TinyFact]:
    """4 · names² facts: every relation of every full name. names: 1 to 16"""
    facts = []
    for relation in RELATIONS:
        for name in (f"{first} {last}" for first in FIRST[:names] for last in LAST[:names]):
            drawn = random.Random(json.dumps([seed, relation, name])).sample(PLACES, 1 + sum(OTHERS.values()))
            others = {"train": drawn[1 : 1 + OTHERS["train"]], "validation": drawn[1 + OTHERS["train"] :]}
            facts.append(TinyFact(relation, name, drawn[0], others))
    return facts


def make_tokenizer() -> PreTrainedTokenizerBase:
    """One token a word, the blank after it included, so that a place is the same token in a row and as an answer."""
    words = [*RELATIONS, "of", "is", *FIRST, *LAST, *PLACES]
    pieces = [PAD, END, "<unk>", *words, *(f"{word} " for word in words)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token="<unk>")


def write_base(directory: Path, seed: int) -> PreTrainedTokenizerBase:
    """Write the tokenizer and a Qwen3 of two layers with random weights; returns the tokenizer."""
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)  # far enough apart to tell words by
    torch.set_rng_state(generator_state)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    return tokenizer
