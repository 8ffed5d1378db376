"""The diffusion transformer: the released shapes, the reference's numbers, and what padding must not change."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.support.golden_inputs import fill, integers, mask, relative_error, tensor
from tests.support.places import GOLDEN
from training.model import ACEStepTransformer2DModel, lyric_encoder
from training.model.attention import CrossAttention, LinearAttention
from training.model.context import Context
from training.model.linear_attention import linear_attention
from training.model.rotary import rotary_table

MANIFEST = json.loads((GOLDEN / "released_transformer_manifest.json").read_text())
CASE = json.loads((GOLDEN / "dit_a.json").read_text())
LOSS = json.loads((GOLDEN / "loss_public.json").read_text())
CONFIG, INPUTS = CASE["config"], CASE["inputs"]
BATCH, FRAMES = INPUTS["B"], INPUTS["W"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> ACEStepTransformer2DModel:
    return fill(ACEStepTransformer2DModel.from_config(CONFIG))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "dit_a.npz") as arrays:
        return dict(arrays)


def conditions() -> dict[str, Tensor]:
    return {
        "encoder_text_hidden_states": tensor("a.text", BATCH, INPUTS["Lt"], CONFIG["text_embedding_dim"]),
        "text_attention_mask": mask(INPUTS["tlens"]),
        "speaker_embeds": tensor("a.speaker", BATCH, CONFIG["speaker_embedding_dim"]),
        "lyric_token_idx": integers("a.lyrics", 0, CONFIG["lyric_encoder_vocab_size"], BATCH, INPUTS["Ll"]),
        "lyric_mask": mask(INPUTS["llens"]),
    }


def latents() -> dict[str, Tensor]:
    return {
        "hidden_states": tensor("a.hidden_states", BATCH, CONFIG["in_channels"], CONFIG["max_height"], FRAMES),
        "attention_mask": mask(INPUTS["lens"]),
        "timestep": torch.tensor(INPUTS["timesteps"]),
    }


def targets(name: str, lengths: list[list[int]]) -> list[list[Tensor]]:
    """Per REPA head and item."""
    return [
        [tensor(f"{name}.ssl{head}.{item}", frames, dim) for item, frames in enumerate(items)]
        for head, (items, dim) in enumerate(zip(lengths, CONFIG["ssl_latent_dims"], strict=True))
    ]


def control() -> Tensor:
    return tensor("a.control", BATCH, FRAMES, CONFIG["inner_dim"])


def decode(model: ACEStepTransformer2DModel, **options):
    states, states_mask = model.encode(**conditions())
    return model.decode(**latents(), encoder_hidden_states=states, encoder_hidden_mask=states_mask, **options)


def test_released_config_has_the_released_parameters():
    with torch.device("meta"):
        released = ACEStepTransformer2DModel.from_config(MANIFEST["config"])
    shapes = {name: list(value.shape) for name, value in released.state_dict().items()}
    assert shapes == MANIFEST["parameters"]
    assert MANIFEST["config"].items() <= released.config.items()
    assert round(sum(value.numel() for value in released.parameters()) / 1e9, 3) == 3.306


@torch.inference_mode()
def test_conditions_are_the_references(model, golden):
    states, states_mask = model.encode(**conditions())
    assert relative_error(states, golden["encoded"]) <= TOLERANCE
    assert torch.equal(states_mask, torch.from_numpy(golden["encoded_mask"]))


@torch.inference_mode()
def test_velocity_and_alignment_losses_are_the_references(model, golden):
    output = model(**conditions(), **latents(), ssl_hidden_states=targets("a", INPUTS["ssl_lens"]), compat=True)
    assert relative_error(output.sample, golden["sample"]) <= TOLERANCE
    assert [name for name, _ in output.proj_losses] == CONFIG["ssl_names"]
    assert relative_error(torch.stack([loss for _, loss in output.proj_losses]), golden["proj"]) <= TOLERANCE


@torch.inference_mode()
def test_control_input_is_the_references(model, golden):
    output = decode(model, block_controlnet_hidden_states=control(), controlnet_scale=0.7, compat=True)
    assert relative_error(output.sample, golden["sample_control"]) <= TOLERANCE


@torch.inference_mode()
def test_training_loss_is_the_references(model):
    assert LOSS["config"] == CONFIG
    clean, noise = (tensor(f"loss.pub.{name}", 3, 8, 16, 36) for name in ("latents", "noise"))
    sigma = torch.tensor(LOSS["sigmas"])[:, None, None, None]
    noisy = sigma * noise + (1 - sigma) * clean
    frames = mask([36, 36, 25])
    output = model(
        noisy,
        frames,
        tensor("loss.pub.text", 3, 6, CONFIG["text_embedding_dim"]),
        torch.ones(3, 6),
        tensor("loss.pub.speaker", 3, CONFIG["speaker_embedding_dim"]),
        integers("loss.pub.lyrics", 0, 60, 3, 9),
        torch.ones(3, 9),
        torch.tensor(LOSS["timesteps"]),
        targets("loss.pub", [[50] * 3, [60] * 3]),
        compat=True,
    )
    error = (noisy - sigma * output.sample - clean).square() * frames[:, None, None]
    denoising = (error.mean((1, 2, 3)) * frames.mean(1)).mean()
    alignment = torch.stack([loss for _, loss in output.proj_losses])
    assert denoising.item() == pytest.approx(LOSS["denoising_loss"], rel=TOLERANCE)
    assert alignment.tolist() == pytest.approx(LOSS["proj_losses"], rel=TOLERANCE)
    assert (denoising + alignment.mean()).item() == pytest.approx(LOSS["loss"], rel=TOLERANCE)


def alone(item: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Conditions and latents of an item without its padding."""
    text, lyrics, frames = (INPUTS[name][item] for name in ("tlens", "llens", "lens"))
    cut = {
        "encoder_text_hidden_states": text,
        "text_attention_mask": text,
        "lyric_token_idx": lyrics,
        "lyric_mask": lyrics,
    }
    given = {name: value[item : item + 1] for name, value in conditions().items()}
    given = {name: value[:, : cut[name]] if name in cut else value for name, value in given.items()}
    noisy = {name: value[item : item + 1] for name, value in latents().items()}
    noisy["hidden_states"] = noisy["hidden_states"][..., :frames]
    noisy["attention_mask"] = noisy["attention_mask"][:, :frames]
    return given, noisy


