"""Settings files: every format, one per layer, and what is refused in them."""

from __future__ import annotations

import os

import pytest

from inference_pio.interfaces import ConfigError

FILES = {
    "pio.toml": 'dtype = "float16"\ntop_p = 0.5\nmax_tokens = 9\nignore_unknown_keys = true\n',
    "pio.yaml": "# comment\ndtype: float16\ntop_p: 0.5\nmax_tokens: 9\nignore_unknown_keys: true\n",
    "pio.yml": "{dtype: float16, top_p: 0.5, max_tokens: 9, ignore_unknown_keys: yes}",
    "pio.json": '{"dtype": "float16", "top_p": 0.5, "max_tokens": 9, "ignore_unknown_keys": true}',
    "pyproject.toml": '[tool.pio]\ndtype = "float16"\ntop_p = 0.5\nmax_tokens = 9\nignore_unknown_keys = true\n',
}
ORIGINS = {name: f"./{name}" for name in FILES} | {"pyproject.toml": "[tool.pio] in pyproject.toml"}


@pytest.mark.parametrize("name", FILES)
def test_project_file_in_each_format(load, project, write, name):
    """TOML, YAML, JSON and pyproject.toml say the same thing, each under its own name."""
    write(project / name, FILES[name])
    resolved = load()
    settings = resolved.settings
    assert (settings.dtype, settings.top_p, settings.max_tokens) == ("float16", 0.5, 9)
    assert settings.ignore_unknown_keys is True
    assert resolved.origin("dtype") == ORIGINS[name]


@pytest.mark.parametrize("suffix", ["toml", "yaml", "yml", "json"])
def test_user_file_in_each_format(load, home, write, suffix):
    """The user's file may have any of the formats too."""
    write(home / f".config/pio/config.{suffix}", FILES[f"pio.{suffix}"])
    resolved = load()
    assert resolved.settings.dtype == "float16"
    assert resolved.origin("dtype") == f"~/.config/pio/config.{suffix}"


