"""Settings of ``dsrl serve``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from dsrl_offpolicy.configs.ranges import Count
from dsrl_offpolicy.configs.shared import BasePolicyConfig, ComputeConfig

Port = Annotated[int, Meta(ge=0, le=65535)]
Milliseconds = Annotated[float, Meta(ge=0, le=60_000)]
Mebibytes = Annotated[int, Meta(ge=1, le=1024)]


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ComputeConfig, BasePolicyConfig):
    """dsrl serve: serve a base policy to runs elsewhere (--base remote:HOST:PORT) and to openpi's clients (extra
    remote)."""

    host: str = "127.0.0.1"
    """Address to listen on. Whoever can reach it can use the policy; there is no password."""
    port: Port = 8000
    """TCP port; 0 takes a free one and says which."""
    max_batch: Count = 256
    """Most observations in one call of the policy; 1 never lets two requests share a call."""
    batch_wait: Milliseconds = 2.0
    """Milliseconds for which a request waits for those of other connected clients."""
    max_message: Mebibytes = 64
    """Largest message to read, in MiB."""
