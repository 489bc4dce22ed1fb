"""``python -m dsrl_offpolicy``: the same as ``dsrl``."""

from dsrl_offpolicy.cli import run

if __name__ == "__main__":
    run()
