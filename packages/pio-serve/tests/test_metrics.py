"""The metrics: their text as Prometheus' own parser reads it, their counts against requests that were made."""

from __future__ import annotations

import http.client
import json
import time

import pytest

from inference_pio.core import EngineMetrics
from inference_pio.serve._metrics import exposition

parser = pytest.importorskip("prometheus_client.parser", reason="Prometheus' parser is the oracle")

COUNTERS = {
    "pio:prompt_tokens_total": None,
    "pio:generation_tokens_total": None,
    "pio:num_preemptions_total": None,
    "pio:request_success_total": "finished_reason",
    "pio:prefix_cache_queries_total": None,
    "pio:prefix_cache_hits_total": None,
}
GAUGES = [
    "pio:num_requests_running",
    "pio:num_requests_waiting",
    "pio:kv_cache_usage_perc",
    "pio:cache_config_info",
]
HISTOGRAMS = [
    "pio:time_to_first_token_seconds",
    "pio:inter_token_latency_seconds",
    "pio:e2e_request_latency_seconds",
    "pio:request_queue_time_seconds",
    "pio:request_prefill_time_seconds",
    "pio:request_decode_time_seconds",
    "pio:request_inference_time_seconds",
    "pio:iteration_tokens_total",
    "pio:request_prompt_tokens",
    "pio:request_generation_tokens",
    "pio:request_params_n",
    "pio:request_params_max_tokens",
]
ABOUT_HTTP = {
    "http_requests": "counter",
    "http_request_duration_seconds": "histogram",
    "http_requests_inprogress": "gauge",
    "pio:http_error_replies": "counter",
    "pio:key_requests": "counter",
    "pio:key_tokens": "counter",
}


def families(text):
    """By name; the parser takes the suffix off the names of counters."""
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def samples(text):
    """Values by name and labels other than the model's."""
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "model_name")): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(served):
    status, headers, raw = served.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return raw.decode()


def test_every_metric_of_the_list_is_there_with_its_type(served):
    """Under vLLM's stems; counters lose their suffix in the parser, as Prometheus wants it."""
    found = families(scrape(served))
    assert {name: found[name.removesuffix("_total")].type for name in COUNTERS} == dict.fromkeys(COUNTERS, "counter")
    assert {name: found[name].type for name in GAUGES} == dict.fromkeys(GAUGES, "gauge")
    assert {name: found[name].type for name in ABOUT_HTTP} == ABOUT_HTTP
    assert {name: found[name].type for name in HISTOGRAMS} == dict.fromkeys(HISTOGRAMS, "histogram")
    for family in found.values():
        assert family.documentation
        names = {sample.labels.get("model_name") for sample in family.samples}
        assert names <= ({None} if family.name in ABOUT_HTTP else {"smollm2-135m-instruct"})


def test_the_set_up_of_the_cache_is_told(served):
    """Pages as vLLM names them, and how many tokens each holds: together what the engine can keep."""
    [sample] = families(scrape(served))["pio:cache_config_info"].samples
    llm = served.model.llm
    pages, size = int(sample.labels["num_gpu_blocks"]), int(sample.labels["block_size"])
    assert size == llm.page_size
    assert pages * size == served.engine.cache.capacity_tokens
    assert int(sample.labels["max_model_len"]) == llm.max_model_len


