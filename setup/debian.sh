#!/bin/sh
# Install the Debian packages listed in the given files, unless they are installed already.
# Usage: setup/debian.sh FILE...
set -eu

wanted=$(sed 's/#.*//' "$@" | sort -u)
missing=""
for package in $wanted; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null \
        | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "Installing Debian packages, and what they depend on:$missing"
if [ "$(id -u)" != 0 ]; then
    echo "This needs root: run make as root, or install them yourself." >&2
    exit 1
fi

# A new machine may be updating itself, so another program may hold apt's locks. apt-get can wait for
# the locks of dpkg, but not for those of its package lists and archives.
patience=600
deadline=$(($(date +%s) + patience))
apt() {
    while ! said=$(LC_ALL=C apt-get -qq -o Dpkg::Use-Pty=0 -o "DPkg::Lock::Timeout=$patience" "$@" 2>&1 >&3); do
        case $said in
            *"Could not get lock"*) ;;
            *) deadline=0 ;;
        esac
        if [ "$(date +%s)" -ge "$deadline" ]; then
            printf '%s\n' "$said" >&2
            return 1
        fi
        [ -n "${told:-}" ] || printf 'Waiting %s s at most: %s\n' "$patience" "$said"
        told=yes
        sleep 1
    done
} 3>&1

export DEBIAN_FRONTEND=noninteractive
apt update
# Recommended packages would install a firewall, a desktop bus and daemons that are not needed.
# shellcheck disable=SC2086  # a list of package names
apt install -y --no-install-recommends $missing
