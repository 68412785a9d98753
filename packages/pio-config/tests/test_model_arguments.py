"""What settings say of the model, as it is loaded."""

from __future__ import annotations

import msgspec

from inference_pio.config import Settings, cache_dir, model_arguments

OF_REQUESTS = {"max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "system"}


def test_every_setting_that_is_not_of_requests_is_passed_on():
    """Under its own name, and as it stands; the folder is resolved."""
    found = model_arguments(Settings(threads=3, kv_cache_dtype="int8"))
    names = {field.name for field in msgspec.structs.fields(Settings)}
    assert set(found) == names - OF_REQUESTS
    assert found["cache_dir"] == cache_dir(Settings())
    settings = Settings(threads=3, kv_cache_dtype="int8")
    assert all(value == getattr(settings, name) for name, value in found.items() if name != "cache_dir")


def test_none_takes_drafting_back():
    """The word is for flags over files: what is loaded drafts nothing."""
    assert model_arguments(Settings(speculative="none"))["speculative"] is None
    assert model_arguments(Settings(speculative="ngram"))["speculative"] == "ngram"