def test_user_file_follows_xdg(load, tmp_path, home, write):
    """`XDG_CONFIG_HOME` moves the user's file; a relative one is ignored, as the specification says."""
    write(tmp_path / "xdg/pio/config.toml", "top_k = 1")
    write(home / ".config/pio/config.toml", "top_k = 2")
    moved = load(env={"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    assert (moved.settings.top_k, moved.origin("top_k")) == (1, f"{tmp_path}/xdg/pio/config.toml")
    assert load(env={"XDG_CONFIG_HOME": "relative"}).settings.top_k == 2


def test_explicit_user_file(load, tmp_path, home, write):
    """A named user file takes the place of the one in the configuration folder; absent, it sets nothing."""
    write(home / ".config/pio/config.toml", "top_k = 2")
    named = write(tmp_path / "mine.toml", "seed = 3")
    resolved = load(user_file=named)
    assert (resolved.settings.seed, resolved.settings.top_k) == (3, None)
    assert resolved.origin("seed") == str(named)
    assert load(user_file=tmp_path / "absent.toml").settings.top_k is None


def test_null_in_a_file_sets_none(load, project, write):
    """Where None is a value of the setting, a file can say so."""
    write(project / "pio.json", '{"max_tokens": null}')
    resolved = load()
    assert (resolved.settings.max_tokens, resolved.origin("max_tokens")) == (None, "./pio.json")


@pytest.mark.parametrize("content", ["", "# nothing\n"])
@pytest.mark.parametrize("name", ["pio.toml", "pio.yaml"])
def test_empty_file_sets_nothing(load, project, write, name, content):
    """An empty file is a table without keys."""
    write(project / name, content)
    assert {row.origin for row in load().rows()} == {"default"}


@pytest.mark.parametrize(
    "content",
    ["[project]\nname = 'x'\n", "[tool.other]\npio = 1\n", "name = 'pio'", "this is = = not TOML", b"\xff\xfe"],
)
def test_pyproject_without_our_table_is_not_ours_to_judge(load, project, write, content):
    """Someone else's pyproject.toml neither sets anything nor stops anything."""
    write(project / "pyproject.toml", content)
    assert {row.origin for row in load().rows()} == {"default"}


def test_parents_are_not_searched(load, project, write):
    """What runs does not depend on a folder above, which someone else may write."""
    write(project.parent / "pio.toml", "top_k = 1")
    assert load().settings.top_k is None


@pytest.mark.parametrize(
    ("first", "second"), [("pio.toml", "pio.yaml"), ("pio.yaml", "pio.yml"), ("pio.json", "pyproject.toml")]
)
def test_two_project_files_are_refused(load, project, write, first, second):
    """Which of two files should win cannot be known."""
    for name in (first, second):
        write(project / name, FILES[name])
    with pytest.raises(ConfigError, match=r"settings in more than one place: .* and .* \(keep one of them\)"):
        load()


def test_two_user_files_are_refused(load, home, write):
    """The same holds for the user's folder."""
    for suffix in ("toml", "json"):
        write(home / f".config/pio/config.{suffix}", FILES[f"pio.{suffix}"])
    with pytest.raises(ConfigError, match=r"~/\.config/pio/config\.toml and ~/\.config/pio/config\.json"):
        load()


def test_a_project_cannot_choose_the_hub(load, project, home, write):
    """A folder that someone else wrote must not send downloads and tokens elsewhere; the user's own file may."""
    write(project / "pio.toml", 'hub_endpoint = "https://evil.example"')
    with pytest.raises(ConfigError, match=r"hub_endpoint cannot be set by a project \(set PIO_HUB_ENDPOINT instead\)"):
        load()
    (project / "pio.toml").unlink()
    write(home / ".config/pio/config.toml", 'hub_endpoint = "https://hub.example"')
    assert load().settings.hub_endpoint == "https://hub.example"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pio.toml", "dtyp = 'x'", r"^\./pio\.toml: unknown setting 'dtyp' \(did you mean 'dtype'\?\)$"),
        ("pio.toml", "max-tokens = 1", r"unknown setting 'max-tokens' \(did you mean 'max_tokens'\?\)"),
        ("pio.toml", "threads = '4'", r"^\./pio\.toml: threads must be an integer from 1 to 4096 or none, got '4'$"),
        ("pio.toml", "threads = true", r"threads must be .* got True$"),
        ("pio.toml", "top_p = nan", r"top_p must be .* got nan$"),
        ("pio.toml", "seed = 1979-05-27", r"seed must be .* got a date$"),
        ("pio.toml", "seed = 0x" + "f" * 5000, r"got an integer of 20000 bits$"),
        ("pio.toml", "ignore_unknown_keys = 1", r"must be true or false, got 1$"),
        ("pio.toml", "[dtype]\nx = 1", r"dtype must be one of .* got a table of 1$"),
        ("pio.toml", "dtype = ", r"^\./pio\.toml: not TOML: "),
        ("pio.toml", b"model = '\xff'", r"^\./pio\.toml: not TOML: "),
        ("pio.toml", "seed = " + "[" * 5000, r"^\./pio\.toml: (nested too deeply|not TOML)"),
        ("pio.toml", "#" * 70_000, r"^\./pio\.toml: more than 65536 bytes$"),
        ("pio.yaml", "dtype: [", r"^\./pio\.yaml: not YAML: "),
        ("pio.yaml", "- a", r"^\./pio\.yaml: must hold a table of settings, got \['a'\]$"),
        ("pio.yaml", "a: &x 1\nb: *x", r"^\./pio\.yaml: YAML aliases are not allowed$"),
        ("pio.yaml", "seed: 1\nseed: 2", r"^\./pio\.yaml: seed: key given twice$"),
        ("pio.yaml", "seed: !!python/object/apply:os.getpid []", r"^\./pio\.yaml: not YAML: "),
        ("pio.yaml", "[" * 3000, r"^\./pio\.yaml: more than 500 brackets$"),
        ("pio.yaml", "- " * 30_000, r"^\./pio\.yaml: nested too deeply$"),
        ("pio.yaml", "1: 2", r"unknown setting 1 "),
        ("pio.yaml", b"\xff", r"^\./pio\.yaml: not YAML: "),
        ("pio.json", "{", r"^\./pio\.json: syntax: not JSON: "),
        ("pio.json", "[]", r"^\./pio\.json: must hold a table of settings, got \[\]$"),
        ("pio.json", '{"seed": 1, "seed": 2}', r"^\./pio\.json: seed: key given twice$"),
        ("pio.json", '{"top_p": NaN}', r"^\./pio\.json: number: NaN is not JSON$"),
        ("pio.json", '{"dtype": null}', r"dtype must be one of .*, got None$"),
        ("pyproject.toml", "[tool.pio]\ndtyp = 1", r"^\[tool\.pio\] in pyproject\.toml: unknown setting 'dtyp'"),
        (
            "pyproject.toml",
            "[tool]\npio = 1",
            r"^\[tool\.pio\] in pyproject\.toml: must hold a table of settings, got 1$",
        ),
        ("pyproject.toml", "[tool.pio", r"^pyproject\.toml: not TOML: "),
    ],
)
def test_bad_file_is_one_line_with_its_name(load, project, write, name, content, message):
    """Whatever is wrong with a settings file, one line names the file and the fault; exit code 2."""
    write(project / name, content)
    with pytest.raises(ConfigError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


def test_folder_in_place_of_a_file(load, project):
    """A folder called pio.toml is an error, not a crash."""
    (project / "pio.toml").mkdir()
    with pytest.raises(ConfigError, match=r"^\./pio\.toml: not a regular file$"):
        load()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_pipe_in_place_of_a_file(load, project):
    """A named pipe does not make us wait for ever."""
    os.mkfifo(project / "pio.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load()
