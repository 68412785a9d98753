"""The real server on a loopback port, with the default model."""

from __future__ import annotations

import asyncio
import sys

import pytest

from inference_pio.benchmarks._serve_server import free_port, running_server, serve_command

pytest.importorskip("inference_pio.serve", reason="pio serve is a distribution of its own")


@pytest.mark.parametrize("key", [None, "sk-test-0123456789abcdef0123456789"])
def test_lengths_come_out_as_asked(pio_bench, monkeypatch, tmp_path, key):
    """Completions and chats of the real server, its template included; with a key and without."""
    options = ["--num-prompts", 4, "--input-len", 50, "--output-len", 6, "--max-concurrency", 2, "--json"]
    headers = {}
    if key is not None:
        monkeypatch.setenv("PIO_SERVE_API_KEY", key)
        (tmp_path / "key").write_text(key)
        options += ["--api-key-file", tmp_path / "key"]
        headers["authorization"] = f"Bearer {key}"
    port = free_port()

    async def main():
        async with running_server(serve_command("smollm2-135m-instruct", port), port, headers=headers) as (url, _):
            return [
                await asyncio.to_thread(pio_bench, "serve", "--base-url", url, "--endpoint", endpoint, *options)
                for endpoint in ("completions", "chat")
            ]

    for done in asyncio.run(main()):
        assert done.code == 0, done.err
        found = {each["name"]: each["values"][0] for each in done.json["results"]}
        assert (found["requests completed"], found["requests failed"], found["output tokens"]) == (4, 0, 24)
        assert found["input tokens"] == pytest.approx(200, rel=0.05)
        assert not [warning for warning in done.json["warnings"] if "usage" in warning]


def test_overhead_of_the_real_server(pio_bench):
    """By one command; the figures are there, and on Linux also those of the processor."""
    done = pio_bench("serve", "--overhead", "--num-prompts", 2, "--input-len", 16, "--output-len", 8)
    assert done.code == 0, done.err
    assert "Prompts asked of both sides:             2" in done.out
    if sys.platform.startswith("linux"):
        assert "unknown" not in done.out
