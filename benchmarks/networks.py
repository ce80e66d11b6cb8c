"""What of a network of other packages can be pruned, what is left out and why, and how much smaller it becomes.

    python benchmarks/networks.py                          # all of them, twenty minutes; writes results/networks.md
    python benchmarks/networks.py resnet18 detr --print    # some of them, on the screen alone
    python benchmarks/networks.py resnet18                 # again, and its line anew in the table

Question: is anything left out in silence, and do networks shrink as they do by torch-pruning?

Method: each network of `NETWORKS` has random weights. Half of its weights are pruned by magnitude, held through a step
of AdamW and baked. Half of its channels are pruned, held through a step of AdamW and taken out; the smaller network is
compared with the masked one in float64. torch-pruning's MagnitudePruner takes half of the channels of a copy, of every
layer but those whose outputs are the network's. Multiply-adds are PyTorch's own count of both, on the same input.

A tensor is named where it carries a mask, or where what carries none says why: `Targets.left_out` of a parameter,
`Masks.left_whole` of filters, `Compaction.left_whole` and `.kept_constant` of what stays in the smaller network.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import importlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import supermask
from supermask.choosing.coupling import couple
from supermask.choosing.gradients import call
from supermask.selection.top_k import count_kept

DENSITY = 0.5
OUTPUTS = "they are outputs of the network"
NOTHING = "no target has filters that can be dropped"


@dataclass(frozen=True)
class Network:
    """How a network is made, what it takes, and what it is trained by: with `boxes` by its own losses of detection."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    boxes: bool = False


@dataclass
class Found:
    """What was found out about a network; shares are parts of what the dense network has."""

    name: str
    targets: int = 0
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    left_whole: dict[str, str] = dataclasses.field(default_factory=dict)
    stays: dict[str, str] = dataclasses.field(default_factory=dict)
    unnamed: list[str] = dataclasses.field(default_factory=list)
    parameters: float = float("nan")
    multiply_adds: float = float("nan")
    theirs_parameters: float = float("nan")
    theirs_multiply_adds: float = float("nan")
    theirs_error: str = ""
    refused: str = ""
    error: str = ""
    seconds: float = 0.0

    def remark(self) -> str:
        """What went wrong, here or there."""
        unnamed = "; ".join(f"{name} is not named" for name in self.unnamed)
        theirs = f"torch-pruning: {self.theirs_error}" if self.theirs_error else ""
        return self.error or unnamed or self.refused or theirs


def _image(size: int, count: int = 2) -> Callable[[], Tensor]:
    return lambda: torch.randn(count, 3, size, size)


def _tokens(*names: str, high: int = 50) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randint(3, high, (2, 7)) for name in names}


def _vision(name: str, inputs: Callable[[], Any], boxes: bool = False, **options: Any) -> Network:
    """A network of torchvision by its function, or by its class."""

    def make() -> nn.Module:
        found = importlib.import_module("torchvision.models")
        for folder in (found, found.segmentation, found.detection, found.video):
            if hasattr(folder, name):
                made: nn.Module = getattr(folder, name)(**options)
                return made
        raise AttributeError(name)

    return Network(make, inputs, boxes)


def _timm(name: str, inputs: Callable[[], Any], **options: Any) -> Network:
    return Network(lambda: importlib.import_module("timm").create_model(name, num_classes=10, **options), inputs)


def _transformers(name: str, config: str, inputs: Callable[[], Any], **options: Any) -> Network:
    def make() -> nn.Module:
        transformers = importlib.import_module("transformers")
        made: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
        return made

    return Network(make, inputs)


