"""Resident memory of Stage 2 with a full replay buffer: learner, training and evaluation environments.

    python benchmarks/stage2_memory.py --awsc_checkpoint runs/.../stage0/checkpoints/last.pt [--env_id ID]

Takes the settings of the command line as `dsrl stage2` does, fills the buffer with random transitions, starts
the environment processes, takes 100 gradient steps, and prints resident memory (RSS, which counts shared pages
once per process) and proportional memory (PSS) of the whole process tree.
"""

from __future__ import annotations

import sys

BLOCK = 10_000


def main() -> int:
    """Measure and print."""
    # Inside, as in the `dsrl` command: environment processes import the main module and need none of this.
    import psutil
    import torch

    from dsrl_offpolicy.contracts import MacroTransitions
    from dsrl_offpolicy.envs.vector import make_vector_env
    from dsrl_offpolicy.train.train_stage2_online import Stage2, settings

    config = settings(sys.argv[1:])
    stage2 = Stage2(config)
    buffer, width = stage2.buffer, stage2.base.info.feature_dim
    while len(buffer) < buffer.capacity:
        count = min(BLOCK, buffer.capacity - len(buffer))
        no = torch.zeros(count, dtype=torch.bool)
        buffer.add(
            MacroTransitions(
                obs_features=torch.randn(count, width),
                latent=torch.randn(count, stage2.agent.layout.dim),
                reward=torch.randn(count),
                next_obs_features=torch.randn(count, width),
                terminated=no,
                truncated=no,
                n_steps=torch.full((count,), 8, dtype=torch.int32),
            ),
            gamma=config.gamma,
        )
    envs = [make_vector_env(stage2.online_env.training, config.num_envs) for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    for _ in range(100):
        stage2.agent.update(buffer.sample(config.batch_size))
    parent = psutil.Process()
    processes = [parent, *parent.children(recursive=True)]
    memory = [process.memory_full_info() for process in processes]
    print(f"buffer: {len(buffer)} macro-transitions; processes: {len(processes)}")
    print(f"learner: RSS {memory[0].rss / 2**20:.0f} MiB")
    print(
        f"all: RSS {sum(m.rss for m in memory) / 2**20:.0f} MiB, PSS {sum(m.pss for m in memory) / 2**20:.0f} MiB"
    )
    for env in envs:
        env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