@torch.inference_mode()
@pytest.mark.parametrize("item", range(BATCH))
def test_padded_batch_gives_each_item_what_it_gets_alone(model, item):
    features = [head[item : item + 1] for head in targets("a", INPUTS["ssl_lens"])]
    given, noisy = alone(item)
    states, states_mask = model.encode(**given)
    single = model.decode(
        **noisy,
        encoder_hidden_states=states,
        encoder_hidden_mask=states_mask,
        ssl_hidden_states=features,
        block_controlnet_hidden_states=control()[item : item + 1, : INPUTS["lens"][item]],
        return_projections=True,
    )
    batch = decode(model, block_controlnet_hidden_states=control(), return_projections=True)
    frames = INPUTS["lens"][item]
    assert relative_error(batch.sample[item, ..., :frames], single.sample[0]) < 1e-5
    for (name, projected), (single_name, single_projected) in zip(batch.projections, single.projections, strict=True):
        assert name == single_name
        assert relative_error(projected[item, :frames], single_projected[0]) < 1e-5


@torch.inference_mode()
def test_alignment_losses_average_what_items_get_alone(model):
    features = targets("a", INPUTS["ssl_lens"])
    losses = []
    for item in range(BATCH):
        given, noisy = alone(item)
        single = model(**given, **noisy, ssl_hidden_states=[head[item : item + 1] for head in features])
        losses.append(torch.stack([loss for _, loss in single.proj_losses]))
    batch = torch.stack([loss for _, loss in decode(model, ssl_hidden_states=features).proj_losses])
    assert relative_error(batch, torch.stack(losses).mean(0)) < 1e-5


