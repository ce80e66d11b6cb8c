from . import bench as bench
from . import bench_result as bench_result
from . import bench_verdict as bench_verdict
from . import export as export
from . import machine_load as machine_load
from . import networks as networks
from . import onnx as onnx
