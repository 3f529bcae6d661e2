#!/usr/bin/env bash
# Runs cargo's tests with the given arguments and closes with their sum, so that a reader sees at a glance how many ran
# and how many could not.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

awk '
  /^test result: / {
    for (i = 1; i <= NF; i++) {
      if ($(i + 1) ~ /^passed/) passed += $i
      if ($(i + 1) ~ /^failed/) failed += $i
      if ($(i + 1) ~ /^ignored/) ignored += $i
    }
  }
  END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored }
' "$log"
exit "$status"
