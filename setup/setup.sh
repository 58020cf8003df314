#!/usr/bin/env bash
# Makes .venv complete. First names everything this machine lacks, at once, with the command that installs it; only
# then hands over to install.py, which downloads and builds. With everything in place it returns in a moment.
# Usage: [GPU=1] [PYTHON=/path/to/python3.11] setup/setup.sh [--check-only]
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$top/setup

# The interpreter that .venv has is the quickest way to learn that nothing is to be done.
if [ "${1-}" != --check-only ] && [ -x "$top/.venv/bin/python" ] &&
    "$top/.venv/bin/python" -E -s "$here/install.py" --is-current 2>/dev/null; then
  exit 0
fi

is_python_3_11() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

find_python() { # prints the first Python 3.11; a name on the PATH may be a shim that does not run, so each is tried
  local name
  for name in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
    if command -v "$name" >/dev/null && is_python_3_11 "$name"; then command -v "$name"; return; fi
  done
}

compiles() { # compiles LANGUAGE COMPILER: whether it turns a small program into one that runs; "ccache g++" is a compiler too
  local scratch status=0
  command -v "${2%% *}" >/dev/null || return 1
  scratch=$(mktemp -d)
  if [ "$1" = c ]; then
    echo 'int main(void) { return 0; }' >"$scratch/try.c"
    { $2 "$scratch/try.c" -o "$scratch/try" && "$scratch/try"; } >/dev/null 2>&1 || status=1
  else
    cat >"$scratch/try.cc" <<'PROGRAM'
#include <optional>
#include <string_view>
#include <thread>
int main() {
  if constexpr (sizeof(int) < 2) return 1;
  std::optional<std::string_view> word{"seventeen"};
  std::thread worker([] {});
  worker.join();
  return word->size() == 9 ? 0 : 1;
}
PROGRAM
    { $2 -std=c++17 -pthread "$scratch/try.cc" -o "$scratch/try" && "$scratch/try"; } >/dev/null 2>&1 || status=1
  fi
  rm -rf "$scratch"
  return "$status"
}

first_compiler() { # first_compiler LANGUAGE NAME ...: prints the first that works
  local language=$1 name
  shift
  for name in "$@"; do
    if compiles "$language" "$name"; then echo "$name"; return; fi
  done
}

lacks=() debian=() fedora=() macos=()
need() { # need WHAT DEBIAN-PACKAGES FEDORA-PACKAGES MACOS-PACKAGES
  lacks+=("$1") debian+=("$2") fedora+=("$3") macos+=("$4")
}

python=$(find_python)
if [ -z "$python" ]; then
  need "Python 3.11 (looked for ${PYTHON:+PYTHON=$PYTHON, }python3.11, python3 and python on the PATH)" \
    "python3.11 python3.11-venv" python3.11 python@3.11
elif ! "$python" -c 'import ensurepip, venv, ctypes, ssl' >/dev/null 2>&1; then
  need "the modules venv, ensurepip, ctypes and ssl of $python" python3.11-venv python3.11 python@3.11
fi
if [ -n "${CXX-}" ]; then
  cxx=$(first_compiler c++ "$CXX")
  [ -n "$cxx" ] || need "a C++17 compiler: CXX=$CXX does not compile and run a C++17 program; unset CXX or correct it" \
    g++ gcc-c++ xcode-tools
else
  cxx=$(first_compiler c++ c++ g++ clang++)
  [ -n "$cxx" ] || need "a C++17 compiler (none of c++, g++, clang++ compiles and runs a C++17 program)" \
    g++ gcc-c++ xcode-tools
fi
[ -n "$(first_compiler c ${CC:+"$CC"} cc gcc clang)" ] ||
  need "a C compiler (none of ${CC:+CC=$CC, }cc, gcc, clang compiles and runs a C program)" gcc gcc xcode-tools
command -v git >/dev/null || need git git git git
command -v make >/dev/null || need make make make xcode-tools

free_kib=$(df -Pk "$top" | awk 'NR == 2 {print $4}')
if [ ! -d "$top/.venv" ] && [ "${free_kib:-0}" -lt $((5 * 1024 * 1024)) ]; then
  need "5 GiB of free disk in $top (.venv takes 2.9 GiB, and downloads are unpacked beside it; free now: $((free_kib / 1024)) MiB)" \
    "" "" ""
fi

command_for() { # command_for SYSTEM PACKAGE ...: one command that installs them, without repeats
  local system=$1 packages
  shift
  packages=$(printf '%s\n' "$@" | tr ' ' '\n' | awk 'NF && !seen[$0]++' | tr '\n' ' ')
  packages=${packages% }
  [ -n "$packages" ] || return 0
  case $system in
    debian) echo "  Debian, Ubuntu:  sudo apt-get install $packages" ;;
    fedora) echo "  Fedora, RHEL:    sudo dnf install $packages" ;;
    macos)
      case " $packages " in *" xcode-tools "*) echo "  macOS:           xcode-select --install" ;; esac
      packages=$(echo " $packages " | sed 's/ xcode-tools / /; s/^ *//; s/ *$//')
      [ -z "$packages" ] || echo "  macOS:           brew install $packages"
      ;;
  esac
}

this_system() { # prints debian, fedora or macos, or all where it can't tell
  if [ "$(uname -s)" = Darwin ]; then echo macos; return; fi
  case " $( [ ! -r /etc/os-release ] || { . /etc/os-release && echo "${ID-} ${ID_LIKE-}"; } ) " in
    *" debian "* | *" ubuntu "*) echo debian ;;
    *" fedora "* | *" rhel "*) echo fedora ;;
    *) echo all ;;
  esac
}

if [ ${#lacks[@]} -gt 0 ]; then
  {
    echo "Set-up needs what this machine does not have; nothing was downloaded or changed. Missing:"
    printf '  - %s\n' "${lacks[@]}"
    echo "Put it there, then run the same command again:"
    system=$(this_system)
    case $system in debian | all) command_for debian "${debian[@]}" ;; esac
    case $system in fedora | all) command_for fedora "${fedora[@]}" ;; esac
    case $system in macos | all) command_for macos "${macos[@]}" ;; esac
    if [ -z "$python" ]; then
      echo "  Where the system has no Python 3.11 package, any other 3.11 will do (pyenv install 3.11; uv python install 3.11):"
      echo "                   make setup PYTHON=/path/to/python3.11"
    fi
  } >&2
  exit 2
fi
[ "${1-}" != --check-only ] || exit 0

# The compiler that was found to work is the one Horovod is built with.
export CXX=$cxx
exec "$python" -E -s "$here/install.py"