def _narrow_vgg() -> nn.Module:
    """vgg11_bn without most of its 120 million weights, which are in its hidden layers."""
    model: nn.Module = importlib.import_module("torchvision.models").vgg11_bn()
    hidden = [nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    model.classifier = nn.Sequential(*hidden)
    return model


def _small_retinanet() -> nn.Module:
    """RetinaNet on the last map of a narrow MobileNet."""
    detection: Any = importlib.import_module("torchvision.models.detection")
    anchors: Any = importlib.import_module("torchvision.models.detection.anchor_utils")
    backbone = importlib.import_module("torchvision.models").mobilenet_v2(width_mult=0.35).features
    backbone.out_channels = 1280
    generator = anchors.AnchorGenerator(sizes=((16, 32),), aspect_ratios=((0.5, 1.0, 2.0),))
    model: nn.Module = detection.RetinaNet(
        backbone, 5, anchor_generator=generator, min_size=96, max_size=96, score_thresh=0.0
    )
    return model


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEN: dict[str, Any] = {"num_classes": 10}
BACKBONE: dict[str, Any] = {"num_classes": 5, "weights": None, "weights_backbone": None}
LIST = lambda: ([torch.rand(3, 96, 96)],)  # noqa: E731

NETWORKS: dict[str, Network] = {
    # torchvision, classification
    "vgg11_bn": Network(_narrow_vgg, _image(32)),
    "resnet18": _vision("resnet18", _image(64), **TEN),
    "resnext50_32x4d": _vision("resnext50_32x4d", _image(64), **TEN),
    "densenet121": _vision("densenet121", _image(64), **TEN),
    "googlenet": _vision("googlenet", _image(64), init_weights=False, aux_logits=False, **TEN),
    "inception_v3": _vision("inception_v3", _image(96), init_weights=False, aux_logits=False, **TEN),
    "squeezenet1_1": _vision("squeezenet1_1", _image(64), **TEN),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5", _image(64), **TEN),
    "mnasnet0_5": _vision("mnasnet0_5", _image(64), **TEN),
    "mobilenet_v2": _vision("mobilenet_v2", _image(64), **TEN),
    "mobilenet_v3_small": _vision("mobilenet_v3_small", _image(64), **TEN),
    "efficientnet_b0": _vision("efficientnet_b0", _image(64), **TEN),
    "regnet_x_400mf": _vision("regnet_x_400mf", _image(64), **TEN),
    "regnet_y_400mf": _vision("regnet_y_400mf", _image(64), **TEN),
    "vision_transformer": _vision(
        "VisionTransformer", _image(32), image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32,
        mlp_dim=64, **TEN,
    ),
    "swin": _vision(
        "SwinTransformer", _image(32), patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[1, 2],
        window_size=[2, 2], **TEN,
    ),
    # torchvision, segmentation, detection and video
    "fcn_resnet50": _vision("fcn_resnet50", _image(64), **BACKBONE),
    "deeplabv3_mobilenet_v3_large": _vision("deeplabv3_mobilenet_v3_large", _image(64), **BACKBONE),
    "lraspp_mobilenet_v3_large": _vision("lraspp_mobilenet_v3_large", _image(64), **BACKBONE),
    "ssdlite320_mobilenet_v3_large": _vision("ssdlite320_mobilenet_v3_large", LIST, boxes=True, **BACKBONE),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _vision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", LIST, boxes=True, min_size=96, max_size=96, **BACKBONE
    ),
    "retinanet_mobilenet_v2": Network(_small_retinanet, LIST, boxes=True),
    "r3d_18": _vision("r3d_18", lambda: torch.randn(1, 3, 4, 32, 32), **TEN),
    # timm
    "resnet10t": _timm("resnet10t", _image(32)),
    "res2net50_14w_8s": _timm("res2net50_14w_8s", _image(32)),
    "regnety_002": _timm("regnety_002", _image(64)),
    "convnext_atto": _timm("convnext_atto", _image(64)),
    "ghostnet_050": _timm("ghostnet_050", _image(64)),
    "hrnet_w18_small": _timm("hrnet_w18_small", _image(64)),
    "nf_resnet26": _timm("nf_resnet26", _image(64)),
    "mixer": Network(
        lambda: importlib.import_module("timm").models.mlp_mixer.MlpMixer(
            img_size=32, patch_size=8, num_blocks=2, embed_dim=32
        ),
        _image(32),
    ),
    "mobilevit_xxs": _timm("mobilevit_xxs", _image(64)),
    # transformers
    "bert": _transformers("BertForSequenceClassification", "BertConfig", _tokens("input_ids"), **SMALL),
    "albert": _transformers(
        "AlbertForSequenceClassification", "AlbertConfig", _tokens("input_ids"), embedding_size=8, **SMALL
    ),
    "gpt2": _transformers(
        "GPT2LMHeadModel", "GPT2Config", _tokens("input_ids"), vocab_size=50, n_positions=16, n_embd=16, n_layer=2,
        n_head=2,
    ),
    "llama": _transformers(
        "LlamaForCausalLM", "LlamaConfig", _tokens("input_ids"), num_key_value_heads=1, **SMALL
    ),
    "mixtral": _transformers(
        "MixtralForCausalLM", "MixtralConfig", _tokens("input_ids"), num_key_value_heads=1, num_local_experts=4, **SMALL
    ),
    "t5": _transformers(
        "T5ForConditionalGeneration", "T5Config", _tokens("input_ids", "decoder_input_ids"), vocab_size=50, d_model=16,
        d_kv=8, d_ff=32, num_layers=2, num_heads=2,
    ),
    "wav2vec2": _transformers(
        "Wav2Vec2Model", "Wav2Vec2Config", lambda: torch.randn(2, 100), conv_dim=(8, 8), conv_kernel=(5, 3),
        conv_stride=(3, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        **SMALL,
    ),
    "segformer": _transformers(
        "SegformerForSemanticSegmentation", "SegformerConfig", _image(64), num_labels=5, hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16, depths=[1, 1, 1, 1],
    ),
    "yolos": _transformers(
        "YolosForObjectDetection", "YolosConfig", _image(32), image_size=[32, 32], patch_size=8, num_labels=5,
        num_detection_tokens=6, **SMALL,
    ),
}  # fmt: skip


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every floating-point tensor that comes out."""
    found = tree_leaves(call(model, inputs))
    found = [leaf for x in found for leaf in (tree_leaves(dict(x)) if isinstance(x, Mapping) else [x])]
    return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]


def loss_of(network: Network, model: nn.Module, inputs: Any) -> Tensor:
    """What is minimized: a weighted sum of all outputs, or the network's own losses of one box in each image."""
    if network.boxes:
        model.train()
        target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
        # Norms in training mode fail on a map of one pixel.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        losses: dict[str, Tensor] = model(inputs[0], [target] * len(inputs[0]))
        total = sum(losses.values(), torch.zeros(()))
        model.eval()
        return total
    generator = torch.Generator().manual_seed(1)
    outputs = outputs_of(model, inputs)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() for x in outputs if x.requires_grad)  # type: ignore[return-value]


