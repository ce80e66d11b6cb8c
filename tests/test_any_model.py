"""Masks over networks that were written without masks in mind: torchvision's, timm's, transformers' and odd ones."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from networks import Attention, Recurrent, Tied
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import supermask
from supermask import find_targets
from supermask.live.held import program_of
from supermask.masks.targets import fan_in_and_out
from supermask.selection.top_k import count_kept


@dataclass(frozen=True)
class Case:
    """A network, an input for it, and what is expected of its tensors.

    Every tensor of two or more dimensions is a target, but for `dense`: `{glob: the reason it is left out}`.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: int
    dense: dict[str, str] = field(default_factory=dict)
    include: str | None = None


# What follows imports a package where a network of it is made: that takes longer than PyTorch.


def image(size: int, count: int = 2) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(count, 3, size, size)


def tokens(*names: str) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {name: torch.randint(0, 50, (2, 7)) for name in names}


def from_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(import_module("torchvision.models"), name)(num_classes=10, **options)


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: import_module("timm").create_model(name, pretrained=False, num_classes=10, **options)


def from_transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = import_module("transformers")
        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


def convolutions(layer: type[nn.Module], **options: Any) -> nn.Sequential:
    """An ordinary, a grouped and dilated, and a depthwise convolution."""
    return nn.Sequential(
        layer(4, 8, 3), nn.ReLU(), layer(8, 6, 3, groups=2, dilation=2, **options), nn.ReLU(), layer(6, 6, 2, groups=6)
    )  # fmt: skip


class Cells(nn.Module):
    """The three cells, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.lstm, self.gru = nn.RNNCell(4, 5), nn.LSTMCell(5, 6), nn.GRUCell(6, 3)

    def forward(self, x):
        a, b, c = x.new_zeros(len(x), 5), None, x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            a = self.rnn(step, a)
            b = self.lstm(a, b)
            c = self.gru(b[0], c)
        return c


class Separate(nn.Module):
    """Attention whose keys and values have sizes of their own, so that each has a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=6, add_bias_kv=True, batch_first=True)

    def forward(self, q, k, v):
        return self.attention(q, k, v)[0]


class Shared(nn.Module):
    """One module at two places, and one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = nn.ModuleList([self.first, nn.Linear(6, 6)])
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.again[1].weight

    def forward(self, x):
        for layer in (self.first, *self.again, self.tied):
            x = torch.tanh(layer(x))
        return x


class Direct(nn.Module):
    """Parameters that are read without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))
        self.list = nn.ParameterList([torch.randn(5, 4)])
        self.scale = nn.Parameter(torch.ones(()))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x @ self.table @ self.list[0] * self.scale)


