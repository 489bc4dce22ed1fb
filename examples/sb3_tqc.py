"""sb3-contrib's TQC steers a base policy. Needs the extra sb3: pip install 'dsrl_offpolicy[sb3]'.

python examples/sb3_tqc.py --base runs/my_base/checkpoints/last.pt --env_id pick-place-v3
"""

import argparse

from sb3_contrib import TQC

from dsrl_offpolicy import make_latent_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="as of dsrl stage2")
    parser.add_argument("--env_id", required=True)
    parser.add_argument("--macro_steps", type=int, default=5000)
    args = parser.parse_args()
    env = make_latent_env(args.base, args.env_id)
    model = TQC("MlpPolicy", env, gamma=env.discount, verbose=1)
    model.learn(args.macro_steps)
    env.close()


if __name__ == "__main__":  # environments are processes that import this file
    main()