def step(network: Network, model: nn.Module, inputs: Any) -> None:
    """One step of AdamW with weight decay."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-3, weight_decay=0.1)
    loss_of(network, model, inputs).backward()
    optimizer.step()
    optimizer.zero_grad()


def multiply_adds(model: nn.Module, inputs: Any) -> int:
    """Of one pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model.eval(), inputs)
    return int(counter.get_total_flops()) // 2


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def prune_weights(network: Network, model: nn.Module, inputs: Any, found: Found) -> None:
    """Half of the weights, through a step, to a plain network."""
    targets = supermask.find_targets(model)
    found.targets = len(targets)
    found.left_out = {reason: count for reason, (count, _) in targets.left_out_by_reason().items()}
    named = {*targets, *targets.left_out}
    found.unnamed += [name for name, _ in model.named_parameters() if name not in named]
    masks = supermask.prune(model, DENSITY)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == count_kept(DENSITY, targets.size), f"{kept} of {targets.size} weights are kept"
    net = copy.deepcopy(model)
    supermask.hold(net, masks)
    step(network, net, inputs)
    supermask.check(net)
    baked = supermask.bake(net)
    for name, mask in masks.items():
        assert not bool(baked.get_parameter(name)[~mask].any()), f"{name} is not 0 where its mask drops"
    torch.testing.assert_close(outputs_of(baked, inputs), outputs_of(net, inputs))


def prune_filters(network: Network, model: nn.Module, inputs: Any, found: Found) -> None:
    """Half of the channels, through a step, to a smaller network."""
    targets = supermask.find_targets(model)
    try:
        masks = supermask.prune(model, DENSITY, granularity="filter", example_input=inputs)
    except ValueError as error:
        if not str(error).startswith(NOTHING):
            raise
        # Refused, with every tensor and why: then nothing is smaller.
        named = [*targets, *(name for name, entry in targets.left_out.items() if entry.dimensions > 1)]
        found.unnamed += [name for name in named if name not in str(error)]
        found.refused, found.parameters, found.multiply_adds = str(error), 1.0, 1.0
        return
    found.left_whole = dict(masks.left_whole)
    coupled = couple(model, targets, inputs)
    for key, group in coupled.groups.items():
        kept = group.channels - int(coupled.dropped(key, masks, targets).sum())
        assert kept == count_kept(DENSITY, group.channels), f"{key} keeps {kept} of {group.channels} channels"
    grouped = {name for group in coupled.groups.values() for name in group.rows}
    found.unnamed += [name for name in targets if name not in grouped and name not in masks.left_whole]
    net = copy.deepcopy(model)
    supermask.hold(net, masks)
    step(network, net, inputs)
    supermask.check(net)
    done = supermask.shrink(net, example_input=inputs)
    found.stays = {**done.left_whole, **done.kept_constant}
    rows = {name: masks[name].movedim(targets[name].output_axis, 0).flatten(1).any(1) for name in grouped}
    cut = [name for name, kept in rows.items() if not bool(kept.all())]
    found.unnamed += [name for name in cut if name not in done.removed and name not in found.stays]
    found.parameters = size_of(done.model) / size_of(model)
    found.multiply_adds = multiply_adds(done.model, inputs) / multiply_adds(model, inputs)


