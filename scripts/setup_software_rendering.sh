#!/usr/bin/env bash
# Rendering in software by Mesa on Debian and Ubuntu without a GPU. Run as root or with sudo.
# - A Vulkan device (lavapipe, 24.3 or newer) for ManiSkill, which builds no scene without one, states included.
# - EGL for videos of MuJoCo's environments (MetaWorld).
#   scripts/setup_software_rendering.sh            install what is missing
#   scripts/setup_software_rendering.sh --check    only say what is there; status 1 where it is too old or missing
#   scripts/setup_software_rendering.sh --source   only say which source of backports Debian 12 would be given
set -euo pipefail
OLDEST=24.3

# The machine's own apt sources; another folder only to try what would be written.
APT="${APT_FOLDER:-/etc/apt}"

# backports_source SUITE: the machine's entry for that release with the suite replaced by its backports, so from the
# same mirror and under the same key. First line: list or sources, the style of the entry.
backports_source() {
    local file found
    for file in "$APT"/sources.list "$APT"/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        found=$(sed -nE "s|^deb([[:space:]]+\\[[^]]*\\])?[[:space:]]+([^[:space:]]+)[[:space:]]+$1[[:space:]]+main.*|deb\\1 \\2 $1-backports main|p" "$file")
        [ -z "$found" ] || { printf 'list\n%s\n' "${found%%$'\n'*}"; return; }
    done
    for file in "$APT"/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        found=$(grep -v '^#' "$file" | awk -v suite="$1" -v RS= -v ORS= -v FS='\n' '
            /(^|\n)Types:[^\n]*deb([ \t\n]|$)/ && /(^|\n)Components:[^\n]*main/ && !/(^|\n)Enabled:[ \t]*no/ {
                stanza = ""; fits = 0
                for (i = 1; i <= NF; i++) {
                    line = $i
                    if (line ~ /^Suites:/) {
                        if ((line " ") ~ ("[: \t]" suite "[ \t]")) fits = 1
                        line = "Suites: " suite "-backports"
                    }
                    if (line ~ /^Types:/) line = "Types: deb"
                    stanza = stanza line "\n"
                }
                if (fits) { print stanza; exit }
            }')
        [ -z "$found" ] || { printf 'sources\n%s\n' "$found"; return; }
    done
    echo "no apt source of $1 in $APT: add $1-backports to your sources by hand and run this again" >&2
    return 1
}

add_backports() {
    local found style
    ! grep -rqsE "^[^#]*[[:space:]]$1-backports([[:space:]]|\$)" "$APT"/sources.list "$APT"/sources.list.d || return 0
    found=$(backports_source "$1")
    style=${found%%$'\n'*}
    echo "${found#*$'\n'}" | as_root tee "$APT/sources.list.d/$1-backports.$style" >/dev/null
}

installed() { dpkg-query -W -f '${db:Status-Status} ${Version}' mesa-vulkan-drivers 2>/dev/null | sed -n 's/^installed //p'; }
have() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
NEEDED=(mesa-vulkan-drivers libvulkan1 libegl1 libegl-mesa0)
missing() { for package in "${NEEDED[@]:1}"; do have "$package" || echo "$package"; done; }
new_enough() { [ -n "$1" ] && dpkg --compare-versions "$1" ge "$OLDEST"; }

if [ "${1:-}" = "--source" ]; then
    backports_source bookworm
    exit
fi
if ! command -v dpkg-query >/dev/null; then
    echo "no dpkg here: install Mesa's lavapipe $OLDEST or newer (package mesa-vulkan-drivers) with your own package manager" >&2
    exit 1
fi
if new_enough "$(installed)" && [ -z "$(missing)" ]; then
    echo "mesa-vulkan-drivers $(installed) is installed, and so are ${NEEDED[*]:1}"
    exit 0
fi
if [ "${1:-}" = "--check" ]; then
    new_enough "$(installed)" || echo "mesa-vulkan-drivers: found '$(installed)', needed $OLDEST or newer; run $0" >&2
    for package in $(missing); do echo "$package: not installed; run $0" >&2; done
    exit 1
fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
. /etc/os-release
from=()
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]; then
    add_backports bookworm
    from=(-t bookworm-backports)
fi
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${from[@]}" "${NEEDED[@]}" >/dev/null
if ! new_enough "$(installed)"; then
    echo "mesa-vulkan-drivers is $(installed) after the installation, needed $OLDEST or newer: this release has no newer one" >&2
    exit 1
fi
echo "mesa-vulkan-drivers $(installed) is installed, and so are ${NEEDED[*]:1}"