@torch.inference_mode()
def test_only_padding_sets_the_reference_apart(model):
    """Item 0 has no padding; what the other one differs by is the leak that `compat` reproduces."""
    default, compat = decode(model).sample, decode(model, compat=True).sample
    assert relative_error(default[0], compat[0]) < 1e-5
    assert relative_error(default[1, ..., : INPUTS["lens"][1]], compat[1, ..., : INPUTS["lens"][1]]) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("compat", [False, True])
def test_padded_frames_and_empty_items_get_exactly_nothing_from_attention(model, compat):
    seen = []
    hooks = [
        module.to_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, LinearAttention | CrossAttention)
    ]
    states, states_mask = model.encode(**conditions())
    noisy = latents() | {"attention_mask": torch.stack([torch.ones(FRAMES), torch.zeros(FRAMES)])}
    output = model.decode(**noisy, encoder_hidden_states=states, encoder_hidden_mask=states_mask, compat=compat)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2 * CONFIG["num_layers"]
    assert all(torch.count_nonzero(mixed[1]) == 0 and mixed[0].abs().min(-1).values.max() > 0 for mixed in seen)
    assert output.sample.isfinite().all()


def test_item_without_lyrics_sends_finite_gradients_back(model):
    given = conditions() | {"lyric_mask": torch.stack([torch.ones(INPUTS["Ll"]), torch.zeros(INPUTS["Ll"])])}
    model(**given, **latents()).sample.square().mean().backward()
    parameters = {name: value for name, value in model.named_parameters() if not name.startswith("projectors")}
    gradients = {name: value.grad for name, value in parameters.items() if value.requires_grad}
    model.zero_grad()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    frozen = {name.split(".")[3] for name in parameters.keys() - gradients.keys()}
    assert frozen == {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


@torch.inference_mode()
def test_bfloat16_stays_close_to_float32(model):
    exact = model(**conditions(), **latents()).sample
    half = copy.deepcopy(model).to(torch.bfloat16)
    given, noisy = conditions(), latents()
    for inputs, name in ((given, "encoder_text_hidden_states"), (given, "speaker_embeds"), (noisy, "hidden_states")):
        inputs[name] = inputs[name].to(torch.bfloat16)
    sample = half(**given, **noisy).sample
    assert sample.dtype == torch.bfloat16
    assert (sample.float() - exact).norm() / exact.norm() < 0.02


def quadratic(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = query.relu() @ key.relu().mT
    return weights @ value / weights.sum(-1, keepdim=True)


def test_linear_attention_is_the_quadratic_one():
    query, key, value = (tensor(name, 2, 3, 50, 8) for name in "qkv")
    exact = quadratic(query.double(), key.double(), value.double())
    assert relative_error(linear_attention(query, key, value), exact) < 1e-5


@torch.inference_mode()
def test_every_further_frame_costs_the_same(model):
    states, states_mask = model.encode(**conditions())

    def operations(frames: int) -> int:
        with FlopCounterMode(display=False) as counter:
            model.decode(
                torch.zeros(BATCH, CONFIG["in_channels"], CONFIG["max_height"], frames),
                torch.ones(BATCH, frames),
                states,
                states_mask,
                torch.zeros(BATCH),
            )
        return counter.get_total_flops()

    short, middle, long = map(operations, (50, 100, 400))
    assert long - middle == 6 * (middle - short) > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_linear_attention_sums_in_float32(autocast):
    """Over 20,000 frames a bfloat16 sum would stop growing; the result may only carry its own rounding, 2^-8."""
    query, key, value = (tensor(name, 1, 1, 20_000, 8).to(torch.bfloat16) for name in "qkv")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        computed = linear_attention(query, key, value + 1)
    assert computed.dtype == torch.bfloat16
    rows = slice(0, 200)
    exact = quadratic(query[:, :, rows].double(), key.double(), (value + 1).double())
    visible = query[:, :, rows].relu().sum(-1) > 0
    assert relative_error(computed[:, :, rows].double()[visible], exact[visible]) < 2**-8


@torch.inference_mode()
def test_weakened_queries_reach_only_their_item_and_block(model):
    plain = decode(model).sample
    scale = torch.ones(CONFIG["num_layers"], BATCH)
    assert torch.equal(decode(model, query_scale=scale).sample, plain)
    scale[2, 1] = 0.01
    weakened = decode(model, query_scale=scale, return_projections=True)
    assert torch.equal(weakened.sample[0], plain[0])
    assert relative_error(weakened.sample[1], plain[1]) > 1e-3
    read_before = decode(model, return_projections=True).projections
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(weakened.projections, read_before, strict=True))


@torch.inference_mode()
def test_weakened_lyric_queries_change_only_that_items_lyrics(model):
    plain, _ = model.encode(**conditions())
    scale = torch.ones(6, BATCH)
    scale[4:6, 0] = 0.01
    weakened, _ = model.encode(**conditions(), lyric_query_scale=scale)
    changed = (weakened != plain).any(-1)
    assert not changed[1].any()
    assert not changed[0, : 1 + INPUTS["Lt"]].any()
    assert changed[0, 1 + INPUTS["Lt"] :].all()


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 4, 10])
def test_lyrics_read_some_rows_at_a_time_are_the_references(model, golden, monkeypatch, rows):
    monkeypatch.setattr(lyric_encoder, "_ROWS", rows)
    states, _ = model.encode(**conditions())
    assert relative_error(states, golden["encoded"]) <= TOLERANCE


