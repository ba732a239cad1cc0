#!/bin/sh
# Installs bakelite: continuous backup of SQLite.
#
#   curl -fsSL <address>/install.sh | sh                  install or upgrade; as root by a package where there is one
#   … | sh -s -- --prefix "$HOME/.local"                  without root, into a folder
#   … | sh -s -- --version 1.2.3 --dry-run                say what would be done, and do nothing
#   … | sh -s -- --uninstall                              take it away again; configuration, keys and backups stay
#
# Everything is checked before anything is installed: the signature of the list of checksums, by the key below, and the
# checksum of what was fetched. An interruption at any moment leaves nothing behind. POSIX sh; all of it is functions, so
# that a script that was cut off while it was fetched does nothing.
set -eu

# Filled in by a release (packaging/installer.ts).
DEFAULT_BASE_URL=""
DEFAULT_PUBLIC_KEY=""

usage() {
  cat <<'USAGE'
Usage: install.sh [options]

  --version <version>  Install this version; the newest one otherwise
  --prefix <folder>    Install bin/bakelite below this folder, as no package and without root
  --no-init            Do not offer to set up a backup afterwards
  --dry-run            Say what would be done, and do nothing
  --uninstall          Remove bakelite; configuration, keys and backups stay
  --skip-signature     Check the checksum only, where there is no openssl
  --help               This

  BAKELITE_BASE_URL    Where releases are: <address>/latest and <address>/<version>/…
  BAKELITE_PUBLIC_KEY  A file with the public key that signed them (PEM)
USAGE
}

say() { printf '%s\n' "$*" >&2; }

# What failed, then what to do.
fail() {
  say "install.sh: $1"
  [ -z "${2:-}" ] || say "  hint: $2"
  exit 1
}

