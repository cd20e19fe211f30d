#!/usr/bin/env bash
# Writes the hashed requirements from the *.in files. Run it by `make lock` after a change of one.
# Locks name versions and hashes, never an index address, so they install from any mirror.
set -euo pipefail
cd "$(dirname "$0")"
compile() { uv pip compile --quiet --python-version 3.11 --python-platform "x86_64-manylinux_${GLIBC:-2_28}" --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
  --custom-compile-command "make lock" "$@"; }
compile uv.in -o uv.txt
GLIBC=2_31 compile base.in -o base.txt   # Envoy's wheel wants it
compile dev.in -c base.txt -o dev.txt
compile engine.in --override engine-overrides.txt -o engine.txt
compile image-cpu.in -c engine.txt --override image-cpu-overrides.txt -o image-cpu.txt
compile image-gpu.in -o image-gpu.txt
compile ../tests/bench/peers-guardrails.in -o ../tests/bench/peers-guardrails.txt