def test_counts_are_those_of_the_requests_made(served):
    """Tokens as the replies' usage says, requests by why they ended, one observation of each time per request."""
    served.wait_until_idle()
    before = samples(scrape(served))
    replies = [served.chat(f"Count to {n}.", max_tokens=n) for n in (3, 5, 8)]
    replies.append(served.chat("Say yes.", max_tokens=64, stop=["e", "a", "i", "o", "u", "E", "Y"]))
    served.wait_until_idle()
    after = samples(scrape(served))

    def grown(*key):
        return after[key] - before[key]

    usages = [reply["usage"] for reply in replies]
    cached = sum((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for usage in usages)
    assert grown("pio:generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages)
    assert grown("pio:prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages) - cached
    assert grown("pio:prefix_cache_hits_total") == cached
    assert grown("pio:prefix_cache_queries_total") >= cached
    reasons = [reply["choices"][0]["finish_reason"] for reply in replies]
    assert reasons == ["length", "length", "length", "stop"]
    assert grown("pio:request_success_total", "length") == 3
    assert grown("pio:request_success_total", "stop") == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert grown(f"pio:{name}_seconds_count") == 4
        assert grown(f"pio:{name}_seconds_sum") > 0
    assert grown("pio:inter_token_latency_seconds_count") == sum(usage["completion_tokens"] - 1 for usage in usages)
    assert grown("pio:request_prompt_tokens_sum") == sum(usage["prompt_tokens"] for usage in usages)
    assert grown("pio:request_params_max_tokens_sum") == 3 + 5 + 8 + 64


def test_reasons_that_have_not_happened_are_zero(start_server):
    """A fresh server names every reason, and no model's name is left out."""
    found = samples(start_server().ask("GET", "/metrics", key=None)[2].decode())
    reasons = {key[1]: value for key, value in found.items() if key[0] == "pio:request_success_total"}
    assert reasons == {"stop": 0, "length": 0, "abort": 0, "timeout": 0, "error": 0}
    assert found["pio:generation_tokens_total",] == 0


def test_gauges_show_what_runs_and_what_was_cancelled(served):
    """A long answer runs and owns pages; once its client goes away, neither, and it counts as aborted."""
    served.wait_until_idle()
    before = samples(scrape(served))
    connection = http.client.HTTPConnection(served.host, served.port, timeout=30)
    body = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {served.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    assert reply.status == 200
    reply.readline()
    during = samples(scrape(served))
    reply.close()
    connection.close()
    served.wait_until_idle()
    deadline = time.monotonic() + 10
    while (after := samples(scrape(served)))["pio:num_requests_running",] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert during["pio:num_requests_running",] == 1
    assert 0 < during["pio:kv_cache_usage_perc",] <= 1
    assert after["pio:num_requests_running",] == after["pio:num_requests_waiting",] == 0
    assert after["pio:kv_cache_usage_perc",] == 0
    key = ("pio:request_success_total", "abort")
    assert after[key] - before[key] == 1


def test_nothing_is_told_without_a_key(served):
    """Throughput and names of models are no one else's business."""
    assert served.ask("GET", "/metrics", key=None)[0] == 401


def test_two_models_share_a_family_and_odd_names_survive():
    """One head per family, a sample for each model; quotes, backslashes and line ends come back as they were."""
    first, second = EngineMetrics(), EngineMetrics()
    first.generation_tokens.add(7)
    second.generation_tokens.add(9)
    second.accepted_per_position.add(2, "1")
    names = ['a"b\\c\nd', "plain"]
    text = "\n".join(exposition(list(zip(names, (first, second), strict=True)))) + "\n"
    found = families(text)
    tokens = {sample.labels["model_name"]: sample.value for sample in found["pio:generation_tokens"].samples}
    assert tokens == dict(zip(names, (7, 9), strict=True))
    [place] = found["pio:spec_decode_num_accepted_tokens_per_pos"].samples
    assert place.labels == {"model_name": "plain", "position": "1"}
    assert text.count("# TYPE pio:generation_tokens_total ") == 1


@pytest.mark.parametrize("values", [[], [0.0005], [0.001, 0.0011, 1000.0]])
def test_intervals_add_up(values):
    """Cumulative, a bound belongs to its interval, and the last equals the count; exact also when empty."""
    engine = EngineMetrics()
    for value in values:
        engine.time_to_first_token.observe(value)
    found = families("\n".join(exposition([("m", engine)])) + "\n")["pio:time_to_first_token_seconds"]
    for sample in found.samples:
        if sample.name.endswith("_bucket"):
            assert sample.value == sum(value <= float(sample.labels["le"]) for value in values)
        elif sample.name.endswith("_sum"):
            assert sample.value == pytest.approx(sum(values))
        else:
            assert sample.value == len(values)


def test_before_a_model_is_there_the_text_is_empty():
    """Which the parser takes."""
    assert list(exposition([])) == []


def of_http(text):
    """Values of the metrics about HTTP, by name and labels in their order."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        if family.name in ABOUT_HTTP
        for sample in family.samples
    }


def wait_for(served, done):
    """The first reading for which ``done`` holds: a reply may be read before it was counted."""
    deadline = time.monotonic() + 10
    while not done(found := of_http(scrape(served))):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_requests_are_counted_by_route_method_and_class(served):
    """Each once, by the route as it is spelled in the table; refusals by status; what was made up by nobody."""
    served.wait_until_idle()
    before = of_http(scrape(served))
    chat = "/v1/chat/completions"
    asked = [
        (("POST", chat, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}), {}, (chat, "POST", "2xx")),
        (("POST", chat, {"messages": []}), {}, (chat, "POST", "4xx")),
        (("POST", chat, {}), {"key": "wrong-key-1"}, (chat, "POST", "4xx")),
        (("GET", chat), {}, (chat, "GET", "4xx")),
        (("GET", "/v1/models/none-such"), {}, ("/v1/models/{model:path}", "GET", "4xx")),
        (("HEAD", "/version"), {}, ("/version", "HEAD", "2xx")),
        (("GET", "/secret/path/of/mine"), {}, ("none", "GET", "4xx")),
        (("PURGE", "/version"), {}, ("/version", "other", "4xx")),
    ]
    statuses = []
    for (method, path, *body), how, _ in asked:
        connection = http.client.HTTPConnection(served.host, served.port, timeout=60)
        key = how.get("key", served.key)
        sent = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request(method, path, *(json.dumps(one) for one in body), headers=sent)
        statuses.append(connection.getresponse().status)
        connection.close()
    labels = [label for _, _, label in asked]
    after = wait_for(served, lambda now: now.get(("http_requests_total", *labels[-1]), 0) > before.get(
        ("http_requests_total", *labels[-1]), 0))  # fmt: skip

    def grown(*key):
        return after.get(key, 0) - before.get(key, 0)

    for label in set(labels):
        assert grown("http_requests_total", *label) == labels.count(label), label
    for status in set(statuses):
        if status >= 400:
            assert grown("pio:http_error_replies_total", str(status)) == statuses.count(status)
    assert grown("http_request_duration_seconds_count", chat, "POST") == 3
    assert grown("http_request_duration_seconds_sum", chat, "POST") > 0
    assert not [key for key in after if "secret" in str(key)]


def test_every_request_is_over_once(served):
    """While a stream runs it is in progress; read to its end or left, it is counted once, and nothing stays."""
    served.wait_until_idle()
    before = wait_for(served, lambda now: now["http_requests_inprogress",] == 0)
    body = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {served.key}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(served.host, served.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    reply.readline()
    during = of_http(scrape(served))
    reply.close()
    connection.close()
    key = ("http_requests_total", "/v1/completions", "POST", "2xx")
    after = wait_for(served, lambda now: now["http_requests_inprogress",] == 0)
    assert during["http_requests_inprogress",] == 1
    assert after[key] - before.get(key, 0) == 1


def test_client_that_goes_before_its_reply_is_counted_so(served):
    """Nothing was answered, and that is what is said."""
    served.wait_until_idle()
    key = ("http_requests_total", "/v1/completions", "POST", "none")
    before = of_http(scrape(served)).get(key, 0)
    connection = http.client.HTTPConnection(served.host, served.port, timeout=30)
    body = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}
    headers = {"authorization": f"Bearer {served.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    wait_for(served, lambda now: now["http_requests_inprogress",] == 1)
    connection.close()
    after = wait_for(served, lambda now: now.get(key, 0) > before)
    assert after[key] - before == 1
    assert after["http_requests_inprogress",] == 0


def test_errors_that_have_not_happened_are_zero(start_server):
    """So that an alert on the first one sees it."""
    found = of_http(start_server().ask("GET", "/metrics", key=None)[2].decode())
    assert {found["pio:http_error_replies_total", code] for code in ("400", "401", "403", "429", "500", "503")} == {0}