wrong() {
  say "install.sh: $1"
  say "  hint: install.sh --help"
  exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

main() {
  version="" prefix="" dry_run=false wants_init=true uninstalls=false checks_signature=true
  while [ $# -gt 0 ]; do
    case $1 in
      --version | --prefix)
        [ -n "${2:-}" ] || wrong "$1 needs a value"
        if [ "$1" = --version ]; then version=${2#v}; else prefix=$2; fi
        shift
        ;;
      --version=*) version=${1#--version=} version=${version#v} ;;
      --prefix=*) prefix=${1#--prefix=} ;;
      --no-init) wants_init=false ;;
      --dry-run) dry_run=true ;;
      --uninstall) uninstalls=true ;;
      --skip-signature) checks_signature=false ;;
      --help | -h) usage && exit 0 ;;
      *) wrong "unknown option: $1" ;;
    esac
    shift
  done
  case $version in *[!A-Za-z0-9.+-]* | *..*) wrong "not a version: $version" ;; esac
  case $prefix in "" | /*) ;; *) prefix=$PWD/$prefix ;; esac

  detect_platform
  choose_method
  if $uninstalls; then uninstall; else install_bakelite; fi
}

# Sets `target`, as in the names of archives, and `machine`, as in the names of packages.
detect_platform() {
  kernel=$(uname -s)
  processor=$(uname -m)
  case $processor in
    x86_64 | amd64) processor=x64 ;;
    aarch64 | arm64) processor=arm64 ;;
    *) fail "there is no bakelite for the processor $processor" "it runs on x86-64 and arm64" ;;
  esac
  case $kernel in
    Linux) target=linux-$processor ;;
    Darwin) target=darwin-$processor ;;
    *) fail "there is no bakelite for $kernel" "it runs on Linux and macOS" ;;
  esac
  if [ "$kernel" = Linux ] && is_musl; then target=$target-musl; fi
}

is_musl() {
  for loader in "${BAKELITE_ROOT:-}"/lib/ld-musl-*.so.1; do
    [ -e "$loader" ] && return 0
  done
  return 1
}

# Sets `method` to deb, rpm or archive, and for an archive `prefix`.
choose_method() {
  method=archive
  is_root=false
  [ "$(id -u)" -ne 0 ] || is_root=true
  if [ -z "$prefix" ] && $is_root; then
    case $target in
      linux-x64 | linux-arm64)
        if has dpkg && has apt-get; then method=deb; elif has rpm; then method=rpm; fi
        ;;
    esac
    [ $method != archive ] || prefix=/usr/local
  elif [ -z "$prefix" ]; then
    prefix=${HOME:?is not set: name a folder with --prefix}/.local
  fi
}

install_bakelite() {
  base_url=${BAKELITE_BASE_URL:-$DEFAULT_BASE_URL}
  base_url=${base_url%/}
  [ -n "$base_url" ] || fail "it is not known where releases are" "set BAKELITE_BASE_URL"
  need_tools
  work=$(mktemp -d "${TMPDIR:-/tmp}/bakelite-install.XXXXXX") || fail "cannot make a temporary folder in ${TMPDIR:-/tmp}"
  staged="" fetcher=""
  trap 'clean_up' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM

  if [ -z "$version" ]; then
    fetch "$base_url/latest" "$work/latest" 1024
    version=$(head -n 1 "$work/latest" | tr -d '\r')
    case $version in "" | *[!A-Za-z0-9.+-]* | *..*) fail "$base_url/latest names no version" "name one with --version" ;; esac
  fi
  fetch "$base_url/$version/SHA256SUMS" "$work/SHA256SUMS" 65536
  if $checks_signature; then
    fetch "$base_url/$version/SHA256SUMS.sig" "$work/SHA256SUMS.sig" 4096
    check_signature
  fi
  find_asset
  say "bakelite $version: $asset"
  if $dry_run; then
    say "would fetch $base_url/$version/$asset, check it, and $(describe_install)"
    return 0
  fi
  fetch "$base_url/$version/$asset" "$work/$asset" 1073741824
  check_sum
  # What was checked is what is installed: nobody else can write to $work.
  "install_$method"
  say "installed $("$installed" --version)"
  say "next: bakelite init"
  offer_init
}

need_tools() {
  has curl || has wget || fail "neither curl nor wget is there to fetch with" "install one of them"
  has sha256sum || has shasum || fail "there is no sha256sum to check what was fetched with" "install coreutils"
  has tar || [ "$method" != archive ] || fail "there is no tar to unpack with" "install it"
  if $checks_signature && ! has openssl; then
    fail "there is no openssl to check the signature with" "install it, or add --skip-signature to check the checksum only"
  fi
}

# Source, file, and the most bytes that it may have. Only https, unless the address that was asked for is none.
fetch() {
  case $base_url in https:*) only='=https' ;; *) only='=https,http' ;; esac
  # In the background, since a shell heeds no signal before the program in the foreground ends.
  if has curl; then
    curl --fail --silent --show-error --location --proto "$only" --retry 2 --connect-timeout 20 \
      --speed-limit 1 --speed-time 60 --max-filesize "$3" --output "$2" "$1" 2>"$work/problem" &
  else
    wget --quiet --timeout=60 --tries=3 --output-document="$2" "$1" 2>"$work/problem" &
  fi
  fetcher=$!
  wait "$fetcher" || no_fetch "$1"
  fetcher=""
  [ "$(wc -c <"$2")" -le "$3" ] || fail "$1 is larger than it should be"
}

no_fetch() {
  reason=$(tail -n 1 "$work/problem" 2>/dev/null || true)
  fail "cannot fetch $1${reason:+: $reason}" "check the network, the free space in ${TMPDIR:-/tmp}, and that this version exists"
}

check_signature() {
  if [ -n "${BAKELITE_PUBLIC_KEY:-}" ]; then
    cat "$BAKELITE_PUBLIC_KEY" >"$work/key.pem" || fail "cannot read the public key $BAKELITE_PUBLIC_KEY"
  elif [ -n "$DEFAULT_PUBLIC_KEY" ]; then
    printf '%s\n' "$DEFAULT_PUBLIC_KEY" >"$work/key.pem"
  else
    fail "this copy of the installer carries no public key" "use the one of a release, or name the key's file in BAKELITE_PUBLIC_KEY"
  fi
  openssl dgst -sha256 -verify "$work/key.pem" -signature "$work/SHA256SUMS.sig" "$work/SHA256SUMS" >/dev/null 2>&1 ||
    fail "the signature of the checksums is wrong; nothing was installed" "somebody may have changed them on the way: do not install this"
}

# Sets `asset` and `expected` from the signed list.
find_asset() {
  case $target-$method in
    linux-x64-deb) ending='_amd64\.deb' ;;
    linux-arm64-deb) ending='_arm64\.deb' ;;
    linux-x64-rpm) ending='\.x86_64\.rpm' ;;
    linux-arm64-rpm) ending='\.aarch64\.rpm' ;;
    *) ending="-$target\\.tar\\.gz" ;;
  esac
  # The version is part of the name, so that a signed list of another one does not pass for it.
  escaped=$(printf '%s' "$version" | sed 's/[.+]/\\&/g; s/-/[-~]/g')
  line=$(grep -E "^[0-9a-f]{64}  bakelite[-_]$escaped(-[0-9]+)?$ending\$" "$work/SHA256SUMS" | head -n 1)
  if [ -z "$line" ] && [ "$method" != archive ]; then
    say "this release has no $method package; installing the archive"
    method=archive prefix=/usr/local
    find_asset
    return 0
  fi
  [ -n "$line" ] || fail "release $version has nothing for $target"
  expected=${line%% *}
  asset=${line#*  }
}

check_sum() {
  if has sha256sum; then actual=$(sha256sum <"$work/$asset"); else actual=$(shasum -a 256 <"$work/$asset"); fi
  [ "${actual%% *}" = "$expected" ] ||
    fail "$asset has the wrong checksum; nothing was installed" "try again; if it stays so, the copy there is damaged or was changed"
}

describe_install() {
  case $method in
    archive) echo "put it at $prefix/bin/bakelite" ;;
    *) echo "install the $method package" ;;
  esac
}

install_archive() {
  tar -xzf "$work/$asset" -C "$work" || fail "cannot unpack $asset" "check the free space in ${TMPDIR:-/tmp}"
  binary=$(find "$work" -type f -name bakelite | head -n 1)
  [ -n "$binary" ] || fail "$asset holds no bakelite"
  chmod 755 "$binary"
  "$binary" --version >/dev/null 2>&1 || fail "the executable of $target does not run here" "$("$binary" --version 2>&1 | head -n 1)"
  mkdir -p "$prefix/bin" || fail "cannot make $prefix/bin" "name another folder with --prefix, or run it as root"
  # Beside its place, then renamed: whoever runs the old one goes on with it, and nobody meets half a file.
  staged=$prefix/bin/.bakelite.$$
  cp "$binary" "$staged" || fail "cannot write to $prefix/bin" "check its permissions and free space; or name another folder with --prefix"
  chmod 755 "$staged"
  mv -f "$staged" "$prefix/bin/bakelite" || fail "cannot replace $prefix/bin/bakelite"
  staged=""
  installed=$prefix/bin/bakelite
  case ":$PATH:" in *":$prefix/bin:"*) ;; *) say "note: $prefix/bin is not in PATH" ;; esac
}

install_deb() {
  chmod 755 "$work" && chmod 644 "$work/$asset"
  DEBIAN_FRONTEND=noninteractive apt-get install -y --allow-downgrades "$work/$asset" >&2 ||
    fail "apt-get could not install $asset" "what it says above is why; dpkg --audit shows what is half installed"
  installed=/usr/bin/bakelite
}

install_rpm() {
  if has dnf; then
    dnf install -y "$work/$asset" >&2
  elif has zypper; then
    zypper --non-interactive install --allow-unsigned-rpm "$work/$asset" >&2
  else
    rpm --upgrade --oldpackage "$work/$asset" >&2
  fi || fail "$asset could not be installed" "what is said above is why"
  installed=/usr/bin/bakelite
}

# Only to somebody who sits in front of it: standard input may be this script.
offer_init() {
  $wants_init && $is_root && [ -t 2 ] && (: </dev/tty) 2>/dev/null || return 0
  printf 'Set up a backup now? [Y/n] ' >&2
  read -r answer </dev/tty || return 0
  case $answer in
    "" | [Yy]*)
      clean_up
      trap - EXIT
      exec "$installed" init </dev/tty
      ;;
  esac
}

uninstall() {
  case $method in
    deb) if dpkg --status bakelite 2>/dev/null | grep -q '^Status: .* installed$'; then remove_by apt-get remove -y bakelite; else method=archive prefix=/usr/local; fi ;;
    rpm) if rpm --query bakelite >/dev/null 2>&1; then remove_by rpm --erase bakelite; else method=archive prefix=/usr/local; fi ;;
  esac
  if [ "$method" = archive ]; then
    [ -e "$prefix/bin/bakelite" ] || fail "there is no $prefix/bin/bakelite" "name the folder that it was installed to with --prefix"
    if $dry_run; then
      say "would remove $prefix/bin/bakelite"
    else
      rm -f "$prefix/bin/bakelite" || fail "cannot remove $prefix/bin/bakelite"
      say "removed $prefix/bin/bakelite"
    fi
  fi
  say "the configuration and keys in /etc/bakelite, the .bakelite folders beside databases and every backup stay"
}

remove_by() {
  if $dry_run; then
    say "would run: $*"
  else
    "$@" >&2 || fail "could not remove the package" "what is said above is why"
    say "removed the package"
  fi
}

clean_up() {
  if [ -n "$fetcher" ]; then
    kill "$fetcher" 2>/dev/null || true
    wait "$fetcher" 2>/dev/null || true
  fi
  rm -rf "$work"
  [ -z "$staged" ] || rm -f "$staged"
}

main "$@"
