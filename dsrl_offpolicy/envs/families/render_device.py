"""Whether this machine has the Vulkan device without which ManiSkill builds no scene."""

from __future__ import annotations

from dsrl_offpolicy.errors import InputError

REMEDY = (
    "without a GPU, install Mesa's lavapipe 24.3 or newer: on Debian 12 add bookworm-backports of your mirror to "
    "apt's sources and run "
    "`apt-get update && apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1` "
    "(scripts/setup_software_rendering.sh does both; newer releases need no backports)"
)


def render_device() -> str:
    """Return the name of the device that would render, in well under a second.

    Raises:
        InputError: there is none that ManiSkill can use; says what cures it.
    """
    import sapien

    try:
        summary = str(sapien.render.get_device_summary())
    except RuntimeError as error:
        raise InputError(f"render device: expected a Vulkan device for ManiSkill, got none; {REMEDY}") from error
    return summary.splitlines()[0].removeprefix("GPU:").strip()
