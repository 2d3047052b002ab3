"""Packed weights: the same tokens, and a model that refuses what it can no longer do."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_slots import MODELS, complete, prompts

from posttrain.errors import PosttrainError
from posttrain.generation.packed_weights import PackedLinear, PackedMlp, is_packed, pack_weights


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """A model and its packed copy."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(MODELS[request.param]().eval())
    return made[0], pack_weights(made[1])


def test_greedy_tokens_are_those_of_plain_weights_and_ragged_prompts_of_generate(pair):
    plain, packed = pair
    asked = prompts([40, 1, 17, 3, 64, 2, 9])
    ours = complete(packed, asked, slots=4, budget=24)
    assert ours == complete(plain, asked, slots=3, budget=24)
    theirs = plain.generate(torch.tensor([asked[0]]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert ours[0] == theirs[0, 40 : 40 + len(ours[0])].tolist()


def test_every_linear_layer_is_packed_once_and_no_plain_weight_stays_beside_it(pair):
    plain, packed = pair
    linear = [name for name, module in plain.named_modules() if type(module) is torch.nn.Linear]
    assert [name for name, module in packed.named_modules() if isinstance(module, PackedLinear)] == linear
    assert sum(isinstance(module, PackedMlp) for module in packed.modules()) == 2
    assert {name for name, _ in packed.named_parameters()} == {
        name for name, _ in plain.named_parameters() if "proj" not in name and "lm_head" not in name
    }
    assert is_packed(packed) and not is_packed(plain)


def test_a_packed_model_neither_saves_nor_trains(pair, tmp_path):
    _, packed = pair
    with pytest.raises(PosttrainError, match="only samples"):
        packed.save_pretrained(tmp_path)
    with pytest.raises(PosttrainError, match="only samples"):
        packed(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_computes_over_its_packed_base(dora):
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_dora=dora)
    model = get_peft_model(MODELS["qwen2"](), lora).eval()
    ids = torch.tensor(prompts([30]))
    with torch.no_grad():
        before = model(ids).logits
        after = pack_weights(model)(ids).logits
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    bases = [module for name, module in model.named_modules() if name.endswith("base_layer")]
    assert {isinstance(base, PackedLinear) for base in bases} == {not dora}


def test_logits_of_bfloat16_are_as_near_to_float32_as_plain_ones():
    torch.manual_seed(0)
    exact = MODELS["qwen2"]().eval()
    plain, packed = (MODELS["qwen2"]().eval() for _ in range(2))
    for model in (plain, packed):
        model.load_state_dict(exact.state_dict())
        model.bfloat16()
    pack_weights(packed)
    ids = torch.tensor(prompts([200]))
    with torch.no_grad():
        wanted = exact(ids).logits
        plain_error, packed_error = ((model(ids).logits.float() - wanted).pow(2).mean() for model in (plain, packed))
    assert packed_error < 1.2 * plain_error
