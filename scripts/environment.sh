# Sourced by quickstart.sh and test.sh: makes .venv beside the repository's README and installs what is asked for.
# usage: prepare_environment REQUIREMENTS...   afterwards $python is the environment's interpreter
prepare_environment() {
    local base found stamp
    python=.venv/bin/python
    if [ ! -x "$python" ]; then
        for base in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
            if "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$base && break; fi
        done
        if [ -z "${found:-}" ]; then
            echo "error: Python 3.10 or newer is needed; install it or set PYTHON to its path" >&2
            return 1
        fi
        "$found" -m venv .venv || {
            echo "error: the environment .venv could not be made; on Debian or Ubuntu install python3-venv" >&2
            return 1
        }
    fi
    for file in "$@"; do
        stamp=.venv/installed-$file
        if ! cmp -s "$file" "$stamp"; then
            echo "installing $file into .venv ..."
            "$python" -m pip install --quiet --disable-pip-version-check -r "$file" || return 1
            cp "$file" "$stamp"
        fi
    done
}
