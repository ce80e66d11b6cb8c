"""Which numbers inside a network belong to which channel, followed through every operation of a forward pass.

Every output and every input of a layer, and every entry of a norm, has a label. Beside each tensor of the pass stands
one of labels: what moves numbers moves labels alike, and what joins two tensors joins their labels, so that those of
one set are dropped together or not at all. An operation that looks at several channels at once, or that is not known,
holds the labels it is given: those channels stay whole, and why is kept.

The idea is of Fang et al., DepGraph: Towards Any Structural Pruning, 2023, who guess channels from autograd's graph;
here they are read off what each operation does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ..masks.targets import LINEAR, NORMS, TransposedLinear
from .gradients import Operations, as_written, call, tensors_in, undisturbed
from .labels import Site, Trace

LAYERS = (*LINEAR, nn.modules.conv._ConvNd)
_NORMS = (*NORMS, nn.PReLU)


def trace(model: nn.Module, example_input: Any) -> Trace:
    """Run a model, which is left as it was, on an example input and follow its channels.

    Raises:
        ValueError: a model that does not take the input.
    """
    found = Trace()
    follow = _Follow(found)
    for path, module in model.named_modules():
        _label(found, follow, path, module)
    handles = [handle for path, module in model.named_modules() for handle in follow.watch(path, module)]
    # The fused passes of attention and of encoders would hide the layers inside of them.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undisturbed(model), torch.no_grad(), as_written():
            model.eval()
            with follow:
                outputs = call(model, example_input)
    except Exception as error:
        raise ValueError(f"the model does not take the example input: {type(error).__name__}: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    for tensor in tensors_in(outputs):
        if tensor in follow.shadows:
            found.labels.hold(follow.shadows[tensor], "they are outputs of the network")
    return found


def _label(found: Trace, follow: _Follow, path: str, module: Any) -> None:
    """Labels for a layer or norm, its weight and its entries."""
    labels, weight = found.labels, module._parameters.get("weight")
    if isinstance(module, LAYERS) and weight is not None and weight not in follow.weights:
        turned = isinstance(module, TransposedLinear)
        kind = "features" if isinstance(module, nn.Linear) else "channels"
        ins, outs = weight.shape if turned else (getattr(module, f"{side}_{kind}") for side in ("in", "out"))
        site = Site(path, module, labels.new(outs), outs, labels.new(ins), ins)
        follow.weights[weight] = (site, turned)
    elif isinstance(module, _NORMS):
        size = _width(module)
        site = Site(path, module, labels.new(size), size)
    else:
        return
    found.sites[id(module)] = site
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if isinstance(tensor, Tensor) and tensor.shape == (site.outputs,):
            if id(tensor) in found.entries:
                labels.join(found.entries[id(tensor)], site.writes())
            found.entries[id(tensor)] = follow.shadows[tensor] = site.writes()


def _width(norm: Any) -> int:
    """How many channels a norm has; 0 where it has one number for all of them, or is over several dimensions."""
    if isinstance(norm, nn.PReLU):
        return norm.num_parameters if norm.num_parameters > 1 else 0
    shape: tuple[int, ...] = getattr(norm, "normalized_shape", ())
    named = (getattr(norm, name, 0) for name in ("num_features", "num_channels"))
    return int(next((size for size in named if size), shape[0] if len(shape) == 1 else 0))


# --- tensors of labels


def _varying(shadow: Tensor) -> set[int]:
    """The dimensions along which labels differ."""
    dims = [d for d in range(shadow.dim()) if shadow.shape[d] > 1 and shadow.stride(d)]
    return {d for d in dims if bool((shadow != shadow.narrow(d, 0, 1)).any())}


def _thin(shadow: Tensor, dims: Iterable[int]) -> Tensor:
    """The first entries along some dimensions, which stay as ones of size 1; of 0 where there is none."""
    for dim in dims:
        shadow = shadow.narrow(dim, 0, min(1, shadow.shape[dim]))
    return shadow


def _line(shadow: Tensor, dim: int) -> Tensor:
    """The labels along one dimension, at the first place of all others."""
    return _thin(shadow, (d for d in range(shadow.dim()) if d != dim)).reshape(-1)


def _along(line: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape whose labels differ along one dimension."""
    return line.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(tuple(shape))