@torch.inference_mode()
def test_memory_of_long_lyrics_follows_their_length():
    """No operation makes a tensor of L x L for all heads, let alone one of L x (2 L - 1)."""
    length, heads, dim = 1024, 16, 64
    attention = lyric_encoder.RelativeAttention(dim, heads)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with Sizes():
        attention(torch.ones(1, length, dim), torch.ones(2 * length - 1, dim), torch.ones(1, length, dtype=torch.bool))
    assert max(sizes) <= heads * length * length / 4


@torch.inference_mode()
def test_output_length_cuts_and_fills(model):
    whole = decode(model).sample
    assert torch.equal(decode(model, output_length=33).sample, whole[..., :33])
    longer = decode(model, output_length=44).sample
    assert torch.equal(longer[..., :FRAMES], whole)
    assert torch.count_nonzero(longer[..., FRAMES:]) == 0


def prepared(model: ACEStepTransformer2DModel, given: dict[str, Tensor], frame_mask: Tensor, **options) -> Context:
    states, states_mask = model.encode(**given)
    return model.prepare(frame_mask, states, states_mask, **options)


@torch.inference_mode()
@pytest.mark.parametrize("compat", [False, True])
def test_velocity_of_a_prepared_song_is_the_sample(model, compat):
    noisy, scale = latents(), torch.full((CONFIG["num_layers"], BATCH), 0.3)
    context = prepared(model, conditions(), noisy["attention_mask"], compat=compat)
    for query_scale in (None, scale):
        velocity = model.velocity(noisy["hidden_states"], noisy["timestep"], context, query_scale=query_scale)
        sample = decode(model, query_scale=query_scale, compat=compat).sample
        assert relative_error(velocity, sample) < 1e-6


@torch.inference_mode()
@pytest.mark.parametrize("compat", [False, True])
def test_velocity_is_the_references(model, golden, compat):
    """Of the default, item 0 only: the other one is padded."""
    noisy = latents()
    context = prepared(model, conditions(), noisy["attention_mask"], compat=compat)
    velocity = model.velocity(noisy["hidden_states"], noisy["timestep"], context)
    items = slice(0, BATCH if compat else 1)
    assert relative_error(velocity[items], golden["sample"][items]) <= TOLERANCE


@torch.inference_mode()
def test_context_of_some_items_is_a_view(model):
    noisy = latents()
    context = prepared(model, conditions(), noisy["attention_mask"])
    both = model.velocity(noisy["hidden_states"], noisy["timestep"], context)
    for item in range(BATCH):
        items = slice(item, item + 1)
        chosen = context.select(items)
        alone = model.velocity(noisy["hidden_states"][items], noisy["timestep"][items], chosen)
        assert relative_error(alone, both[items]) < 1e-5
        storages = {memory.key.untyped_storage().data_ptr() for memory in context.key_values}
        assert {memory.key.untyped_storage().data_ptr() for memory in chosen.key_values} == storages