def prune_theirs(model: nn.Module, inputs: Any, found: Found) -> None:
    """Half of the channels by torch-pruning."""
    tp: Any = importlib.import_module("torch_pruning")
    before = size_of(model), multiply_adds(model, inputs)
    last = {name.rpartition(".")[0] for name, why in found.left_whole.items() if OUTPUTS in why}
    ignored = [module for path, module in model.named_modules() if path in last]
    pruner = tp.pruner.MagnitudePruner(
        model, inputs if isinstance(inputs, (Tensor, dict)) else list(inputs), tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=1 - DENSITY, ignored_layers=ignored, output_transform=lambda out: tree_leaves(out),
    )  # fmt: skip
    pruner.step()
    found.theirs_parameters = size_of(model) / before[0]
    found.theirs_multiply_adds = multiply_adds(model, inputs) / before[1]


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """A TimeoutError where it takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examine(name: str, theirs: bool = True) -> Found:
    """All of it for one network; what fails is in `error`, and for torch-pruning in `theirs_error`."""
    found, started = Found(name), time.perf_counter()
    network = NETWORKS[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model, inputs = network.make().eval(), network.inputs()
            prune_weights(network, model, inputs, found)
            prune_filters(network, model, inputs, found)
        except Exception as error:
            found.error = f"{type(error).__name__}: {error}"
        found.seconds = time.perf_counter() - started
        if theirs and not (found.error or found.refused):
            try:
                with at_most(60):
                    prune_theirs(model, inputs, found)
            except Exception as error:
                found.theirs_error = f"{type(error).__name__}: {error}"
    return found


HEAD = (
    "network", "masked", "left out", "whole", "weights", "theirs", "multiply-adds", "theirs", "stays, or went wrong"
)  # fmt: skip


def row_of(found: Found) -> str:
    """A line of the table."""

    def share(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2f}"

    left = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    cells = [
        found.name, str(found.targets), left, str(len(found.left_whole)), share(found.parameters),
        share(found.theirs_parameters), share(found.multiply_adds), share(found.theirs_multiply_adds), found.remark(),
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ")[:200] for cell in cells) + " |"


def page_of(rows: Mapping[str, str]) -> str:
    """The page of results, of rows by the name of the network."""
    head = [
        f"# {len(rows)} networks of other packages with half of their channels", "",
        "`python benchmarks/networks.py` wrote this. Masked: tensors with a mask. Left out: those without, by reason.",
        "Whole: masked tensors of which no filter can be dropped. Shares are parts of the dense network, beside those",
        "of torch-pruning at the same ratio, which takes channels too that a layer norm or attention looks at several",
        "of: the network computes something else then. Here they stay, and the smaller network equals the masked one.",
        "",
    ]  # fmt: skip
    rule = "|" + " --- |" * len(HEAD)
    return "\n".join([*head, "| " + " | ".join(HEAD) + " |", rule, *rows.values(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks; all if none is given")
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument("--out", default="results/networks.md", help="where the table is written")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NETWORKS]:
        parser.error(f"unknown network {', '.join(unknown)}; the networks are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    path = Path(arguments.out)
    # Of a network that is not asked for, what was found before stays.
    before = path.read_text().splitlines() if path.exists() and arguments.names else []
    rows = {name: row for name in NETWORKS for row in before if row.startswith(f"| {name} |")}
    for name in arguments.names or NETWORKS:
        found = examine(name)
        rows[name] = row_of(found)
        print(rows[name], f"{found.seconds:.1f} s", flush=True)
    if not arguments.print:
        path.write_text(page_of({name: rows[name] for name in NETWORKS if name in rows}))


if __name__ == "__main__":
    main()
