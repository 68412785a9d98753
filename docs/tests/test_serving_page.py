"""What the page about serving tells people to write is taken by what they write it for."""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)

pytest.importorskip("inference_pio.serve", reason="needs pio-serve, which `nox -s docs` installs")


def block(language, *words):
    """The only block of a language that has these words."""
    [found] = [text for kind, text in BLOCKS if kind == language and all(word in text for word in words)]
    return found


def commands():
    """Arguments of every ``pio serve`` on the page: in shells, the unit, the image and the pod."""
    for kind, text in BLOCKS:
        if kind == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("pio serve "):
                    yield shlex.split(line)[2:]
    yield shlex.split(re.search(r"^ExecStart=\S+/pio serve (.*)$", PAGE, flags=re.MULTILINE)[1])
    yield json.loads(re.search(r"^CMD (\[.*\])$", PAGE, flags=re.MULTILINE)[1])
    yield json.loads(re.search(r"^    args: (\[.*\])$", PAGE, flags=re.MULTILINE)[1])


def test_commands_are_found():
    """Were the patterns to find none, the test below would pass without trying any."""
    assert len(list(commands())) == 8


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_command_takes_its_options(arguments):
    """The command's own parser does, and every option that the page shows is one of its."""
    from inference_pio.serve._command import serve

    with serve.make_context("pio serve", list(arguments)) as context:
        assert context.params["models"] == ("smollm2-135m-instruct",)


def test_options_in_the_text_are_there():
    """Those named in sentences too."""
    from inference_pio.serve._command import serve

    known = {name for parameter in serve.params for name in parameter.opts}
    said = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert said
    assert said <= known


def test_admin_command_is_there():
    """``pio admin reload-keys``."""
    from inference_pio.serve._admin.command import admin

    said = set(re.findall(r"`pio admin ([a-z-]+)", PAGE))
    assert said
    assert said <= set(admin.commands)


def test_key_file_is_one():
    """A ring takes its lines, with the scopes that the page lists."""
    from inference_pio.serve import KeyRing
    from inference_pio.serve._scopes import SCOPES

    lines = [line for line in block("text", "scopes=").splitlines() if not line.startswith("#")]
    ring = KeyRing(lines)
    assert len(ring) == 3
    assert ring.grant("prometheus").scopes == {"metrics"}
    row = re.search(r"^\| `scopes=` \|(.*?)Without", PAGE, flags=re.MULTILINE)[1]
    assert set(re.findall(r"`(\w+)`", row)) == SCOPES


def test_metrics_of_the_page_are_counted():
    """Each name is one of the server's."""
    from inference_pio.core import EngineMetrics
    from inference_pio.serve import ModelSpec
    from inference_pio.serve._http_metrics import HttpMetrics
    from inference_pio.serve._models.metrics import model_metrics
    from inference_pio.serve._models.pooled_model import PooledModel
    from inference_pio.serve._router import metrics as router_metrics

    known = {metric.name for metric in EngineMetrics()} | {first.name for first, _ in HttpMetrics().families()}
    known |= {metric.name for metric in model_metrics(PooledModel(spec=ModelSpec(label="any", plan=None)))}
    said = set(re.findall(r"`((?:pio:|http_re)\w+)", PAGE))
    of_router = {name for name in said if name.startswith("pio:router_")}
    assert len(said) > 10
    assert said - of_router <= known
    source = inspect.getsource(router_metrics)  # it writes them without a table that could be asked
    assert [name for name in of_router if f'"{name.removeprefix("pio:router_")}"' not in source] == []


def test_unit_is_one(tmp_path):
    """``systemd-analyze`` finds nothing to say of it, and it stops later than requests may take to finish."""
    unit = block("systemd", "[Service]")
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, flags=re.MULTILINE)[1])
    drain = int(re.search(r"--drain-timeout (\d+)", unit)[1])
    assert stop > drain + 5
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "pio.service"
    file.write_text(unit.replace("/srv/pio/bin/pio", sys.executable))
    done = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True, check=False)
    # Of units of the machine itself it may complain as well.
    assert "pio.service" not in done.stderr
    assert done.returncode == 0 or "pio" not in done.stderr


def test_pod_waits_longer_than_requests_may():
    """The grace period holds the pause before the signal, the time to drain, and last words."""
    pod = block("yaml", "livenessProbe")
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", pod)[1])
    pause = int(re.search(r"preStop: \{sleep: \{seconds: (\d+)\}\}", pod)[1])
    drain = int(re.search(r'"--drain-timeout", "(\d+)"', pod)[1])
    assert grace > pause + drain + 5


def test_proxies_wait_longer_than_requests_may():
    """And gather no events."""
    from inference_pio.serve import Bounds

    nginx, caddy = block("nginx", "proxy_pass"), block("text", "reverse_proxy")
    for text, pattern in ((nginx, r"proxy_read_timeout (\d+)s"), (caddy, r"response_header_timeout (\d+)s")):
        assert int(re.search(pattern, text)[1]) > Bounds().request_s
        assert text.count("{") == text.count("}")
    assert "proxy_buffering off;" in nginx
    assert "flush_interval -1" in caddy
    assert int(re.search(r"client_max_body_size (\d+)m", nginx)[1]) << 20 >= Bounds().body_bytes
