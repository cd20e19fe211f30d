#!/usr/bin/env bash
# Makes the virtual environment $1 hold exactly what the hashed lock $2 names, and this project, editable.
# Needs Python 3.11 or later in 3.x as $PYTHON. Honours pip's own index settings, so a mirror that pip uses is used here too.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 lock=$2
free_gib=$(( $(df -Pk . | awk 'NR==2 {print $4}') / 1048576 ))
need_gib=$([ "$lock" = engine.txt ] && echo 12 || echo 3)
if [ ! -d "$venv" ] && [ "$free_gib" -lt "$need_gib" ]; then
  echo "flotilla: $PWD has $free_gib GiB free, setting up $venv needs $need_gib GiB" >&2; exit 2
fi
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3.11}" -m venv "$venv" || { echo "flotilla: cannot make $venv: Python 3.11 with its venv module is needed (Debian: apt-get install python3.11-venv)" >&2; exit 2; }
fi
tools=.venv/bin
if ! "$tools/uv" --version >/dev/null 2>&1; then
  [ -x "$tools/python" ] || "${PYTHON:-python3.11}" -m venv .venv
  "$tools/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
fi
index=$("$tools/python" -m pip config get global.index-url 2>/dev/null || true)
[ -n "${PIP_INDEX_URL:-$index}" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$index}}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
"$tools/uv" pip install --python "$venv/bin/python" --require-hashes --no-deps -r "requirements/$lock"
"$tools/uv" pip install --quiet --python "$venv/bin/python" --no-build-isolation --no-deps --editable .