class Parametrized(nn.Module):
    """Weights that are computed from others in each pass, the new way and the old way, beside plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(5, 6)
        self.norm = parametrizations.weight_norm(nn.Linear(6, 6))
        self.old = torch.nn.utils.spectral_norm(nn.Linear(6, 6))
        self.head = parametrizations.orthogonal(nn.Linear(6, 6, bias=False))

    def forward(self, x):
        return self.head(self.old(self.norm(torch.tanh(self.plain(x)))))


EMBEDDINGS = {"*embedding*": "embedding"}
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
SPEECH = {
    "conv_dim": (8, 8), "conv_kernel": (5, 3), "conv_stride": (3, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = {
    "vocab_size": 50, "num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_source_positions": 10, "max_target_positions": 12, "pad_token_id": 0, "decoder_start_token_id": 1,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip

CASES = {
    "linear": Case(lambda: nn.Linear(5, 3), lambda: torch.randn(4, 5), 1),
    "conv1d": Case(lambda: convolutions(nn.Conv1d), lambda: torch.randn(2, 4, 12), 3),
    "conv2d": Case(lambda: convolutions(nn.Conv2d, padding=2), lambda: torch.randn(2, 4, 9, 9), 3),
    "conv3d": Case(lambda: convolutions(nn.Conv3d), lambda: torch.randn(2, 4, 9, 9, 9), 3),
    "transposed 1d": Case(lambda: convolutions(nn.ConvTranspose1d), lambda: torch.randn(2, 4, 5), 3),
    "transposed 2d": Case(lambda: convolutions(nn.ConvTranspose2d, stride=2), lambda: torch.randn(2, 4, 4, 4), 3),
    "attention": Case(Attention, lambda: torch.randn(3, 4, 8), 3, {"token": "other"}),
    "separate projections": Case(
        Separate, lambda: (torch.randn(2, 3, 8), torch.randn(2, 4, 5), torch.randn(2, 4, 6)), 4, {"*bias_?": "bias"}
    ),
    "encoder": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16), lambda: torch.randn(4, 3, 8), 4),
    "recurrent": Case(Recurrent, lambda: torch.randn(3, 4, 5), 15),
    "rnn": Case(lambda: nn.RNN(5, 6, nonlinearity="relu"), lambda: torch.randn(4, 3, 5), 2),
    "gru": Case(lambda: nn.GRU(5, 6, num_layers=2, bidirectional=True), lambda: torch.randn(4, 3, 5), 8),
    "cells": Case(Cells, lambda: torch.randn(3, 4, 4), 6),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 2)), lambda: torch.randint(0, 50, (9,)), 1,
        {"0.weight": "embedding"},
    ),
    "embedding included": Case(
        lambda: nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 2)), lambda: torch.arange(20), 2, include="*.weight"
    ),
    "tied": Case(Tied, lambda: torch.randint(0, 11, (5, 4)), 2),
    "shared": Case(Shared, lambda: torch.randn(3, 6), 2),
    "direct": Case(Direct, lambda: torch.randn(3, 6), 1, {"table": "other", "list.0": "other"}),
    "direct included": Case(Direct, lambda: torch.randn(3, 6), 2, {"fc.weight": "not included"}, include="[tl]*[e0]"),
    "parametrized": Case(Parametrized, lambda: torch.randn(3, 5), 1, {"old.*": "parametrized", "*.para*": "parametrized"}),
    "torchvision mobilenet": Case(from_torchvision("mobilenet_v3_small", width_mult=0.25), image(32), 54),
    "torchvision densenet": Case(
        from_torchvision("DenseNet", growth_rate=4, block_config=(2, 2, 2, 2), num_init_features=8), image(32), 21
    ),
    "torchvision shufflenet": Case(
        from_torchvision("ShuffleNetV2", stages_repeats=[2, 2, 2], stages_out_channels=[8, 16, 32, 64, 64]),
        image(32), 27,
    ),
    "torchvision vit": Case(
        from_torchvision(
            "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
        ),
        image(32), 10, {"class_token": "other", "*pos_embedding": "other"},
    ),
    "torchvision swin": Case(
        from_torchvision(
            "SwinTransformer", patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=[2, 2]
        ),
        image(32), 19, {"*relative_position_bias_table": "other"},
    ),
    "timm resnet": Case(from_timm("test_resnet"), image(32), 16),
    "timm convnext": Case(from_timm("test_convnext"), image(32), 32),
    "timm efficientnet": Case(from_timm("test_efficientnet"), image(32), 18),
    "timm vit": Case(
        from_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2), image(32), 10,
        {"cls_token": "other", "pos_embed": "other"},
    ),
    "timm mixer": Case(
        lambda: import_module("timm.models.mlp_mixer").MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=32),
        image(32), 10,
    ),
    "timm levit": Case(
        lambda: import_module("timm.models.levit").Levit(
            64, embed_dim=(16, 32), depth=(1, 1), num_heads=(2, 2), key_dim=8, num_classes=5
        ),
        image(64), 18, {"*attention_biases": "other"},
    ),
    "timm standardized": Case(
        lambda: nn.Sequential(import_module("timm.layers").ScaledStdConv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)),
        image(6), 1,
        {"0.weight": "standardized", "0.gain": "other"},
    ),
    "transformers bert": Case(from_transformers("BertModel", "BertConfig", **SMALL), tokens("input_ids"), 13, EMBEDDINGS),
    "transformers bert classifier": Case(
        from_transformers("BertForSequenceClassification", "BertConfig", **SMALL), tokens("input_ids"), 14, EMBEDDINGS
    ),
    "transformers gpt2": Case(
        from_transformers("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2),
        tokens("input_ids"), 9, {"*wpe*": "embedding"},
    ),
    "transformers t5": Case(
        from_transformers("T5ForConditionalGeneration", "T5Config", **T5), tokens("input_ids", "decoder_input_ids"), 33,
        {"*relative_attention_bias*": "embedding"},
    ),
    "transformers llama": Case(
        from_transformers("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1, **SMALL), tokens("input_ids"), 15,
        {"*embed_tokens*": "embedding"},
    ),
    "transformers vit": Case(
        from_transformers("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, **SMALL), image(32), 14,
        {"*cls_token": "other", "*position_embeddings": "other"},
    ),
    "transformers wav2vec2": Case(
        from_transformers("Wav2Vec2Model", "Wav2Vec2Config", **SMALL, **SPEECH), lambda: torch.randn(2, 100), 15,
        {"*pos_conv_embed*": "parametrized"},
    ),
    "transformers whisper": Case(
        from_transformers("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
        lambda: {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.randint(0, 50, (2, 5))}, 19,
        {"*embed_positions*": "embedding"},
    ),
}  # fmt: skip
# The same at their published sizes.
LARGE = {
    "torchvision resnet18": Case(from_torchvision("resnet18"), image(32), 21),
    "torchvision mobilenet_v3_small": Case(from_torchvision("mobilenet_v3_small"), image(64), 54),
    "torchvision densenet121": Case(from_torchvision("densenet121"), image(32), 121),
    "torchvision efficientnet_b0": Case(from_torchvision("efficientnet_b0"), image(64), 82),
    "torchvision shufflenet_v2_x0_5": Case(from_torchvision("shufflenet_v2_x0_5"), image(64), 57),
    "timm resnet10t": Case(from_timm("resnet10t"), image(32), 15),
    "timm convnext_atto": Case(from_timm("convnext_atto"), image(64), 41),
    "timm regnety_002": Case(from_timm("regnety_002"), image(32), 71),
}

OTHERS = [name for name in CASES if name.partition(" ")[0] in ("torchvision", "timm", "transformers")]


def networks_but(left_to_slow: list[str]) -> pytest.MarkDecorator:
    """Each network; of other packages' these and the large ones in the slow run only."""
    slow = [*left_to_slow, *LARGE]
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=name, marks=[pytest.mark.slow] if name in slow else [])
            for name, case in (CASES | LARGE).items()
        ],
    )


