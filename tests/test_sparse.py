from __future__ import annotations

import copy
import io
import shutil
import sys

import pytest
import torch
from networks import NETWORKS
from processes import run_python
from products import thin
from torch import nn

import supermask
from supermask.kernels import build as native
from supermask.sparse import layers as sparse_layers
from supermask.sparse.accelerate import _difference, _replaceable
from supermask.sparse.layers import TOLERANCES, ColumnsLinear, CsrLinear, semi_structured, unfit

MKL = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
COMPILER = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="needs a C++ compiler")


@pytest.fixture(params=[pytest.param("csr.cpp", marks=COMPILER), pytest.param("MKL", marks=MKL)])
def multiplier(request, monkeypatch):
    """Compressed rows multiplied by either; the other would be seen."""

    def refuse(*_):
        raise AssertionError(f"not by {request.param}")

    if request.param == "MKL":
        monkeypatch.setattr(sparse_layers, "can_multiply_rows", lambda *_: False)
        monkeypatch.setattr(sparse_layers, "multiply_rows", refuse)
    else:
        monkeypatch.setattr(torch, "addmm", refuse)
    return request.param


def random_layer(outputs: int, inputs: int, density: float, bias: bool = True, seed: int = 0) -> nn.Linear:
    """A linear layer with a random mask, of which some rows and columns keep nothing."""
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight *= torch.rand(outputs, inputs) < density
    layer.weight[1::3] = 0
    layer.weight[:, 1::4] = 0
    return layer


def slowly(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Each output as the sum over the weights that are kept, one after the other."""
    y = torch.zeros(len(x), layer.out_features, dtype=torch.float64)
    for row, column in layer.weight.nonzero().tolist():
        y[:, row] += layer.weight[row, column].double() * x[:, column].double()
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("kind", [CsrLinear, ColumnsLinear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_a_sparse_layer_is_the_sum_over_kept_weights(density, bias, kind, multiplier):
    layer, x = random_layer(9, 12, density, bias), torch.randn(5, 12)
    sparse = kind(layer)
    torch.testing.assert_close(sparse(x).double(), slowly(layer, x), rtol=1e-5, atol=1e-6)
    for other in (x[0], x.view(5, 1, 12), x.t().contiguous().t(), x[:0]):
        torch.testing.assert_close(sparse(other), layer(other), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sparse(input=x), layer(input=x), rtol=1e-5, atol=1e-6)


def compressed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    csr = weight.to_sparse_csr()
    return csr.crow_indices().int(), csr.col_indices().int(), csr.values()


@COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [0, 1, 2, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 130])
def test_the_kernel_of_compressed_rows_is_a_product(samples, dtype):
    """Samples beside each other and apart, one group and several; what lies around them is not read."""
    torch.manual_seed(samples)
    weight, bias = torch.randn(11, 19, dtype=dtype) * (torch.rand(11, 19) < 0.2), torch.randn(11, dtype=dtype)
    weight[3] = 0
    around = torch.full((5, 40, samples + 50), torch.nan, dtype=dtype)
    beside = around[1:4, 2:40:2, 7 : 7 + samples]
    beside.copy_(torch.randn(beside.shape))
    apart = torch.full((5, samples + 50, 40), torch.nan, dtype=dtype).mT[1:4, 2:40:2, 7 : 7 + samples]
    apart.copy_(beside)
    expected = torch.einsum("oi,gis->gos", weight, beside) + bias[:, None]
    for x in (beside, apart):
        found = native.multiply_rows(*compressed(weight), bias, x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.is_contiguous()
        torch.testing.assert_close(native.multiply_rows(*compressed(weight), bias, x[1]), found[1], rtol=0, atol=0)


READS_AT_THE_END = """
import ctypes, mmap, torch
from supermask.kernels import build as native
from test_sparse import compressed
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
assert protect(start + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
weight = torch.randn(3, 2)
for samples in (1, 3, 17, 63, 65):
    memory = (ctypes.c_float * (2 * samples)).from_address(start + mmap.PAGESIZE - 8 * samples)
    flat = torch.frombuffer(memory, dtype=torch.float32).copy_(torch.randn(2 * samples))
    for x in (flat.view(2, samples), flat.view(samples, 2).t()):
        found = native.multiply_rows(*compressed(weight), torch.zeros(3), x)
        torch.testing.assert_close(found, weight @ x.clone())
print("read no further")
"""


@COMPILER
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of Linux")
def test_the_kernel_of_compressed_rows_reads_no_further_than_the_samples(forkserver_with_torch):
    """In a process of its own, whose memory ends with the last sample: it would be killed."""
    done = run_python(READS_AT_THE_END)
    assert (done.returncode, done.stdout) == (0, "read no further\n"), done.stderr


@COMPILER
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 300, 40), (1, 300, 1000), (7, 300, 200), (3, 300, 1)])
def test_the_kernel_of_compressed_rows_on_threads(shape, threads):
    """Work that is worth several threads: blocks of every width, groups split or not."""
    torch.manual_seed(0)
    weight, x = torch.randn(500, 300) * (torch.rand(500, 300) < 0.9), torch.randn(shape)
    torch.set_num_threads(threads)
    found = native.multiply_rows(*compressed(weight), torch.zeros(500), x)
    torch.testing.assert_close(found, weight @ x, rtol=1e-4, atol=1e-4)


@COMPILER
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compressed_rows_in_a_compiled_graph(dynamic):
    """One graph, the same numbers, and an exported program that runs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 1).requires_grad_(False)
    net = nn.Sequential(CsrLinear(conv), nn.ReLU(), nn.Flatten(), CsrLinear(random_layer(9, 8 * 20, 0.3))).eval()
    inputs = [torch.randn(n, 6, 4, 5) for n in (3, 70)]
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for x in inputs:
        torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=0)
    torch.compiler.reset()
    program = torch.export.export(net, (inputs[0],))
    assert "supermask.multiply_rows" in str(program.graph)
    torch.testing.assert_close(program.module()(inputs[0]), net(inputs[0]), rtol=0, atol=0)


