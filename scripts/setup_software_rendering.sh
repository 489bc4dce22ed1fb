#!/usr/bin/env bash
# A Vulkan device in software (Mesa's lavapipe, 24.3 or newer) for ManiSkill on Debian and Ubuntu without a GPU.
# ManiSkill builds no scene without a Vulkan device, state observations included. Run as root or with sudo.
#   scripts/setup_software_rendering.sh            install what is missing
#   scripts/setup_software_rendering.sh --check    only say what is there; status 1 where it is too old or missing
set -euo pipefail
OLDEST=24.3

installed() { dpkg-query -W -f '${db:Status-Status} ${Version}' mesa-vulkan-drivers 2>/dev/null | sed -n 's/^installed //p'; }
new_enough() { [ -n "$1" ] && dpkg --compare-versions "$1" ge "$OLDEST"; }

if ! command -v dpkg-query >/dev/null; then
    echo "no dpkg here: install Mesa's lavapipe $OLDEST or newer (package mesa-vulkan-drivers) with your own package manager" >&2
    exit 1
fi
if new_enough "$(installed)" && dpkg-query -W libvulkan1 >/dev/null 2>&1; then
    echo "mesa-vulkan-drivers $(installed) is installed"
    exit 0
fi
if [ "${1:-}" = "--check" ]; then
    echo "mesa-vulkan-drivers: found '$(installed)', needed $OLDEST or newer; run $0" >&2
    exit 1
fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
. /etc/os-release
from=()
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]; then
    list=/etc/apt/sources.list.d/bookworm-backports.list
    [ -f "$list" ] || echo "deb http://deb.debian.org/debian bookworm-backports main" | as_root tee "$list" >/dev/null
    from=(-t bookworm-backports)
fi
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${from[@]}" mesa-vulkan-drivers libvulkan1 >/dev/null
if ! new_enough "$(installed)"; then
    echo "mesa-vulkan-drivers is $(installed) after the installation, needed $OLDEST or newer: this release has no newer one" >&2
    exit 1
fi
echo "mesa-vulkan-drivers $(installed) is installed"
