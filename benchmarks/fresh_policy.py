"""Does a freshly initialised latent policy act as the base policy does?

    python benchmarks/fresh_policy.py --awsc_checkpoint runs/.../stage0/checkpoints/last.pt [--episodes 100]

Takes the settings of `dsrl eval`. Success over the same episodes and the same noise, with 95 % Wilson intervals.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Measure and print."""
    # Inside, as in the `dsrl` command: environment processes import the main module and need none of this.
    from dsrl_offpolicy.commands.evaluate import print_table, row_of
    from dsrl_offpolicy.configs.jobs import EvalConfig
    from dsrl_offpolicy.configs.loading import parse_job
    from dsrl_offpolicy.configs.shared import SteeringConfig
    from dsrl_offpolicy.envs.vector import make_vector_env
    from dsrl_offpolicy.evaluation.episodes import evaluation_seeds, run_episodes
    from dsrl_offpolicy.models.latent_policy import LatentPolicy
    from dsrl_offpolicy.models.latent_sources import policy_source, prior_source
    from dsrl_offpolicy.rollouts.base_env import base_env_spec
    from dsrl_offpolicy.train.start import build_layout, load_base, rewards_of, start_torch

    config = parse_job(EvalConfig, "eval.yaml", "fresh_policy", sys.argv[1:])
    device = start_torch(config)
    base = load_base(config, device)
    steering = SteeringConfig()
    layout = build_layout(base.info, steering)
    policy = LatentPolicy(base.info.feature_dim, steering.actor_hidden_dims, layout).to(device)
    sources = {"base": prior_source(), "fresh policy": policy_source(policy, deterministic=False)}
    spec = base_env_spec(base.info, rewards_of(base), config, end_on_success=True)
    env, seeds = make_vector_env(spec, config.num_envs), evaluation_seeds(config.episodes)
    found = {name: row_of(run_episodes(env, base, s, seeds, device)) for name, s in sources.items()}
    env.close()
    print_table(found, f"{config.env_id}, {config.episodes} episodes, 95 % intervals")
    return 0


if __name__ == "__main__":
    sys.exit(main())
