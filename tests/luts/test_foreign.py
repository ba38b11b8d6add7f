"""Tables that others published become targets of their own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from widthwise.cli.app import app
from widthwise.luts import Estimator, InvalidTable, LatencyTable, Lut, Role, Severity, Status, check, import_table
from widthwise.luts.errors import TableMismatch

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

CONVOLUTIONS = """latency_ms,batch,in_channels,out_channels,kernel_size,in_size,stride,padding,kernels
2.71,38,893,326,3,5,1,1,"a;b"
7.50,38,1701,569,3,5,2,1,"c"
"""
LAYERS = """model,operation,feature,latency_us,kernel
tiny,CONV_2D,"{'Input_shape': '11', 'Input_channel': 3, 'Output_shape': '9', 'Stride': '1', 'Kernel': '3', 'Filter': '7', 'Group': '1', 'FLOPS': '5'}",320.5,k0
tiny,DEPTHWISE_CONV_2D,"{'Input_shape': '9', 'Input_channel': 7, 'Output_shape': '5', 'Stride': '2', 'Kernel': '3', 'Filter': '1', 'Group': '1', 'FLOPS': '5'}",20.5,k1
tiny,CONCATENATION,"{'Input_shape': '5', 'Input_channel': 7, 'Output_shape': '5', 'Stride': '-', 'Kernel': '2', 'Filter': '14', 'Group': '-', 'FLOPS': '-'}",3.25,
tiny,MEAN,"{'Input_shape': '5', 'Input_channel': 14, 'Output_shape': '14', 'Stride': '-', 'Kernel': '0', 'Filter': '-', 'Group': '-', 'FLOPS': '1'}",4.0,k2
tiny,FULLY_CONNECTED,"{'Input_shape': '-', 'Input_channel': 14, 'Output_shape': '-', 'Stride': '-', 'Kernel': '-', 'Filter': '10', 'Group': '-', 'FLOPS': '1'}",5.0,k3
alone,MAX_POOL_2D,"{'Input_shape': '9', 'Input_channel': 7, 'Output_shape': '4', 'Stride': '2', 'Kernel': '3', 'Filter': '-', 'Group': '-', 'FLOPS': '1'}",6.0,k4
"""  # noqa: E501
NETWORKS = "model,latency_us_mean,latency_us_std\ntiny,400.0,2.0\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_convolutions_of_a_gpu(tmp_path: Path) -> None:
    source, path = written(tmp_path, "tesla_x9.csv", CONVOLUTIONS), tmp_path / "x9.lut"
    added = import_table(source, path)
    assert (added.networks, added.layers) == (0, 2)
    with Lut.open(path, readonly=True) as lut:
        assert lut.target == {
            "runtime": "imported",
            "device": "tesla_x9",
            "threads": 1,
            "dtype": "float32",
            "memory_format": "contiguous",
        }
        first, second = lut.layers()
        assert first.spec.channels == (893, 326)
        assert first.spec.geometry.inputs == ((38, 0, 5, 5),)
        assert first.spec.geometry.outputs == ((38, 0, 5, 5),)
        assert second.spec.geometry.outputs == ((38, 0, 3, 3),)
        assert second.spec.geometry.option("stride") == (2, 2)
        assert (first.latency_ms, first.estimator, first.status) == (2.71, Estimator.IMPORTED, Status.UNSTABLE)
        assert not [finding for finding in check(lut) if finding.severity is Severity.ERROR]
    assert import_table(source, path).layers == 0  # the same file again adds nothing


def test_layers_and_networks_of_a_phone(tmp_path: Path) -> None:
    source, networks = written(tmp_path, "px_layers.csv", LAYERS), written(tmp_path, "px_networks.csv", NETWORKS)
    added = import_table(source, tmp_path / "px.lut", networks=networks)
    assert (added.networks, added.layers) == (1, 6)
    with Lut.open(tmp_path / "px.lut", readonly=True) as lut:
        assert lut.target["device"] == "px"
        [record] = lut.networks()
        assert (record.model, record.role, record.latency_ms) == ("tiny", Role.DENSE, pytest.approx(0.4))
        inside = [layer for layer in lut.layers() if layer.network_id == record.id]
        assert [layer.layer_name for layer in inside] == [
            "conv_2d_0",
            "depthwise_conv_2d_1",
            "concatenation_2",
            "mean_3",
            "fully_connected_4",
        ]
        assert [layer.spec.channels for layer in inside] == [(3, 7), (7,), (14,), (14,), (14, 10)]
        assert [layer.latency_ms for layer in inside] == pytest.approx([0.3205, 0.0205, 0.00325, 0.004, 0.005])
        assert len(LatencyTable.load(lut)) == 6


def test_networks_may_be_missing(tmp_path: Path) -> None:
    added = import_table(written(tmp_path, "px_layers.csv", LAYERS), tmp_path / "px.lut")
    assert (added.networks, added.layers) == (0, 6)


def test_another_device_is_another_table(tmp_path: Path) -> None:
    import_table(written(tmp_path, "one.csv", CONVOLUTIONS), tmp_path / "one.lut")
    with pytest.raises(TableMismatch, match="device"):
        import_table(written(tmp_path, "other.csv", CONVOLUTIONS), tmp_path / "one.lut")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONVOLUTIONS.splitlines()[0], "holds no measurement"),
        (CONVOLUTIONS.replace("7.50,", "-7.50,"), "line 3 can't be read: latency_ms must be a positive number"),
        (CONVOLUTIONS.replace("7.50,38", "7.50,many"), "line 3 can't be read: invalid literal"),
        (LAYERS.replace("MEAN", "MEDIAN"), "line 5 can't be read: operation 'MEDIAN' is not among AVERAGE_POOL_2D"),
        (LAYERS.replace("'Filter': '7', ", ""), "line 2 can't be read: it lacks 'Filter'"),
        (
            LAYERS.replace("\"{'Input_shape': '11'", "\"print(1) or {'Input_shape': '11'"),
            "line 2 can't",
        ),
        (LAYERS.replace("320.5", "nan"), "line 2 can't be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidTable, match=message):
        import_table(written(tmp_path, "bad.csv", text), tmp_path / "bad.lut")
    assert not (tmp_path / "bad.lut").exists()


def test_the_command(tmp_path: Path) -> None:
    source, networks = written(tmp_path, "px_layers.csv", LAYERS), written(tmp_path, "px_networks.csv", NETWORKS)
    arguments = ["luts", "import", str(tmp_path / "px.lut"), "--from", str(source), "--networks", str(networks)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"runs": 1, "networks": 1, "layers": 6}


@pytest.mark.skipif(not DATA.exists(), reason=f"the published tables are not at {DATA}")
@pytest.mark.parametrize("device", ["t4", "v100", "pixel4", "a03s"])
def test_the_published_tables(tmp_path: Path, device: str) -> None:
    gpu = device in ("t4", "v100")
    source = DATA / (f"gpu_conv/tesla_{device}.csv.gz" if gpu else f"phone_gpu/{device}_layers.csv.gz")
    networks = None if gpu else DATA / f"phone_gpu/{device}_networks.csv"
    added = import_table(source, tmp_path / "device.lut", networks=networks)
    with gzip.open(source, "rt") as file:
        assert added.layers == sum(1 for _ in file) - 1
    assert added.networks == (0 if gpu else 102)
    with Lut.open(tmp_path / "device.lut", readonly=True) as lut:
        assert not [finding for finding in check(lut) if finding.severity is Severity.ERROR]
