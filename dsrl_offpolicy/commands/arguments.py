"""Arguments of the tools that are no jobs."""

from __future__ import annotations

import argparse
from typing import NoReturn

from dsrl_offpolicy.errors import InputError


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are an :class:`InputError` of one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)
