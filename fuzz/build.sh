#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds every target into $OUT as OSS-Fuzz and ClusterFuzz want it: an executable, a dictionary,
# a seed corpus and options for each.
#
# In an OSS-Fuzz image (base-builder-python) compile_python_fuzzer packs the targets. Elsewhere the
# executables start fuzz/TARGET.py with $PYTHON, which has guestemu and atheris installed:
#
#     OUT=/tmp/out PYTHON=.venv/bin/python fuzz/build.sh
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
case $python in
*/*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;;
esac
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

if command -v compile_python_fuzzer >/dev/null; then
    "$python" -m pip install "$root[fuzz]"
fi

for script in "$root"/fuzz/*.py; do
    target=$(basename "$script" .py)
    [ "$target" = prepare ] && continue
    if command -v compile_python_fuzzer >/dev/null; then
        compile_python_fuzzer "$script" --collect-all guestemu --collect-all unicorn
    else
        printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$python" "$script" >"$OUT/$target"
        chmod +x "$OUT/$target"
    fi
done

"$python" "$root/fuzz/prepare.py" "$OUT" "$root/corpora"
