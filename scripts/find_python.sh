# Sets `python` to a Python 3.10 to 3.13: VLM_PYTHON when it is set, else the first of the usual names that fits.
# Sourced by scripts/demo, scripts/test and scripts/check.
python=
consider() {
    if [ -z "$python" ] && "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
        python=$1
    fi
}
if [ -n "${VLM_PYTHON:-}" ]; then
    consider "$VLM_PYTHON"
else
    for name in python3 python3.13 python3.12 python3.11 python3.10; do consider "$name"; done
fi
if [ -z "$python" ]; then
    echo "error: no Python 3.10 to 3.13 found as ${VLM_PYTHON:-python3}." >&2
    echo "Install one (apt-get install python3 python3-venv), or name it: VLM_PYTHON=/path/to/python3 $0" >&2
    exit 3
fi