class _Call(NamedTuple):
    """An operation: its name without underscores at its ends, its arguments, the tensors in them, and what it gave."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[str, Any]
    tensors: list[Tensor]
    results: list[Tensor]
    place: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RESHAPES = _words("view unsafe_view reshape reshape_alias")
_SPLITS = _words("split split_with_sizes chunk")
_MOVES = _words(
    """permute transpose t expand slice select squeeze unsqueeze unbind diagonal repeat pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle narrow unfold cat stack"""
)
_SAME = _words(
    """clone detach alias to_copy lift_fresh contiguous zeros_like ones_like empty_like full_like rand_like randn_like
    bernoulli native_dropout fill zero normal uniform tril triu hardswish log_sigmoid_forward rrelu_with_noise"""
)
_POINTWISE = _words("copy prelu_kernel masked_fill where")
_OVER = _words(
    """sum mean prod amax amin max min var std var_mean std_mean all any norm linalg_vector_norm logsumexp argmax argmin
    median nanmedian mode count_nonzero nansum softmax log_softmax cumsum cumprod cummax cummin logcumsumexp sort topk
    flip roll"""
)
_BATCH_NORMS = _words(
    """native_batch_norm cudnn_batch_norm miopen_batch_norm native_batch_norm_legit batch_norm_with_update
    native_batch_norm_legit_no_training batch_norm_no_update"""
)
_INDEXED = _words("index gather index_select")
# What they give hangs on the shape of what they are given, on no number in it.
_SHAPES = _words("new_zeros new_ones new_empty new_full new_empty_strided is_same_size sym_size sym_numel sym_stride")
# Memory to be written into, and what gives a part of it.
_MAKES = _words("empty zeros ones full new_empty new_zeros new_ones new_full empty_like zeros_like ones_like full_like")
_VIEWS = _words("slice select narrow view transpose permute t unsqueeze squeeze split chunk unbind alias detach")
_VIEWS_OF_WEIGHTS = _words("t transpose detach alias to_copy clone")
_SPATIAL = re.compile(
    r"(?:adaptive_)?(?:avg|max)_pool(\d)d(?:_with_indices)?|upsample_[a-z_]+(\d)d(?:_aa)?|"
    r"(?:reflection|replication)_pad(\d)d"
)
_SEVERAL = "looks at several channels at once"


class _Follow(Operations):
    """Keeps a tensor of labels beside each tensor of a pass that has some."""

    def __init__(self, found: Trace) -> None:
        super().__init__()
        self.found, self.labels = found, found.labels
        self.shadows = WeakTensorKeyDictionary()
        self.weights = WeakTensorKeyDictionary()  # of layers: their site, and whether it is transposed
        self.fresh = WeakTensorKeyDictionary()  # what a layer gave, as it came
        self.blank = WeakTensorKeyDictionary()  # made in the pass to be written into: labels of the same memory
        self.inside: list[tuple[str, nn.Module]] = []

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        """Hooks by which it is known inside which module an operation runs."""
        entered = module.register_forward_pre_hook(lambda *_: self.inside.append((path, module)))
        return [entered, module.register_forward_hook(lambda *_: self.inside.pop() and None)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, then do the same to labels."""
        named = kwargs or {}
        out = func(*args, **named)
        tensors = [x for x in tree_leaves((args, named)) if isinstance(x, Tensor)]
        schema = getattr(func, "_schema", None)
        name = str(func) if schema is None else schema.name.partition("::")[2].strip("_")
        if name in _MAKES and not (name.endswith("_like") and any(x in self.shadows for x in tensors)):
            self.blank[out] = torch.empty_strided(out.shape, out.stride(), dtype=torch.int64).zero_()
        # Outside of the model run the hooks of masks that it holds: they write 0, and move nothing.
        elif self.inside and any(x in known for x in tensors for known in (self.shadows, self.weights, self.blank)):
            path, module = self.inside[-1]
            arguments = () if schema is None else schema.arguments
            given = {each.name: each.default_value for each in arguments if each.has_default_value()}
            given |= {each.name: value for each, value in zip(arguments, args, strict=False)} | named
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            place = f"{name} in {path or 'the model'} ({type(module).__name__})"
            self._follow(_Call(name, func, args, named, given, tensors, results, place))
        return out

    def _follow(self, op: _Call) -> None:
        if op.name in _VIEWS_OF_WEIGHTS and op.tensors[0] in self.weights:
            site, turned = self.weights[op.tensors[0]]
            self.weights[op.results[0]] = (site, turned ^ (op.name in ("t", "transpose")))
            return
        if op.tensors[0] in self.blank and (op.name in _VIEWS or op.name == "copy"):
            self._write(op)
            return
        products = {"convolution": self._convolve, "addmm": self._multiply, "mm": self._multiply}
        if op.name not in products and not self._labelled(op):
            return
        rule = products.get(op.name) or self._rule(op)
        found = rule(op) if rule is not None else self._hold(op, "is not known to treat channels one by one")
        if found is not None and any(x is y and x not in self.shadows for x in op.tensors for y in op.results):
            self._hold(op, "writes them among other numbers")
            return
        shadows = found if isinstance(found, list) else [found] * len(op.results)
        for result, shadow in zip(op.results, shadows, strict=False):
            if shadow is None or shadow.shape != result.shape or any(result is x for x in op.tensors):
                continue
            self._put(result, shadow)
            if op.name in _RESHAPES and op.tensors[0] in self.fresh:
                self.fresh[result] = self.fresh[op.tensors[0]]

    def _put(self, tensor: Tensor, shadow: Tensor) -> None:
        """Keep labels beside a tensor, without memory for dimensions along which they are alike."""
        thin = _thin(shadow, set(range(shadow.dim())) - _varying(shadow))
        if bool(thin.any()):
            self.shadows[tensor] = thin.clone().expand(shadow.shape)

    def _write(self, op: _Call) -> None:
        """A view of memory that was made in the pass, or something written there: all views of it see the labels."""
        table = self.blank[op.tensors[0]]
        if op.name == "copy":
            table.copy_(self.shadows.get(op.tensors[1], torch.zeros((), dtype=torch.int64)))
        else:
            args, named = tree_map_only(Tensor, lambda _: table, (op.args, op.kwargs))
            views = tree_leaves(op.func(*args, **named))
            self.blank |= dict(zip(op.results, views, strict=True))
        memory = table.untyped_storage().data_ptr()
        for tensor, labels in list(self.blank.items()):
            if labels.untyped_storage().data_ptr() == memory:
                self._put(tensor, labels)

    def _rule(self, op: _Call) -> Callable[[_Call], Any] | None:
        """How labels go through an operation: what gives those of its results, or None where they are held."""
        alone: dict[str, Callable[[_Call], Any]] = {
            "bmm": self._contract,
            "native_layer_norm": self._norm,
            "native_group_norm": self._norm,
            "constant_pad_nd": self._pad,
            "glu": self._glu,
            "im2col": self._windows,
            "roi_align": self._regions,
            "roi_pool": self._regions,
        }
        if op.name in alone:
            return alone[op.name]
        for names, rule in (
            (_RESHAPES | _SPLITS | _MOVES, self._move),
            (_SAME, lambda _: self.shadows.get(op.tensors[0])),
            (_SHAPES, lambda _: None),
            (_OVER, self._over),
            (_INDEXED, self._index),
            (_BATCH_NORMS, self._batch_norm),
        ):
            if op.name in names:
                return rule
        if _SPATIAL.fullmatch(op.name):
            return self._spatial
        return self._pointwise if op.name in _POINTWISE or torch.Tag.pointwise in getattr(op.func, "tags", ()) else None

    def _labelled(self, op: _Call) -> list[tuple[Tensor, Tensor]]:
        return [(x, self.shadows[x]) for x in op.tensors if x in self.shadows]

    def _hold(self, op: _Call, why: str) -> Tensor | None:
        """The channels that an operation is given stay whole; what it gives has none."""
        for _, shadow in self._labelled(op):
            self.labels.hold(shadow, f"{op.place} {why}")
        return None

    def _only(self, op: _Call, barred: Callable[[Tensor], set[int]]) -> Tensor | None:
        """The labels of the first tensor, where it alone has some and they do not differ along barred dimensions."""
        pairs = self._labelled(op)
        if len(pairs) == 1 and pairs[0][0] is op.tensors[0] and not _varying(pairs[0][1]) & barred(pairs[0][1]):
            return pairs[0][1]
        self._hold(op, _SEVERAL)
        return None

    def _pointwise(self, op: _Call) -> Tensor | None:
        """What stands in one place goes together."""
        shape = tuple(op.results[0].shape)
        sizes = {id(x): (1,) * (len(shape) - x.dim()) + tuple(x.shape) for x in op.tensors}
        wide = [(x, shadow.expand(shape)) for x, shadow in self._labelled(op)]
        varying = {id(x): _varying(shadow) for x, shadow in wide}
        for x in op.tensors:
            for other, shadow in wide if x not in self.shadows else ():
                if any(sizes[id(x)][d] > 1 for d in varying[id(other)]):
                    self.labels.hold(shadow, f"{op.place} joins them to numbers of a fixed width")
        for place, (x, shadow) in enumerate(wide):
            for other, theirs in wide[:place]:
                dims = varying[id(x)] | varying[id(other)]
                if all(sizes[id(x)][d] == sizes[id(other)][d] for d in dims):
                    alike = set(range(len(shape))) - dims
                    self.labels.join(_thin(shadow, alike), _thin(theirs, alike), f"{op.place} joins them to others")
                    continue
                for one, mine, two in ((x, shadow, other), (other, theirs, x)):
                    if any(sizes[id(one)][d] == 1 for d in varying[id(two)]):
                        self.labels.hold(mine, f"{op.place} spreads them over other channels")
        return max(wide, key=lambda pair: len(varying[id(pair[0])]))[1]

    def _over(self, op: _Call) -> Tensor | None:
        """What looks along dimensions."""
        given, rank = op.given.get("dims", op.given.get("dim")), op.tensors[0].dim()
        over = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))} if rank else set()
        shadow = self._only(op, lambda _: over)
        if shadow is None:
            return None
        shadow = _thin(shadow, over)
        if op.results[0].dim() < rank:
            for dim in sorted(over, reverse=True):
                shadow = shadow.select(dim, 0)
        return shadow.expand(op.results[0].shape)

    def _spatial(self, op: _Call) -> Tensor | None:
        """Windows over the last dimensions."""
        match, rank = _SPATIAL.fullmatch(op.name), op.tensors[0].dim()
        assert match is not None
        last = set(range(rank - int("".join(filter(None, match.groups()))), rank))
        shadow = self._only(op, lambda _: last)
        return None if shadow is None else _thin(shadow, last).expand(op.results[0].shape)

    def _regions(self, op: _Call) -> Any:
        """Regions cut out of images by torchvision: [n, c, h, w] to [regions, c, ...]; boxes hold no channels."""
        shadow = self._only(op, lambda x: set(range(x.dim())) - {1})
        return None if shadow is None else [_along(_line(shadow, 1), 1, op.results[0].shape)]

    def _windows(self, op: _Call) -> Tensor | None:
        """F.unfold: [n, c, h, w] to [n, c * window, places]."""
        shadow = self._only(op, lambda x: set(range(x.dim())) - {x.dim() - 3})
        if shadow is None:
            return None
        line, shape = _line(shadow, shadow.dim() - 3), op.results[0].shape
        return _along(line.repeat_interleave(shape[-2] // len(line)), len(shape) - 2, shape)

    def _pad(self, op: _Call) -> Tensor:
        """Zeros around; between channels they belong to none."""
        shadow, widths = self.shadows[op.tensors[0]], op.given["pad"]
        dims = [shadow.dim() - 1 - place // 2 for place in range(len(widths))]
        free = {dim for dim, width in zip(dims, widths, strict=True) if width} - _varying(shadow)
        left = [0 if dim in free else width for dim, width in zip(dims, widths, strict=True)]
        padded: Tensor = torch.constant_pad_nd(_thin(shadow, free), left, 0)
        return padded.expand(op.results[0].shape)

    def _move(self, op: _Call) -> Any:
        """The same done to labels."""
        shadow, shape = self.shadows.get(op.tensors[0]), op.results[0].shape
        if op.name in _RESHAPES and shadow is not None:
            return shadow.reshape(shape) if shadow.numel() == shape.numel() else self._hold(op, _SEVERAL)

        def of(x: Tensor) -> Tensor:
            return self.shadows[x] if x in self.shadows else torch.zeros((), dtype=torch.int64).expand(x.shape)

        args, named = tree_map_only(Tensor, of, (op.args, op.kwargs))
        moved = [x for x in tree_leaves(op.func(*args, **named)) if isinstance(x, Tensor)]
        if op.name in _SPLITS and shadow is not None:
            dim = op.given.get("dim", 0) % shadow.dim()
            if _varying(shadow) == {dim} and len({x.shape for x in moved}) == 1:
                self.found.chunks.append(torch.stack([_line(x, dim) for x in moved]))
        return moved

    def _index(self, op: _Call) -> Any:
        """Picks by numbers, but not channels."""
        indices = op.given.get("indices")
        dims = [op.given["dim"]] if indices is None else [d for d, at in enumerate(indices) if at is not None]
        shadow = self._only(op, lambda x: {d % x.dim() for d in dims})
        if shadow is None:
            return None
        args, named = tree_map_only(Tensor, lambda x: shadow if x is op.tensors[0] else x.cpu(), (op.args, op.kwargs))
        return op.func(*args, **named)

    def _glu(self, op: _Call) -> Tensor:
        shadow: Tensor = self.shadows[op.tensors[0]]
        first, second = shadow.chunk(2, op.given["dim"])
        self.labels.join(first, second, f"{op.place} joins them to others")
        return first

    def _by_channel(self, op: _Call, shadow: Tensor | None) -> Tensor | None:
        """Labels that differ along dimension 1 alone: those of one place of it, as in a pixel shuffle, go together.

        None, and held, where one channel would stand in several places then.
        """
        if shadow is None or not (others := _varying(shadow) - {1}):
            return shadow
        alike = set(range(shadow.dim())) - others - {1}
        rows = _thin(shadow, alike).movedim(1, 0).flatten(1)
        sets = [row.unique() for row in rows]
        if len(rows) < 2 or sum(map(len, sets)) > len(rows.unique()):
            self.labels.hold(shadow, f"{op.place} reads several channels at one input")
            return None
        for row in sets:
            self.labels.join(row, row[:1].expand_as(row), f"{op.place} reads other numbers in their place")
        return _thin(shadow, others).expand(shadow.shape)

    def _convolve(self, op: _Call) -> Tensor | None:
        x, weight = op.given["input"], op.given["weight"]
        return self._layer(op, x, weight, self.weights.get(weight, (None,))[0], int(op.given["groups"]))

    def _multiply(self, op: _Call) -> Tensor | None:
        x, weight = op.tensors[-2:]
        site, turned = self.weights.get(weight, (None, False))
        return self._layer(op, x, weight, site) if turned else self._contract(op)

    def _layer(self, op: _Call, x: Tensor, weight: Tensor, site: Site | None, groups: int = 1) -> Tensor | None:
        """Channels are read along dimension 1, and written along it."""
        labels, shadow = self.labels, self._by_channel(op, self.shadows.get(x))
        bias = op.given.get("bias" if op.name == "convolution" else "self") if op.name != "mm" else None
        if site is None or weight in self.shadows:
            if (
                shadow is not None
                and weight not in self.shadows
                and not (isinstance(bias, Tensor) and bias in self.shadows)
            ):
                labels.keep(shadow, f"{op.place} reads them by a weight that is computed or shared")
                return None
            return self._hold(op, _SEVERAL)
        self.found.called.add(site.path)
        line = torch.zeros_like(site.reads()) if shadow is None else _line(shadow, 1)
        labels.join(site.reads(), line, f"{op.place} reads other numbers in their place")
        if groups > 1 and groups == site.inputs == site.outputs:
            labels.join(site.reads(), site.writes())
        elif groups > 1:
            self.found.parts += [each.reshape(groups, -1) for each in (site.reads(), site.writes())]
        if isinstance(bias, Tensor) and bias in self.shadows:
            labels.join(site.writes(), self.shadows[bias].expand(site.outputs), f"{op.place} adds others to them")
        elif isinstance(bias, Tensor) and bias.numel() > 1:
            labels.hold(site.writes(), f"{op.place} joins them to numbers of a fixed width")
        self.fresh[op.results[0]] = site
        return _along(site.writes(), 1, op.results[0].shape)

    def _contract(self, op: _Call) -> Tensor | None:
        """A product of matrices none of which is a layer's weight."""
        pairs, factors = self._labelled(op), op.tensors[-2:]
        if len(pairs) != 1 or not any(pairs[0][0] is factor for factor in factors):
            return self._hold(op, _SEVERAL)
        x, shadow = pairs[0]
        summed = {x.dim() - (1 if x is factors[0] else 2)}
        if _varying(shadow) == summed:
            self.labels.keep(shadow, f"{op.place} reads them by a weight that is computed or shared")
            return None
        if _varying(shadow) & summed or op.name != "mm":
            return self._hold(op, _SEVERAL)
        return _thin(shadow, summed).expand(op.results[0].shape)

    def _batch_norm(self, op: _Call) -> list[Tensor] | Tensor | None:
        x, module = op.tensors[0], self.inside[-1][1]
        shadow = self._by_channel(op, self.shadows.get(x))
        if shadow is None:
            return self._hold(op, _SEVERAL)
        line, where = _line(shadow, 1), f"{op.place} joins them to"
        for name in ("weight", "bias", "running_mean", "running_var"):
            own = op.given.get(name)
            if isinstance(own, Tensor) and own in self.shadows:
                self.labels.join(line, self.shadows[own], f"{where} others")
            elif isinstance(own, Tensor) and own.numel() > 1:
                self.labels.hold(line, f"{where} numbers of a fixed width")
        if op.given.get("weight") is None and op.given.get("running_mean") is not None:
            self.labels.hold(line, f"{op.place} has no scale, so that it makes another number of 0")
        site = self.found.sites.get(id(module))
        if site is not None and site.outputs:  # one without tensors has a width all the same
            self.labels.join(line, site.writes().repeat(len(line) // site.outputs), f"{where} others")
        if x in self.fresh:
            self.found.behind.setdefault(self.fresh[x].path, module)
        return [shadow]

    def _norm(self, op: _Call) -> list[Tensor] | Tensor | None:
        """Norms over several channels: with a scale of 0 a channel is 0, but its neighbours count it."""
        x, layer = op.tensors[0], op.name == "native_layer_norm"
        shadow, weight, bias = self.shadows.get(x), op.given.get("weight"), op.given.get("bias")
        channel = x.dim() - 1 if layer else 1
        over = len(op.given["normalized_shape"]) if layer else 1
        if shadow is None or _varying(shadow) - {channel} or (over > 1 and _varying(shadow)):
            return self._hold(op, _SEVERAL)
        if _varying(shadow):
            line = _line(shadow, channel)
            for own in (weight, bias):
                if isinstance(own, Tensor) and own in self.shadows:
                    self.labels.join(line, self.shadows[own], f"{op.place} joins them to others")
                elif isinstance(own, Tensor) or own is weight:
                    self.labels.hold(line, f"{op.place} {_SEVERAL}")
            self.labels.keep(line, f"{op.place} {_SEVERAL}")
        return [shadow]
