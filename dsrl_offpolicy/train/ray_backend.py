"""``dsrl stage2 --backend ray``: the settings it holds, and the collector that it makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch

from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.shared import BackendConfig, BasePolicyConfig
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.envs.family import MacroVectorEnv, family_of
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.rollouts.ray_cluster import check_ray, ray_cluster
from dsrl_offpolicy.rollouts.ray_collector import RayCollector, RayPlan
from dsrl_offpolicy.seeding import derive_seed, torch_generator
from dsrl_offpolicy.train.start import load_base


def check_backend(config: Stage2LoopConfig, training: EnvSpec) -> None:
    """Refuse settings that mean nothing for the backend, environments that no actor can have, and a Ray that is
    not there.

    Raises:
        InputError: naming the setting.
    """
    if config.backend == "local":
        for field in dataclasses.fields(BackendConfig):
            if getattr(config, field.name) != field.default:
                raise InputError(f"{field.name}: expected nothing with backend local; add --backend ray")
        return
    if config.num_runners > config.num_envs:
        raise InputError(
            f"num_runners: expected at most num_envs {config.num_envs}, an environment each, got "
            f"{config.num_runners}"
        )
    capabilities = family_of(training).capabilities(training)
    for name, what in (("batched", "steps on the GPU in one batch"), ("exclusive", "has a single environment")):
        if getattr(capabilities, name):
            raise InputError(f"backend: expected local for {training.env_id}, which {what}, got ray")
    check_ray(config.ray_address)


@contextlib.contextmanager
def ray_collector(
    config: Stage2LoopConfig,
    training: EnvSpec,
    base: BasePolicy,
    layout: LatentLayout,
    clock: Callable[[], int],
    listen: Callable[[], None],
    device: torch.device,
) -> Iterator[RayCollector]:
    """Inside, there is a collector of Ray actors.

    Args:
        config: the job's settings.
        training: the environments.
        base: the learner's base policy, against which the actors' are held.
        layout: the steered part of the noise.
        clock: gradient steps taken so far.
        listen: called while runners are waited for; may raise.
        device: where the learner, and the policy server, compute.

    Raises:
        InputError: no Ray, nobody at its address, or actors that cannot start.
    """
    few, more = divmod(config.num_envs, config.num_runners)
    envs = [few + (i < more) for i in range(config.num_runners)]
    names = [f.name for f in dataclasses.fields(BasePolicyConfig)]
    policy = BasePolicyConfig(**{name: getattr(config, name) for name in names})
    plan = RayPlan(
        make_env=functools.partial(_make_env, training, envs),
        envs=envs,
        make_base=functools.partial(_make_base, policy, str(device), config.torch_threads),
        start_seed=functools.partial(_start_seed, config.seed),
        clock=clock,
        max_lag=config.max_lag,
        runner_timeout=config.runner_timeout,
        server_gpus=float(device.type == "cuda"),
        listen=listen,
    )
    noise = torch_generator(config.seed, "behaviour", device)
    with ray_cluster(config.ray_address, config.num_runners + 1) as ray:
        collector = RayCollector(ray, plan, base.info, base.fingerprint(), layout, noise=noise, device=device)
        try:
            yield collector
        finally:
            collector.close()


def _make_env(training: EnvSpec, envs: list[int], index: int) -> MacroVectorEnv:
    return make_vector_env(training, envs[index])


def _make_base(policy: BasePolicyConfig, device: str, threads: int) -> tuple[BasePolicy, torch.device]:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    return load_base(policy, torch.device(device)), torch.device(device)


def _start_seed(seed: int, life: int) -> int:
    """The seed of a life's starts; the first life's are those of the local collector."""
    return derive_seed(seed, f"training_starts/{life}" if life else "training_starts")
