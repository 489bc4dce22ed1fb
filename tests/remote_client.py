"""A client in a process of its own: ``python tests/remote_client.py PORT REQUESTS SEED``.

Encodes and decodes by a served ``HalvingPolicy``, compares every answer with what it must be, and prints how many
were right, how often it asked again and how often it connected anew. Says ``begun`` after the first answers.
"""

from __future__ import annotations

import sys

import torch

from dsrl_offpolicy import load_base_policy


def main() -> int:
    port, requests, seed = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    policy = load_base_policy(f"remote:127.0.0.1:{port}?timeout=20&patience=60")
    generator, right = torch.Generator().manual_seed(seed), 0
    for i in range(requests):
        rows = 1 + i % 3
        obs, latent = (torch.randn(rows, *shape, generator=generator) for shape in ((2, 2), (4, 1)))
        encoding = policy.encode(obs)
        actions = policy.decode(encoding, latent)
        right += int(torch.equal(encoding.features, obs.flatten(1)) and torch.equal(actions, 0.5 * latent))
        if i == 9:
            print("begun", flush=True)
    print(right, policy.counts.retries, policy.counts.reconnects, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