def make(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval()


def outputs(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """Every floating-point tensor that comes out."""
    if isinstance(inputs, dict):
        out = model(**inputs)
    else:
        out = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    assert ours and all(bool(torch.isfinite(tensor).all()) for tensor in ours)
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def loss(out: list[torch.Tensor]) -> torch.Tensor:
    """A sum with random weights: what comes out of a norm has a constant square."""
    generator = torch.Generator().manual_seed(1)
    return sum((tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in out)


def random_masks(targets: supermask.Targets, density: float) -> supermask.Masks:
    generator = torch.Generator().manual_seed(2)
    return supermask.Masks(
        {n: torch.rand(t.parameter.shape, generator=generator) < density for n, t in targets.items()}
    )


def multiplied(model: nn.Module, masks: supermask.Masks) -> nn.Module:
    """A plain copy whose weights are multiplied by the masks."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    return plain


@networks_but([name for i, name in enumerate(OTHERS) if i % 2])
def test_targets_are_what_multiplies_and_all_else_has_a_reason(case):
    model = make(case)
    targets = find_targets(model, case.include)
    parameters = dict(model.named_parameters())
    assert targets.size + sum(entry.size for entry in targets.left_out.values()) == sum(
        parameter.numel() for parameter in parameters.values()
    )
    assert len(targets) == case.targets, list(targets)
    assert {*targets, *targets.left_out} == set(parameters)
    for name, parameter in parameters.items():
        reasons = [reason for glob, reason in case.dense.items() if fnmatch.fnmatchcase(name, glob)]
        reason = targets.left_out[name].reason if name in targets.left_out else None
        if reasons and parameter.dim() > 1:
            assert reason == reasons[0], name
        elif parameter.dim() > 1:
            assert reason is None, name
        elif case.include is None:
            assert reason in ("bias", "norm", "other", "parametrized"), name
            assert (reason == "bias") <= ("bias" in name), name


@networks_but([name for i, name in enumerate(OTHERS) if not i % 2])
def test_every_weight_is_a_target_or_named(case):
    model = make(case)
    targets = find_targets(model, case.include)
    said = supermask.remarks(model, targets, case.inputs())
    for name, parameter in model.named_parameters():
        assert name in targets or parameter.dim() < 2 or "carries no mask" in said[name], name
    tied = [name for name, target in targets.items() if len(target.owners) > 1]
    assert [name for name in targets if "share it" in said.get(name, "")] == tied
    assert [name for name in targets if "no pass" in said.get(name, "")] == []


@networks_but([name for i, name in enumerate(OTHERS) if i % 4 != 2])
def test_hold_is_the_plain_network_with_weights_multiplied(case):
    model = make(case)
    names, inputs = list(model.state_dict()), case.inputs()
    masks = random_masks(find_targets(model, case.include), 0.3)
    plain = multiplied(model, masks)
    supermask.hold(model, masks)
    assert list(model.state_dict()) == names
    out = outputs(model, inputs)
    assert same(out, outputs(plain, inputs))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    loss(out).backward()
    optimizer.step()
    supermask.check(model)
    moved = 0
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        assert not weight[~mask].view(torch.int32).any(), name
        moved += not torch.equal(weight, plain.get_parameter(name))
    assert moved == len(masks), "what is kept trains"
    baked = supermask.bake(model)
    assert same(outputs(baked, inputs), outputs(model, inputs))
    assert all(not module._forward_pre_hooks for name, module in baked.named_modules() if name != "old")


@networks_but([name for i, name in enumerate(OTHERS) if i % 4])
def test_learn_masks_any_network_and_gradients_reach_every_score(case):
    model, inputs = make(case), case.inputs()
    names = list(model.state_dict())
    targets = supermask.learn(model, 0.5, include=case.include)
    program = program_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in names}
    masks = supermask.masks_of(model)
    assert masks.kept_per_tensor == {name: count_kept(0.5, target.size) for name, target in targets.items()}
    loss(outputs(model, inputs)).backward()
    assert [name for name in targets if not program.score(name).grad.any()] == []
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()
    after = model.state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []
    assert supermask.masks_of(model).changed(masks) > 0
    supermask.check(model)
    baked = supermask.bake(model)
    assert list(baked.state_dict()) == names
    for name, mask in supermask.masks_of(model).items():
        assert torch.equal(baked.get_parameter(name), before[name] * mask)
    # To the rounding: attention takes another kernel where less needs a gradient.
    torch.testing.assert_close(outputs(baked, inputs), outputs(model, inputs), rtol=1e-4, atol=1e-5)


def test_the_tied_output_of_gpt2_is_one_target():
    model = make(CASES["transformers gpt2"])
    targets = find_targets(model)
    tied = targets["transformer.wte.weight"]
    assert tied.kind == "linear"
    assert [module for module, _ in tied.owners] == [model.transformer.wte, model.lm_head]
    assert targets.output == "transformer.wte.weight"
    assert "transformer.wte.weight" not in find_targets(model, exclude="*wte")
    assert {name: target.output_axis for name, target in targets.items() if ".h.0." in name} == {
        f"transformer.h.0.{name}.weight": 1 for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


@pytest.mark.parametrize("network", [Tied, CASES["transformers gpt2"].make])
def test_a_checkpoint_that_unties_does_not_let_a_weight_slip(network):
    model = network()
    masks = random_masks(find_targets(model), 0.3)
    fresh = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    supermask.hold(model, masks)
    model.load_state_dict(fresh, assign=True)
    name, tied = next((name, target) for name, target in find_targets(network()).items() if len(target.owners) > 1)
    twins = [module._parameters[attribute] for module, attribute in program_of(model).owners[name]]
    assert len(tied.owners) == 2 and twins[0] is not twins[1]
    for twin in twins:
        assert not twin[~masks[name]].any()
        twin.data += 1.0
    with pytest.raises(ValueError, match=f"{name} has {2 * int((~masks[name]).sum())} of"):
        supermask.check(model)
    torch.optim.SGD([twins[1]], 0.1).step()
    assert not any(twin[~masks[name]].any() for twin in twins)
    learned = network()
    supermask.learn(learned, 0.5)
    learned.load_state_dict({**learned.state_dict(), **fresh}, assign=True)
    baked, masks = supermask.bake(learned), supermask.masks_of(learned)
    for module, attribute in find_targets(baked)[name].owners:
        assert not module._parameters[attribute][~masks[name]].any()


@pytest.mark.parametrize(
    ("network", "stored", "weight"),
    [
        (
            Parametrized,
            ["norm.parametrizations.weight.original0", "norm.parametrizations.weight.original1"],
            "norm.weight",
        ),
        (Parametrized, ["old.weight_orig"], "old.weight"),
        (
            CASES["transformers wav2vec2"].make,
            [f"encoder.pos_conv_embed.conv.parametrizations.weight.original{part}" for part in (0, 1)],
            "encoder.pos_conv_embed.conv.weight",
        ),
    ],
    ids=["weight_norm", "spectral_norm by hooks", "wav2vec2"],
)
def test_a_mask_on_a_weight_that_is_computed_is_refused(network, stored, weight):
    model = network()
    message = f"a parametrization computes {weight} from {' and '.join(stored)}: .*remove_parametrizations"
    masks = supermask.Masks({stored[-1]: torch.ones(model.get_parameter(stored[-1]).shape, dtype=torch.bool)})
    for call in (
        lambda: find_targets(model, include=weight),
        lambda: find_targets(model, include=stored[0]),
        lambda: supermask.learn(model, 0.5, include=weight),
        lambda: supermask.hold(model, masks),
        lambda: supermask.hold(model, {weight: torch.ones(3, 3, dtype=torch.bool)}),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert find_targets(model, include="*").left_out[stored[0]].reason == "parametrized"
    assert find_targets(model, exclude=weight), "an exclusion may name it"


def test_a_parametrization_taken_off_makes_an_ordinary_layer():
    model = Parametrized()
    torch.nn.utils.parametrize.remove_parametrizations(model.norm, "weight")
    torch.nn.utils.remove_spectral_norm(model.old)
    assert list(find_targets(model)) == ["plain.weight", "norm.weight", "old.weight"]
    assert find_targets(model).output == "head.weight"


def test_lazy_layers_are_refused_until_they_have_shapes():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    for call in (find_targets, lambda model: supermask.learn(model, 0.5)):
        with pytest.raises(ValueError, match="has no shape yet"):
            call(model)
    model(torch.randn(2, 1, 6, 6))
    assert list(find_targets(model)) == ["0.weight", "3.weight"]
    assert len(supermask.learn(model, 0.5)) == 2


@pytest.mark.parametrize("name", ["transposed 1d", "transposed 2d", "transformers gpt2", "conv2d", "recurrent"])
def test_drawn_weights_have_the_fan_in_of_their_layer(name):
    model = make(CASES[name])
    draws = supermask.initialize(model, "signed-constant", seed=0, scale=3.0)
    xavier = supermask.initialize(make(CASES[name]), "xavier-normal", seed=0, scale=3.0)
    targets = find_targets(model)
    for weight, target in targets.items():
        assert torch.equal(target.parameter, draws[weight].tensor(weight))
        expected = torch.full(target.parameter.shape, 3.0 * (2 / target.fans[0]) ** 0.5)
        torch.testing.assert_close(target.parameter.detach().abs(), expected)
        by_shape = (2 / sum(fan_in_and_out(target.parameter.shape))) ** 0.5
        assert xavier[weight].scale * by_shape == pytest.approx(3.0 * (2 / sum(target.fans)) ** 0.5)
        if target.output_axis == 0:
            assert draws[weight].scale == xavier[weight].scale == 3.0
    supermask.learn(model, 0.5)
    for weight, target in targets.items():
        bound = program_of(model).score(weight).detach().abs().max()
        assert 0.8 * target.fans[0] ** -0.5 < bound <= target.fans[0] ** -0.5


def lstm_by_hand(x, weights, biases):
    """One layer with a projection, from the formulas; `x` is (steps, batch, inputs)."""
    w_ih, w_hh, w_hr = weights
    h, c, out = x.new_zeros(x.shape[1], w_hr.shape[0]), x.new_zeros(x.shape[1], w_hr.shape[1]), []
    for step in x:
        i, f, g, o = (step @ w_ih.T + biases[0] + h @ w_hh.T + biases[1]).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c) @ w_hr.T
        out.append(h)
    return torch.stack(out)


def test_scores_of_an_lstm_get_the_gradients_of_one_written_by_hand():
    torch.manual_seed(0)
    model, x = nn.LSTM(5, 6, proj_size=4).double(), torch.randn(3, 2, 5, dtype=torch.float64)
    supermask.learn(model, 0.5, weights="keep")
    program, masks = program_of(model), supermask.masks_of(model)
    assert list(masks) == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
    weights = [(program.parameter(n).detach() * mask).requires_grad_() for n, mask in masks.items()]
    expected = lstm_by_hand(x, weights, [model.bias_ih_l0, model.bias_hh_l0])
    out = model(x)[0]
    torch.testing.assert_close(out, expected)
    loss([out]).backward()
    loss([expected]).backward()
    for name, effective in zip(masks, weights, strict=True):
        score, weight = program.score(name), program.parameter(name)
        torch.testing.assert_close(score.grad, effective.grad * weight * score.detach().sign())


def reads_its_parameters(model: Recurrent) -> bool:
    """Whether the list that the LSTM reads holds the parameters and nothing else."""
    names = model.lstm._flat_weights_names
    return all(a is model.lstm._parameters[n] for a, n in zip(model.lstm._flat_weights, names, strict=True))


def test_a_learned_lstm_reads_its_frozen_weights_again_after_every_pass():
    model, x = Recurrent(), torch.randn(3, 4, 5)
    supermask.learn(model, 0.5)
    model(x)
    assert reads_its_parameters(model)
    with pytest.raises(RuntimeError, match="input.size"):
        model(torch.randn(3, 4, 6))
    assert reads_its_parameters(model)
    other = copy.deepcopy(model).double()
    other(x.double())
    assert reads_its_parameters(other)
    other.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()}, assign=True)
    assert torch.equal(other(x), model(x))
    assert torch.equal(supermask.detach(other)(x), model(x))
    assert reads_its_parameters(other)


def renewed(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return model


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return model


def flattened(model: nn.Module) -> nn.Module:
    model.lstm.flatten_parameters()
    return model


CHANGES = {
    "deepcopy": copy.deepcopy,
    "another dtype": lambda model: model.double().float(),
    "new parameters": renewed,
    "assign": assigned,
    "flatten_parameters": flattened,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_held_lstm_stays_masked_in_the_list_that_it_reads(change):
    model, x = Recurrent(), torch.randn(3, 4, 5)
    masks = random_masks(find_targets(model), 0.3)
    supermask.hold(model, masks)
    model = CHANGES[change](model)
    assert reads_its_parameters(model)
    for name in masks:
        model.get_parameter(name).data += 1.0
    plain = Recurrent()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), multiplied(plain, masks)(x))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    supermask.check(model)
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())


@pytest.mark.gpu
def test_recurrent_layers_on_a_gpu():
    class Flattening(Recurrent):
        def forward(self, x):
            self.lstm.flatten_parameters()
            return super().forward(x)

    model, x = Flattening().cuda(), torch.randn(3, 4, 5, device="cuda")
    masks = random_masks(find_targets(model), 0.3).to("cuda")
    supermask.hold(model, masks)
    assert torch.allclose(model(x), multiplied(supermask.bake(model), masks)(x), atol=1e-5)
    model(x).square().sum().backward()
    torch.optim.AdamW(model.parameters(), 0.1).step()
    supermask.check(model)
    learned = Flattening().cuda()
    supermask.learn(learned, 0.5)
    learned(x).square().sum().backward()
    assert all(program_of(learned).score(name).grad.any() for name in masks)
    assert reads_its_parameters(learned)
    supermask.check(learned)
    assert torch.allclose(learned(x), supermask.bake(learned)(x), atol=1e-5)
