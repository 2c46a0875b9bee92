"""What `import mpdiffuser` gives."""

import importlib
import re

import pytest

import mpdiffuser


def test_names_are_imported_on_first_use() -> None:
    for name in mpdiffuser.__all__:
        assert getattr(mpdiffuser, name) is not None
    for name in ("Controller", "MPDiffuserPipeline", "SamplerConfig"):
        kind = getattr(mpdiffuser, name)
        assert kind is getattr(importlib.import_module(kind.__module__), name)
        assert kind.__module__.startswith("mpdiffuser.")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'mpdiffuser' has no attribute 'Planer'"):
        _ = mpdiffuser.Planer
    with pytest.raises(ImportError):
        from mpdiffuser import Planer  # noqa: F401


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mpdiffuser.__version__)
