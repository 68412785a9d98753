"""Two replicas of the real default model on a local Ray, asked by OpenAI's client."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = """
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import ray
from ray import serve

from inference_pio.serve import KeyRing, ServeSettings
from inference_pio.serve.ray import deploy

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
settings = ServeSettings(port=port, keys=KeyRing(["key-of-the-cluster"]), drain_s=2)
ray.init(
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=80 << 20,
    _temp_dir=sys.argv[1],
    _node_ip_address="127.0.0.1",
)
try:
    deploy("smollm2-135m-instruct", settings=settings, replicas=2, max_model_len=1024, max_num_seqs=4)
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key="key-of-the-cluster", max_retries=0)
    stranger = openai.OpenAI(base_url=url, api_key="key-of-somebody", max_retries=0)
    messages = [{"role": "user", "content": "Name the capital of France."}]

    def answer(_):
        return client.chat.completions.create(
            model="smollm2-135m-instruct", messages=messages, max_tokens=40, temperature=0
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(16)))
    print("answers", {one.choices[0].message.content for one in answers})
    chunks = client.chat.completions.create(
        model="smollm2-135m-instruct", messages=messages, max_tokens=8, temperature=0, stream=True
    )
    print("chunks", sum(1 for _ in chunks))
    for label, ask in (
        ("stranger", lambda: stranger.models.list()),
        ("missing", lambda: client.chat.completions.create(model="x", messages=messages)),
    ):
        try:
            ask()
        except openai.APIStatusError as error:
            print(label, error.status_code)
    with client.models.with_streaming_response.list(extra_headers={"x-request-id": "mine"}) as reply:
        print("request-id", reply.headers.get("x-request-id"))
finally:
    serve.shutdown()
    ray.shutdown()
"""


@pytest.fixture
def folder():
    """A short path: Ray's sockets are below it, and their paths are bounded."""
    path = Path(tempfile.mkdtemp(prefix="ray-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
def test_two_replicas(folder):
    """Both answer, and as one server does: keys, streams, errors, request ids."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    environment = {
        **os.environ,
        "HOME": str(folder),  # where Ray writes the token of the cluster
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    assert process.returncode == 0, output
    assert "answers {'The capital of France is Paris.'}" in output
    chunks = int(re.search(r"^chunks (\d+)$", output, re.MULTILINE)[1])
    assert chunks > 5
    for line in ("stranger 401", "missing 404", "request-id mine"):
        assert f"{line}\n" in output, output
    # Ray's own log says which process answered which request.
    assert len(set(re.findall(r"ServeReplica:pio:pio pid=(\d+)\)[^\n]* POST / 200", output))) == 2, output