@COMPILER
def test_compressed_rows_lose_no_derivative():
    """The kernel knows no derivatives: forward ones, which MKL has not either, are refused, never left out."""
    sparse, x = CsrLinear(random_layer(9, 12, 0.5)), torch.randn(5, 12)
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="SparseCsrCPU"):
            sparse(torch.autograd.forward_ad.make_dual(x, torch.randn(5, 12)))
        assert torch.equal(sparse(x), sparse(x.clone()))
    for transform in (torch.func.vmap(sparse), torch.func.grad(lambda x: sparse(x).sum())):
        with pytest.raises(RuntimeError):
            transform(x)


def test_compressed_rows_refuse_another_number_of_inputs(multiplier):
    """Checked, because the kernel would read what is not there."""
    for given in (torch.randn(5, 11), torch.randn(5, 13)):
        with pytest.raises(ValueError, match=f"expected 12 inputs of each sample, got {given.shape[1]}"):
            CsrLinear(random_layer(9, 12, 0.5))(given)
    with pytest.raises(ValueError, match="expected 6 inputs of each sample, got 3"):
        CsrLinear(nn.Conv2d(6, 8, 1).requires_grad_(False))(torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (6, 4, 5)])
def test_a_1x1_convolution_in_compressed_rows(shape, multiplier):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 1).requires_grad_(False)
    conv.weight *= torch.rand(conv.weight.shape) < 0.3
    x = torch.randn(shape)
    for given in (x, x.movedim(-3, -1).contiguous().movedim(-1, -3)):
        torch.testing.assert_close(CsrLinear(conv)(given), conv(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", [pytest.param("csr.cpp", marks=COMPILER), pytest.param("MKL", marks=MKL)])
def test_compressed_rows_are_copied_converted_and_loaded(by, monkeypatch):
    if by == "MKL":
        monkeypatch.setattr(sparse_layers, "can_multiply_rows", lambda *_: False)
    layer, x = random_layer(9, 12, 0.4), torch.randn(5, 12)
    sparse = CsrLinear(layer)
    expected = sparse(x)
    twin = copy.deepcopy(sparse)
    sparse.values.zero_()
    assert torch.equal(twin(x), expected), "a copy has weights of its own"
    sparse.load_state_dict(twin.state_dict())
    assert torch.equal(sparse(x), expected)
    assert twin.double()(x.double()).dtype == torch.float64
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    y = torch.randn(5, 12, requires_grad=True)
    assert torch.allclose(torch.autograd.grad(sparse(y).sum(), y)[0], layer.weight.sum(0).expand(5, -1), atol=1e-6)


class Pointwise(nn.Module):
    """A 1x1 convolution, one that is none, and a head called twice behind `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 64, 1)
        self.kernel = nn.Conv2d(64, 8, 3)
        self.fc = nn.Linear(8 * 16, 256)
        self.again = nn.Linear(256, 256)
        self.head = nn.Linear(256, 4)

    def forward(self, x):
        x = torch.relu(self.kernel(torch.relu(self.wide(x))))
        x = torch.relu(self.fc(x.flatten(1)))
        x = torch.relu(self.again(torch.relu(self.again(x))))
        return self.head(x.view(-1, 128).view(-1, 256))


@pytest.mark.parametrize("network", thin([*NETWORKS, "pointwise"], 2))
def test_an_accelerated_network_gives_the_same_outputs(network):
    if network == "pointwise":
        torch.manual_seed(0)
        model, x = Pointwise(), torch.randn(7, 3, 6, 6)
    else:
        model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    masks = supermask.prune(model, 0.1)
    before = copy.deepcopy(model.state_dict())
    net = supermask.accelerate(model, masks, example_input=x, seconds=0.01)
    found = supermask.speedup_of(net)
    assert not net.training and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    supermask.hold(model, masks)
    expected = model.eval()(x)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        supermask.accelerate(model, example_input=x, seconds=0.01)(x), expected, rtol=1e-4, atol=1e-5
    )
    baked = supermask.bake(model)
    called = {row.name for row in found.layers}
    assert called == {name for name, m in baked.named_modules() if name and _replaceable(m) and name != "kernel"}
    for row in found.layers:
        assert row.density == float((baked.get_submodule(row.name).weight != 0).double().mean())
        assert "dense" in row.seconds or not row.seconds
        if found.factor > 1 and row.seconds:
            assert row.chosen == min(row.seconds, key=row.seconds.get)


@MKL
def test_the_fastest_is_chosen_and_seen(monkeypatch):
    """With a clock by which compressed rows are fast: all layers are replaced, in a layout that `view` can read."""
    from supermask.sparse import accelerate as sparse

    def by_name(calls, device, seconds):
        return {name: {"csr": 1.0, "sparse": 1.0, "dense": 2.0, "columns": 3.0}[name] for name in calls}

    monkeypatch.setattr(sparse, "_quartiles", by_name)
    torch.manual_seed(0)
    model, x = Pointwise(), torch.randn(7, 3, 6, 6)
    net = supermask.accelerate(model, supermask.prune(model, 0.1), example_input=x)
    kinds = {name: type(module).__name__ for name, module in net.named_children()}
    assert kinds == {
        "wide": "CsrLinear",
        "kernel": "Conv2d",
        "fc": "CsrLinear",
        "again": "CsrLinear",
        "head": "CsrLinear",
    }
    assert [row.chosen for row in supermask.speedup_of(net).layers] == ["csr"] * 4
    assert net.again.contiguous, "`view` cannot read the transposed layout"
    assert supermask.speedup_of(net).factor == 2 and supermask.speedup_of(net).difference < 1e-5
    plain = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7))
    net = supermask.accelerate(plain, supermask.prune(plain, 0.2), example_input=torch.randn(5, 12))
    assert not net[0].contiguous
    assert net[0](torch.randn(5, 12)).t().is_contiguous(), "what the next layer reads as it is"


class ReadsElsewhere(nn.Module):
    """A layer that is called, and of which something else reads a tensor too."""

    def __init__(self, read: str, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.read, self.scale = nn.Linear(256, 256), nn.Linear(256, 256), read, scale

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        return y * self.scale + (self.a.bias if self.read == "bias" else self.a.weight.norm())


@MKL
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ReadsElsewhere("bias"), None),
        (ReadsElsewhere("weight"), "the model does not run with it: "),
        (ReadsElsewhere("bias", float("nan")), "the model's outputs differ by inf"),
    ],
    ids=["bias", "weight", "nan"],
)
def test_where_the_whole_model_differs_all_of_it_stays_dense(model, reason, monkeypatch):
    from supermask.sparse import accelerate as sparse

    def always(calls, *_):
        return {name: float(name not in ("csr", "sparse")) for name in calls}

    monkeypatch.setattr(sparse, "_quartiles", always)
    masks, x = supermask.prune(model, 0.05), torch.randn(256, 256)
    net = supermask.accelerate(model, masks, example_input=x)
    layers = supermask.speedup_of(net).layers
    if reason is None:
        assert [layer.chosen for layer in layers] == ["csr", "csr"]
        assert supermask.speedup_of(net).difference < 1e-5
    else:
        assert {layer.chosen for layer in layers} <= {"dense"}
        assert all(reason in layer.refused["csr"] for layer in layers)
    supermask.hold(model, masks)
    assert torch.allclose(net(x), model.eval()(x), atol=1e-4, equal_nan=True)


@MKL
def test_where_the_whole_is_not_faster_all_of_it_stays_dense(monkeypatch):
    from supermask.sparse import accelerate as sparse

    monkeypatch.setattr(sparse, "_quartiles", lambda calls, *_: {name: float(name != "csr") for name in calls})
    model, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(5, 12)
    net = supermask.accelerate(model, supermask.prune(model, 0.2), example_input=x)
    assert type(net[0]) is nn.Linear
    assert [row.chosen for row in supermask.speedup_of(net).layers] == ["dense"]
    assert supermask.speedup_of(net).factor == 1


@MKL
def test_a_candidate_with_other_outputs_is_refused(monkeypatch):
    monkeypatch.setattr(
        CsrLinear, "forward", lambda self, input: input @ self.weight.to_dense().t() + self.bias.t() * 1.01
    )
    model, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(5, 12)
    net = supermask.accelerate(model, supermask.prune(model, 0.2), example_input=x, seconds=0.01)
    (row,) = supermask.speedup_of(net).layers
    assert row.chosen != "csr" and "csr" not in row.seconds
    assert "its outputs differ by" in row.refused["csr"] and "more than 1e-05" in row.refused["csr"]
    assert _difference(torch.full((2,), torch.nan), torch.ones(2)) == float("inf")


def test_bad_requests():
    model, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(5, 12)
    with pytest.raises(ValueError, match="2:4 needs CUDA with compute capability 8.0, found a model on cpu"):
        supermask.accelerate(model, example_input=x, candidates=["2:4"])
    with pytest.raises(ValueError, match=r"unknown candidate 'scr'; did you mean 'csr'.*; 2:4 needs CUDA"):
        supermask.accelerate(model, example_input=x, candidates=["scr", "2:4"])
    with pytest.raises(ValueError, match="calls no linear layer and no 1x1 convolution"):
        supermask.accelerate(nn.Sequential(nn.Conv1d(12, 3, 3)), example_input=torch.randn(1, 12, 9))
    with pytest.raises(ValueError, match="does not come from supermask.accelerate"):
        supermask.speedup_of(model)
    with pytest.raises(ValueError, match="there is no parameter '1.weight'"):
        supermask.accelerate(model, {"1.weight": torch.ones(9, 12, dtype=torch.bool)}, example_input=x)
    with pytest.raises(ValueError, match="seconds above 0"):
        supermask.accelerate(model, example_input=x, seconds=0)


def test_without_mkl_and_without_a_compiler_there_are_no_compressed_rows(monkeypatch):
    from supermask.sparse import accelerate as sparse

    model, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(5, 12)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(sparse, "build", lambda name: None)
    with pytest.raises(ValueError, match=r"csr needs a C\+\+ compiler or a PyTorch with MKL, here is neither"):
        supermask.accelerate(model, example_input=x, candidates=["csr"])
    net = supermask.accelerate(model, supermask.prune(model, 0.2), example_input=x, seconds=0.01)
    (row,) = supermask.speedup_of(net).layers
    assert "csr" not in {*row.seconds, *row.refused}


def test_what_is_two_of_four():
    layer = nn.Linear(8, 3).requires_grad_(False)
    assert unfit("2:4", layer) == "its weights are not 2 of every 4 inputs"
    layer.weight *= torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    assert unfit("2:4", layer) == ""
    assert unfit("2:4", nn.Linear(6, 3)) == "its weights are not 2 of every 4 inputs"
    assert unfit("columns", layer) == "" and unfit("columns", nn.Linear(8, 3)) == "every input is read"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_on_a_gpu(dtype):
    """The first linear layer of a ViT-B block's MLP, over 8 pictures of 197 tokens."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)).cuda().to(dtype)
    x = torch.randn(8 * 197, 768, device="cuda", dtype=dtype)
    masks = supermask.prune(model, 0.5, granularity="2:4")
    net = supermask.accelerate(model, masks, example_input=x, candidates=["2:4"])
    assert all(not row.refused for row in supermask.speedup_of(net).layers)
    supermask.hold(model, masks)
    torch.testing.assert_close(net(x), model.eval()(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    first = supermask.bake(model)[0]
    torch.testing.assert_close(semi_structured(first)(x), first(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
