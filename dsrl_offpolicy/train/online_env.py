"""The environments of an online job: those it trains in, and those it evaluates in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from dsrl_offpolicy.configs.jobs import PPOConfig, Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.vector import check_count, make_evaluation_env, make_vector_env
from dsrl_offpolicy.rollouts.base_env import base_env_spec, check_fit, training_env_spec
from dsrl_offpolicy.train.start import rewards_of


class OnlineEnvironments:
    """What an online job's settings and its base policy describe, held against the policy.

    Raises:
        InputError: as :func:`check_fit`.
    """

    def __init__(self, config: PPOConfig | Stage2LoopConfig, base: BasePolicy) -> None:
        self.config = config
        self.training = training_env_spec(config, base.info)
        check_count(self.training, config.num_envs)
        check_fit(base.info, self.training)
        ends = config.eval_end_on_success
        rewards = rewards_of(base)
        if rewards.reward_mode is None:  # sparse ones would ask every environment for success
            rewards = replace(rewards, reward_mode=config.reward_mode)
        self.evaluation = base_env_spec(base.info, rewards, config, end_on_success=ends)
        if config.eval_freq and config.train_episode_steps and config.max_episode_steps is None:
            check_fit(base.info, self.evaluation)  # its time limit is another

    @contextmanager
    def opened(self) -> Iterator[tuple[MacroVectorEnv, MacroVectorEnv | None]]:
        """Inside, there are those to train in, and those to evaluate in, if the job evaluates."""
        config = self.config
        with ExitStack() as opened:
            env = make_vector_env(self.training, config.num_envs)
            opened.callback(env.close)
            eval_env = None
            if config.eval_freq:
                eval_env = make_evaluation_env(env, self.evaluation, config.num_envs)
            if eval_env is not None and eval_env is not env:
                opened.callback(eval_env.close)
            yield env, eval_env

    @contextmanager
    def evaluating(self) -> Iterator[MacroVectorEnv | None]:
        """Inside, there are those to evaluate in alone, if the job evaluates: no more than it has episodes."""
        config = self.config
        with ExitStack() as opened:
            eval_env = None
            if config.eval_freq:
                eval_env = make_vector_env(self.evaluation, min(config.num_envs, config.eval_episodes))
                opened.callback(eval_env.close)
            yield eval_env
