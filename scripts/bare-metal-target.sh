#!/usr/bin/env bash
# Gives the active Rust toolchain the precompiled `core`, `alloc` and `compiler_builtins` of a bare-metal target, so that
# plain `cargo build --target x86_64-unknown-none` works, on stable, without build-std.
#
#   bare-metal-target.sh [TARGET...]       default: x86_64-unknown-none
#
# First choice is rustup's own download. Where rustup cannot download, the library sources of exactly this compiler's
# version come from Debian's package `rust-src`, looked for in newer suites of the mirror that this machine uses already,
# by a private apt root: the system's package state is not touched. They are compiled once (20 s) and put where rustup
# would put them. Sources of another version than the compiler's do not compile.
set -euo pipefail

targets=("${@:-x86_64-unknown-none}")
sysroot=$(realpath "$(rustc --print sysroot)")
version=$(rustc --version | cut -d' ' -f2)
host=$(rustc --version --verbose | sed -n 's/^host: //p')

# The targets whose `core` is not there.
absent() {
  for target in "${targets[@]}"; do
    compgen -G "$sysroot/lib/rustlib/$target/lib/libcore-*.rlib" >/dev/null || echo "$target"
  done
}

mapfile -t missing < <(absent)
[ ${#missing[@]} = 0 ] && exit 0
if command -v rustup >/dev/null && timeout 120 rustup target add "${missing[@]}"; then
  mapfile -t missing < <(absent)
  [ ${#missing[@]} = 0 ] && exit 0
fi
echo "rustup cannot download ${missing[*]}: compiling them for rustc $version" >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The library's sources, where rustup's component `rust-src` would put them.
library=$sysroot/lib/rustlib/src/rust/library
if [ ! -d "$library" ]; then
  command -v apt-get >/dev/null || { echo "no apt-get: install the target by your system's means" >&2; exit 3; }
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -1)
  apt=$work/apt
  mkdir -p "$apt"/etc/{apt.conf.d,preferences.d} "$apt"/state/lists/partial "$apt"/cache/archives/partial
  : > "$apt/status"
  for suite in bookworm-backports trixie trixie-backports forky sid; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  done > "$apt/etc/sources.list"
  options=(-qq -o Dir::Etc="$apt/etc" -o Dir::State="$apt/state" -o Dir::State::status="$apt/status"
    -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root
    # Signatures count, freshness does not: one exact version is wanted, and mirrors lag behind.
    -o Acquire::Check-Valid-Until=false)
  apt-get "${options[@]}" update >&2 || echo "not every suite could be read" >&2
  package=$(apt-cache "${options[@]}" madison rust-src | awk -v v="$version" 'index($3, v "+") == 1 { print $3; exit }')
  [ -n "$package" ] || { echo "no Debian package has the library sources of rustc $version" >&2; exit 3; }
  (cd "$work" && apt-get "${options[@]}" download "rust-src=$package" >&2 &&
    dpkg --fsys-tarfile rust-src_*.deb | tar x "./usr/src/rustc-$version/library")
  mkdir -p "$sysroot/lib/rustlib/src/rust"
  mv "$work/usr/src/rustc-$version/library" "$library"
fi

# Built by way of a crate that needs nothing but them, against the sources' own vendored dependencies.
mkdir -p "$work/bottom/src" "$work/cargo"
echo '#![no_std]' > "$work/bottom/src/lib.rs"
cat > "$work/bottom/Cargo.toml" <<'EOF'
[package]
name = "bottom"
version = "0.0.0"
edition = "2021"
[workspace]
[profile.release]
panic = "abort"
EOF
cat > "$work/cargo/config.toml" <<EOF
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "$library/vendor"
EOF
lld=$sysroot/lib/rustlib/$host/bin/rust-lld
[ -e "$lld" ] || { mkdir -p "${lld%/*}"; ln -s "$(command -v lld)" "$lld"; }
# Like rustup's own files they have bitcode beside the code: programs are optimized across crates, these included.
for target in "${missing[@]}"; do
  (cd "$work/bottom" && env -u CARGO_ENCODED_RUSTFLAGS -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET \
    RUSTFLAGS="-C embed-bitcode=yes" RUSTC_BOOTSTRAP=1 CARGO_HOME="$work/cargo" RUSTC="$sysroot/bin/rustc" \
    "$sysroot/bin/cargo" build --offline --quiet --release --target "$target" \
    -Zbuild-std=core,alloc,compiler_builtins --target-dir "$work/target")
  mkdir -p "$sysroot/lib/rustlib/$target/lib"
  cp "$work/target/$target/release/deps/"lib{core,alloc,compiler_builtins}-*.rlib "$sysroot/lib/rustlib/$target/lib/"
  echo "$target: installed into $sysroot/lib/rustlib/$target" >&2
done
