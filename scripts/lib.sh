# SPDX-License-Identifier: MIT
# Shared by the scripts here; read with `.`.
# shellcheck shell=sh

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null 2>&1; then
		sudo -n "$@"
	else
		die "needs root or sudo for: $*"
	fi
}

# need_packages NAME...: install those Debian packages that are missing.
need_packages()
{
	if ! command -v dpkg-query >/dev/null 2>&1; then
		echo "not a Debian system: expecting to find what these packages hold: $*"
		return 0
	fi
	missing=
	for package in "$@"; do
		state=$(dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null || true)
		case "$state" in
		installed*) ;;
		*) missing="$missing $package" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	echo "installing Debian packages:$missing"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 update ||
		die "apt-get update failed"
	# shellcheck disable=SC2086 # a list of names
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 \
		--no-install-recommends install $missing || die "cannot install:$missing"
}

# need_image BUILD: what virtual machines boot from, where programs look for it: $image.
need_image()
{
	if [ "$(id -u)" = 0 ]; then
		image=/var/cache/agentd
	else
		image=${XDG_CACHE_HOME:-$HOME/.cache}/agentd
	fi
	[ ! -f "$image/image.json" ] || return 0
	echo "There is no image that machines could boot from: scripts/build-image makes it" \
		"from Debian's packages, once."
	scripts/build-image --agent "$1/lib/guest/agentd-guest"
}

# packages_of COMMAND:PACKAGE...: the packages of those commands that are not installed,
# from wherever: a sandbox shows the system's directories only.
packages_of()
{
	for pair in "$@"; do
		for dir in /usr/local/bin /usr/bin /bin; do
			[ ! -x "$dir/${pair%:*}" ] || continue 2
		done
		echo "${pair#*:}"
	done
}

# What building needs, and what testing needs besides; what Debian packages are made with; what
# measuring needs, with the peers; what runs virtual machines, and what their image is made with;
# what tests run in a sandbox.
build_packages="gcc libc6-dev meson ninja-build pkgconf libevent-dev libjson-c-dev libseccomp-dev
	libarchive-dev libc-ares-dev"
test_packages="abigail-tools bubblewrap g++ clang clang-format-14 clang-tidy binutils check doxygen
	valgrind mandoc git procps strace util-linux
	curl libglib2.0-dev openssl python3-cffi python3-pycparser python3-pytest python3-venv
	bindgen cargo rust-clippy rustc rustfmt zstd"
deb_packages="check debhelper dh-python dpkg-dev fakeroot lintian python3"
bench_packages="bubblewrap check crun libglib2.0-dev libuv1-dev python3-cffi python3-pycparser rustc"
machine_packages="qemu-system-x86"
image_packages="apt binutils dpkg e2fsprogs erofs-utils lz4 mmdebstrap python3 util-linux"
tool_commands="git:git make:make gcc:gcc node:nodejs npm:npm cargo:cargo rustc:rustc sqlite3:sqlite3 tar:tar
	gzip:gzip xz:xz-utils perl:perl awk:mawk sed:sed find:findutils xargs:findutils"