@torch.inference_mode()
def test_masks_without_padding_are_dropped(model):
    given, noisy = alone(0)
    sample = model(**given, **noisy).sample
    context = prepared(model, given, noisy["attention_mask"])
    around = context.around
    masks = (around.frame_mask, around.mixing_mask, around.condition_mask, around.attending)
    assert masks == (None, None, None, None)
    assert relative_error(model.velocity(noisy["hidden_states"], noisy["timestep"], context), sample) < 1e-5

    around = prepared(model, conditions(), noisy["attention_mask"].expand(BATCH, -1)).around
    assert around.frame_mask is None
    assert around.condition_mask is not None


@torch.inference_mode()
def test_what_is_prepared_is_not_computed_again(model):
    def operations(function, *arguments) -> int:
        with FlopCounterMode(display=False) as counter:
            function(*arguments)
        return counter.get_total_flops()

    states, states_mask = model.encode(**conditions())
    hidden_states, frame_mask, time = latents().values()
    context = model.prepare(frame_mask, states, states_mask)
    once = operations(model.prepare, frame_mask, states, states_mask)
    step = operations(model.velocity, hidden_states, time, context)
    assert once == 2 * 2 * states.numel() * CONFIG["inner_dim"] * CONFIG["num_layers"]
    assert operations(model.decode, hidden_states, frame_mask, states, states_mask, time) == once + step


@torch.inference_mode()
def test_all_blocks_compile_to_one_graph_without_a_break(model):
    compiled = copy.deepcopy(model)
    counters.clear()
    compiled.compile_repeated_blocks(fullgraph=True, backend="eager")
    context = prepared(model, conditions(), latents()["attention_mask"]).select(slice(0, 1))
    noisy = alone(0)[1]
    expected = model.velocity(noisy["hidden_states"], noisy["timestep"], context)
    assert relative_error(compiled.velocity(noisy["hidden_states"], noisy["timestep"], context), expected) < 1e-6
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


def test_compiled_blocks_train(model):
    compiled = copy.deepcopy(model)
    compiled.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    gradients = []
    for network in (model, compiled):
        network(**conditions(), **latents()).sample.square().mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]))
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    model.zero_grad()
    torch.compiler.reset()


@torch.inference_mode()
def test_weights_that_are_offloaded_come_back_for_each_layer(model, tmp_path):
    """They are on disk; what stays in memory is spoilt, so that a layer which misses its weights is found out."""
    noisy = latents()
    expected = decode(model).sample
    offloaded = copy.deepcopy(model)
    offloaded.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    for parameter in offloaded.parameters():
        parameter.fill_(torch.nan)
    context = prepared(offloaded, conditions(), noisy["attention_mask"])
    velocity = offloaded.velocity(noisy["hidden_states"], noisy["timestep"], context)
    assert relative_error(velocity, expected) < 1e-6


def test_rotary_positions_past_bfloat16_stay_apart():
    positions = torch.arange(30_000, 30_008)[None]
    cos, sin = rotary_table(positions, 16, 1e6)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[0, 0, :, 0].numpy() == pytest.approx(np.cos(np.arange(30_000.0, 30_008.0)), abs=1e-5)
    assert torch.equal(cos[..., :8], cos[..., 8:])


def test_saved_model_loads_unchanged(tmp_path):
    config = CONFIG | {"lyric_hidden_size": 64, "ssl_encoder_depths": [0, 2]}
    small = ACEStepTransformer2DModel.from_config(config)
    small.save_pretrained(tmp_path, max_shard_size="1MB")
    loaded = ACEStepTransformer2DModel.from_pretrained(tmp_path, use_safetensors=True)
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert config.items() <= loaded.config.items()
    assert not loaded.training
    assert small.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner_dim": 63}, "inner_dim is 63, not 4 heads x 16"),
        ({"patch_size": [8, 2]}, "one frame of all 16 bins"),
        ({"ssl_encoder_depths": [1, 3]}, "after block 3 of 3"),
    ],
)
def test_config_that_does_not_fit_is_refused(change, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ACEStepTransformer2DModel.from_config(CONFIG | change)
