"""The format versions of our files, and how files of earlier versions are read.

A file is brought up to date while it is loaded, one version at a time; it is never written over. To change the
format: raise ``FORMAT_VERSION``, add the step to ``MIGRATIONS``, and run tests/golden/make_checkpoints.py, which
keeps files of the new version for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import shown

FORMAT_VERSION = 3
"""What is written."""

Content = dict[str, Any]


class NewerFormatError(InputError):
    """A file of a later version than this package knows: not damaged, but not for us to read."""


def _count_lost_macro_steps(kind: str, content: Content) -> Content:
    """1 to 2: a Stage 2 run restarts environments that die, and counts the macro-steps that this costs."""
    if kind != "stage2":
        return content
    return {**content, "counters": {**content["counters"], "lost_macro_steps": 0}}


def _into_safetensors(kind: str, content: Content) -> Content:
    """2 to 3: the same content in a safetensors file instead of torch's archive."""
    return content


MIGRATIONS: dict[int, Callable[[str, Content], Content]] = {1: _count_lost_macro_steps, 2: _into_safetensors}
"""By version: from the content of a file of a kind to what the next version would have written."""


def migrate(content: Content, kind: str, flag: str, where: str) -> Content:
    """Return the content of a file as ``FORMAT_VERSION`` would have written it.

    Args:
        content: what the file holds; it is left as it is.
        kind: ``base_policy``, ``stage1``, ``stage2`` or ``replay``, whose files had no version before 2.
        flag: the setting to name in an error.
        where: the file to name in an error.

    Raises:
        NewerFormatError: a version that is yet to come.
        InputError: a version that never was, or content that is not of its version.
    """
    version = content.get("format_version", 1 if kind == "replay" else None)
    supported = f"format version {min(MIGRATIONS)} to {FORMAT_VERSION}"
    if type(version) is not int or version < min(MIGRATIONS):
        raise InputError(f"{flag}: expected {supported}, {where} has {shown(version)}")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{flag}: expected {supported}, {where} has {shown(version)}: "
            "a later dsrl_offpolicy wrote it, upgrade yours"
        )
    for step in range(version, FORMAT_VERSION):
        try:
            content = MIGRATIONS[step](kind, content)
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{flag}: expected a {kind} file of format version {version}, {where} lacks what such a file holds"
            ) from error
    return {**content, "format_version": FORMAT_VERSION}
