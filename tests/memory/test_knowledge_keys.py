"""Facts placed by what they say: every fact has a cell of its own, and its words lead there."""

import json

import pytest
import torch
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from posttrain.memory.bank.placement import place


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.data())
def test_every_fact_has_a_cell_of_its_own(r, data):
    count = data.draw(st.integers(r, r * r))
    vectors = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    cells, keys = place(vectors, r, 4, seed=0)
    assert len(set(cells.tolist())) == count
    assert int(cells.min()) >= 0 and int(cells.max()) < r * r
    assert keys.shape == (2, r, 4)
    assert torch.equal(place(vectors, r, 4, seed=0)[0], cells)


def test_similar_facts_are_neighbours():
    generator = torch.Generator().manual_seed(0)
    topics = 5 * torch.randn(8, 16, generator=generator)
    vectors = (topics[:, None] + torch.randn(8, 8, 16, generator=generator)).flatten(0, 1)
    cells, _ = place(vectors, 8, 8, seed=0)
    rows = (cells // 8).view(8, 8)  # by topic
    together = torch.stack([(topic[:, None] == topic).float().mean() for topic in rows])
    # Two facts of one topic in one row of the grid: 0.91 ± 0.07 over twelve seeds, 1/8 by chance.
    assert together.mean() > 0.5


def test_a_group_holds_what_is_nearest_to_its_mean():
    vectors = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    cells, keys = place(vectors, 16, 8, seed=0)
    groups = torch.stack([vectors[cells // 16 == i].mean(0) for i in range(16)])
    assert (
        torch.cdist(vectors, groups).argmin(dim=1) == cells // 16
    ).float().mean() > 0.5  # 0.80 ± 0.02 over twelve seeds, 1/16 by chance
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, 16))


@pytest.mark.slow
def test_the_script_moves_every_fact_and_training_takes_its_keys(tmp_path):
    world = tmp_path / "world"
    assert run_script("data_prep/tiny_facts.py", "--names", 2, "--out", world).returncode == 0
    arguments = ["--cache", world / "bank.pt", "--model", world / "base", "--knowledge-dim", 8]
    done = run_script("data_prep/knowledge_keys.py", *arguments, "--out", tmp_path / "placed.pt", fresh=True)
    assert done.returncode == 0, done.stderr
    before, after = (torch.load(path, weights_only=True) for path in (world / "bank.pt", tmp_path / "placed.pt"))
    assert sorted(before.tolist()) == sorted(after.tolist())
    assert before.tolist() != after.tolist()
    entry = json.loads((tmp_path / "placed_mapping.json").read_text())["mappings"][0]
    old = json.loads((world / "bank_mapping.json").read_text())["mappings"]
    same = next(other for other in old if other["uuid"] == entry["uuid"])
    assert after[entry["database_index"]].equal(before[same["database_index"]])
    trained = run_script(
        "src/memory_sft.py", "recipes/tiny_memory.yaml", f"model.qwen3_model_path={world}/base",
        f"dataset.sft_dataset_path={world}/train.json", f"model.cache_path={tmp_path}/placed.pt", "--knowledge_num", 16,
        "--keys_path", tmp_path / "placed_keys.safetensors", "--knowledge_dim", 8, "--max_steps", 2,
        f"logging.out_dir={tmp_path}/run", "--validation_name", world / "validation.json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    keys = load_file(tmp_path / "placed_keys.safetensors")["keys"]
    memory = load_file(tmp_path / "run/final/memory.safetensors")
    assert all(memory[f"layers.{layer}.memory_gate.keys"].equal(keys) for layer in (0, 1))
