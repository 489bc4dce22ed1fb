"""Where the time of a Stage 2 run goes, and its gradient steps per second against those of the bare learner.

    python benchmarks/pipeline.py --awsc_checkpoint runs/.../stage0/checkpoints/last.pt [flags of dsrl stage2]

A real run in a temporary folder: processes, replay, logging, all of it. Times are those of the learner's process;
environments work meanwhile in theirs, and `waiting` is what is left of their time. Afterwards the bare learner
takes gradient steps on the run's own buffer, alone; the ratio of the two rates is what collecting costs.
``--cpus N`` holds the whole process tree to N CPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BARE_STEPS = 300
WARM_STEPS = 20


class Clock:
    """Seconds spent inside functions that were wrapped, each without the wrapped ones it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the time of ``owner.method`` as ``part``."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self._inner.pop()
                self.calls[part] += 1
                self._inner[-1] += took

        setattr(owner, method, timed)


def bare_rate(step: Callable[..., Any], stage2: Any) -> float:
    """Gradient steps per second of the learner alone, sampling included."""
    config = stage2.config
    start = 0.0
    for number in range(WARM_STEPS + BARE_STEPS):
        if number == WARM_STEPS:
            start = time.perf_counter()
        step(stage2.buffer.sample(config.batch_size), update_actor=number % config.actor_update_every == 0)
    return BARE_STEPS / (time.perf_counter() - start)


def report(
    stage2: Any, seconds: dict[str, float], calls: dict[str, int], total: float, alone: float, cpus: int
) -> None:
    """Print the parts of ``total`` seconds, and the rate beside that of the learner alone."""
    config, steps = stage2.config, calls["gradient steps"]
    print(
        f"{config.env_id}: {config.num_envs} environments, {cpus} CPU(s), {config.torch_threads} "
        f"thread(s), batch {config.batch_size}, critics {config.critic_hidden_dims}, "
        f"actor every {config.actor_update_every}, utd_ratio {config.utd_ratio:g}"
    )
    for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{part:<26}{spent:>8.2f} s{100 * spent / total:>7.1f} %  {calls[part]:>7} calls")
    rest = total - sum(seconds.values())
    print(f"{'the loop itself':<26}{rest:>8.2f} s{100 * rest / total:>7.1f} %")
    rate = steps / total
    print(f"gradient steps/s: {rate:.1f} in the run, {alone:.1f} bare, ratio {rate / alone:.2f}")
    print(f"env steps/s while learning: {(stage2.counters.env_steps - config.warmup_steps) / total:.1f}")
    print(f"gradient steps per macro-transition: {stage2.counters.utd_effective:.3f}")


def main() -> int:
    """Run, measure, print."""
    # Inside, as in the `dsrl` command: environment processes import the main module and need none of this.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--warmup_steps", default="2000")
    parser.add_argument("--total_timesteps", default="8000")
    arguments, flags = parser.parse_known_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cpus])

    from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
    from dsrl_offpolicy.agents.stage2_config import Stage2Config
    from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
    from dsrl_offpolicy.configs.loading import parse_job
    from dsrl_offpolicy.envs.processes import ProcessVectorEnv
    from dsrl_offpolicy.rollouts.collector import Collector
    from dsrl_offpolicy.tracking.progress import ProgressReport
    from dsrl_offpolicy.tracking.run import Run
    from dsrl_offpolicy.train.train_stage2_online import Stage2

    flags += ["--warmup_steps", arguments.warmup_steps, "--total_timesteps", arguments.total_timesteps]
    with tempfile.TemporaryDirectory() as folder:
        flags += ["--eval_freq", "0", "--out", str(Path(folder) / "run")]
        stage2 = Stage2(parse_job(Stage2Config, "stage2_online.yaml", "pipeline", flags))
        clock = Clock()
        clock.wrap(MacroReplayBuffer, "sample", "replay: sample")
        clock.wrap(MacroReplayBuffer, "add", "replay: add")
        clock.wrap(Run, "log", "logging")
        clock.wrap(ProgressReport, "report", "logging")
        clock.wrap(ProcessVectorEnv, "step_wait", "waiting for environments")
        clock.wrap(Collector, "collect", "encoding, resets")
        clock.wrap(Collector, "launch", "policy and decoding")
        compiled = stage2._worth_compiling()
        bare = CompiledUpdate(stage2.agent, stage2.config.batch_size) if compiled else stage2.agent.update
        stage2.gradient_step = bare
        clock.wrap(stage2, "gradient_step", "gradient steps")
        window: dict[str, float] = {}
        inner_learn = Stage2._learn

        def learn(self: Any, *rest: Any) -> None:
            if self.counters.owed(self.config.utd_ratio) > 0 and "start" not in window:  # learning begins
                clock.seconds.clear()
                clock.calls.clear()
                window["start"] = time.perf_counter()
            inner_learn(self, *rest)
            window["end"] = time.perf_counter()

        Stage2._learn = learn  # type: ignore[method-assign]
        stage2.run()
        seconds, calls = dict(clock.seconds), dict(clock.calls)  # before the bare learner samples
        alone = statistics.median(bare_rate(bare, stage2) for _ in range(3))
    report(stage2, seconds, calls, window["end"] - window["start"], alone, arguments.cpus)
    return 0


if __name__ == "__main__":
    sys.exit(main())
