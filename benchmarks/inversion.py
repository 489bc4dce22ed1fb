"""How exactly a base policy's inversion turns demonstrations into noise, and how fast.

    python benchmarks/inversion.py --base runs/.../stage0/checkpoints/last.pt --demo_path demos.h5 [--env_id TASK]

Takes the settings of `dsrl stage2`; all windows of the demonstrations, one thread.
"""

from __future__ import annotations

import sys
import time


def main() -> int:
    """Measure and print."""
    import torch

    from dsrl_offpolicy.base_policies.inversion import invert_windows
    from dsrl_offpolicy.contracts import RewardTerms
    from dsrl_offpolicy.seeding import torch_generator
    from dsrl_offpolicy.train.demonstrations import encode_windows, load_policy_windows
    from dsrl_offpolicy.train.start import build_layout, load_base, require_file, start_torch
    from dsrl_offpolicy.train.train_stage2_online import settings

    config = settings(sys.argv[1:])
    device = start_torch(config)
    path = require_file(config.demo_path, "demo_path", "a file of demonstrations")
    base = load_base(config, device)
    rewards = RewardTerms(config.gamma, "sparse", config.reward_scale, config.end_on_success)
    demos, windows = load_policy_windows(config, path, base, rewards)
    features = encode_windows(demos, windows.rows, base, device)
    chunks = torch.as_tensor(windows.chunks, device=device)
    layout, generator = build_layout(base.info, config), torch_generator(config.seed, "inversion", device)
    start = time.perf_counter()
    found = invert_windows(base, features, chunks, layout, config.inversion_tolerance, generator)
    seconds = time.perf_counter() - start
    median, p90, p99 = found.error.quantile(torch.tensor([0.5, 0.9, 0.99], device=device)).tolist()
    left_out = int((~found.accepted).sum())
    print(
        f"{config.env_id}: {len(chunks)} windows, {left_out} left out; error: median {median:.1e}, "
        f"90th percentile {p90:.1e}, 99th {p99:.1e}; {100 * found.beyond:.1f} % of the entries beyond "
        f"{config.action_magnitude:g}; {len(chunks) / seconds:.0f} windows/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
