"""The forward benchmark: every figure is there, and the record is one line of JSON."""

import json

import pytest

from inference_pio.testing import forward_benchmark, load_model
from inference_pio.testing._benchmark import matrix_parameters, read_bytes_per_token


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_per_token_by_hand(toy, tiny_checkpoint, tied):
    """All matrices once, the look-up of an untied embedding apart, and the cache of the context."""
    loaded = load_model(toy(), tiny_checkpoint("llama", tie_word_embeddings=tied))
    layer = 64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 96
    assert matrix_parameters(loaded) == 3 * layer + 131 * 64
    assert read_bytes_per_token(loaded, 10) == 4 * (3 * layer + 131 * 64) + 4 * 10 * 3 * 2 * 2 * 16


def test_command_line_prints_a_table_and_a_record(toy, checkpoint, monkeypatch, capsys, tmp_path):
    """The last line is the record, the file holds the same."""
    path = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", ["bench_forward.py", "--quick", "--json", str(path)])
    forward_benchmark(toy(), "pio-model-toy", lambda _quick: checkpoint, dtypes=["float32"])
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    assert json.loads(path.read_text()) == record
    assert record["package"] == "pio-model-toy"
    names = [result["name"] for result in record["results"]]
    assert names == ["memory read", "float32: prefill 128", "float32: decode, batch 1"]
    assert all(result["value"] > 0 for result in record["results"])
    assert record["machine"]["threads"] >= 1
    assert "% of memory bandwidth" in lines[2]
