#!/usr/bin/env bash
# Gets what the demo (`setup.sh demo`) or the tests (`setup.sh tests`) need besides Rust. Installs it where it can, which
# is as root on Debian and its kin for programs, and anywhere for the Python packages; otherwise says in a line what is
# missing and how to get it, and goes on: tests that need it report themselves as ignored. Costs nothing the second time.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-tests}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# program:package
programs=(unshare:util-linux nsenter:util-linux ip:iproute2 nft:nftables)
if [ "$what" = tests ]; then
  programs+=(curl:curl openssl:openssl nginx:nginx-light redis-server:redis-server redis-cli:redis-tools
    mariadbd:mariadb-server mariadb:mariadb-client h2load:nghttp2-client wrk:wrk
    prometheus:prometheus promtool:prometheus tmux:tmux)
fi

missing=()
for entry in "${programs[@]}"; do
  command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  read -ra missing <<<"$(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')"
  install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${missing[*]}"
    # RUNLEVEL=1 keeps the packages from starting services on this machine.
    export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -q >/dev/null 2>&1; "${install[@]}" >/dev/null; } ||
      echo "setup: could not install ${missing[*]}; tests that need them will be ignored"
    # Nor at the next start of the machine: the tests bring their own configuration.
    if [[ " ${missing[*]} " == *" prometheus "* ]] && command -v systemctl >/dev/null; then
      systemctl disable --quiet --now prometheus 2>/dev/null || true
    fi
  else
    echo "setup: missing: get it with 'sudo ${install[*]}'"
  fi
fi

[ "$what" = tests ] || exit 0

# Peers in another language: an environment of their own, made again when this list changes.
packages=('grpcio>=1.60,<2' 'websockets>=15')
venv=target/venv
stamp="$venv/.installed-$(printf '%s ' "${packages[@]}" | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  rm -rf "$venv"
  mkdir -p target
  python=$(command -v python3 || true)
  if [ -n "$python" ] && ! "$python" -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get install -y -q --no-install-recommends python3-venv >/dev/null 2>&1 || true
  fi
  if [ -z "$python" ]; then
    echo "setup: missing: python3 (tests with gRPC and WebSocket peers will be ignored)"
  elif "$python" -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check "${packages[@]}"; then
    touch "$stamp"
  else
    rm -rf "$venv"
    echo "setup: could not install ${packages[*]} into $venv; tests that need them will be ignored"
  fi
fi

./tests/backends/jaeger.sh >/dev/null
