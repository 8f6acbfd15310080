#!/usr/bin/env bash
# Makes the packages. Run it in a clone, on the oldest system that the packages are for: they need its glibc or a newer one.
#   release.sh install                       installs the tools that it needs, with cargo; rpm comes from the system
#   release.sh extras BINARY                 man pages and completions of BINARY, in target/package/extras
#   release.sh deb [VERSION]                 the Debian package of target/release/snapgate, in target/dist
#   release.sh rpm [VERSION]                 the RPM package with the files of that Debian package
#   release.sh container-root BINARY FOLDER  the files of the container image
#   release.sh reproduced PROFILE            builds twice, in two folders, and compares; PROFILE is dev or release
#   release.sh all                           everything, in target/dist: packages, program, SBOM, checksums
# ADVISORY_DB names a clone of https://github.com/RustSec/advisory-db, for machines that cannot fetch it.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=target/dist
extras=target/package/extras

fail() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }
say() { printf '== %s\n' "$*"; }

install_tools() {
  local tool
  for tool in cargo-auditable cargo-cyclonedx cargo-deb; do
    command -v "$tool" >/dev/null || cargo install --quiet --locked "$tool"
  done
  command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
}

version() { sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1; }

# Everything that a build could take from its surroundings: the date, and the folders of sources and libraries.
set_reproducible() {
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  local cargo_home=${CARGO_HOME:-$HOME/.cargo}
  export SOURCE_DATE_EPOCH CARGO_INCREMENTAL=0
  export RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$1=/source"
  export CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$1=/source" CXXFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$1=/source"
}

# The program that is released: its libraries are listed in it, for scanners (cargo audit bin, trivy).
build_release() { # FOLDER OF THE SOURCES
  (set_reproducible "$1"; cd "$1"; cargo auditable build --quiet --locked --release)
}

make_extras() {
  rm -rf "$extras"
  mkdir -p "$extras/man" "$extras/completions"
  "$1" generate man "$extras/man" >/dev/null
  "$1" generate completions "$extras/completions" >/dev/null
  gzip -9n "$extras"/man/*.1
}

# The version of a package may name a build: 0.1.0-2.
make_deb() {
  mkdir -p "$dist"
  cargo deb --quiet --no-build --no-strip ${FAST:+--fast} --deb-version "${1:-$(version)-1}" --output "$dist/" >/dev/null
}

# Of the files of the Debian package of that version, in the places that RPM distributions use.
make_rpm() {
  local full=${1:-$(version)-1} staged=$PWD/target/package/rpm
  rm -rf "$staged"
  mkdir -p "$staged/files/usr/share/licenses/snapgate"
  dpkg-deb --extract "$dist/snapgate_${full}_$(dpkg --print-architecture).deb" "$staged/files"
  rm -rf "$staged/files/usr/share/doc/snapgate/copyright"
  mv "$staged/files/usr/share/zsh/vendor-completions" "$staged/files/usr/share/zsh/site-functions"
  cp LICENSE "$staged/files/usr/share/licenses/snapgate/"
  rpmbuild -bb --quiet --define "_topdir $staged" --define "_rpmdir $staged/made" --define "staged $staged/files" \
    --define "package_version ${full%-*}" --define "package_release ${full##*-}" ${FAST:+--define "_binary_payload w1.gzdio"} config/package/rpm/snapgate.spec
  mv "$staged"/made/*/*.rpm "$dist/"
}

container_root() {
  local binary=$1 root=$2 library
  rm -rf "$root"
  install -d -m 755 "$root/usr/bin" "$root/etc/ssl/certs"
  install -m 755 "$binary" "$root/usr/bin/snapgate"
  # The libraries that the loader finds for it, and the loader.
  ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$library" "$root$library"
  done
  printf 'root:x:0:0:root:/:/sbin/nologin\nsnapgate:x:65532:65532:snapgate:/var/lib/snapgate:/sbin/nologin\n' >"$root/etc/passwd"
  printf 'root:x:0:\nsnapgate:x:65532:\n' >"$root/etc/group"
  printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
  [ ! -e /etc/ssl/certs/ca-certificates.crt ] || install -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  install -D -m 644 config/package/snapgate.toml "$root/etc/snapgate/snapgate.toml"
  install -d -m 700 "$root/var/lib/snapgate"
  install -d -m 750 "$root/var/log/snapgate"
}

# A copy of the sources as they are in the work tree.
copy_sources() {
  rm -rf "$1"
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create --ignore-failed-read | tar --extract --directory "$1"
}

# Two builds in two folders must be the same, byte for byte. With the profile dev, libraries come from target/debug.
reproduced() {
  local profile=$1 folder name
  local made=$PWD/target/reproduced
  rm -rf "$made"
  for name in one another-place; do
    folder=$made/$name
    copy_sources "$folder"
    if [ "$profile" = release ]; then
      build_release "$folder"
      cp "$folder/target/release/snapgate" "$made/$name.bin"
      rm -rf "$folder/target"
      continue
    fi
    mkdir -p "$folder/target/debug"
    cp -al target/debug/{.fingerprint,build,deps} "$folder/target/debug/"
    (cd "$folder"; CARGO_INCREMENTAL=0 cargo auditable build --quiet --locked)
    # Debug information names the folder, and the build id is a hash over it. Releases have none of it.
    strip --remove-section=.note.gnu.build-id -o "$made/$name.bin" "$folder/target/debug/snapgate"
  done
  cmp "$made/one.bin" "$made/another-place.bin" || fail "two builds of the same sources differ"
  list_libraries "$made/one.bin" >/dev/null
  say "two builds in two folders are the same: $(sha256sum "$made/one.bin" | cut -c-64)"
}

# What cargo auditable wrote into a program: its libraries, as JSON.
list_libraries() {
  local section
  section=$(mktemp)
  objcopy --dump-section ".dep-v0=$section" "$1" /dev/null
  python3 -c 'import json, sys, zlib
found = json.loads(zlib.decompress(open(sys.argv[1], "rb").read()))
names = {package["name"] for package in found["packages"]}
assert {"snapgate", "pingora", "rusqlite"} <= names, names
print(json.dumps(found))' "$section"
  rm -f "$section"
}

# Licences, sources, bans, and known vulnerabilities of the libraries.
check_libraries() {
  if [ -z "${ADVISORY_DB-}" ]; then
    cargo deny --locked check
    return
  fi
  local folder=$PWD/target/advisories
  rm -rf "$folder"
  mkdir -p "$folder"
  # The name under which cargo-deny looks for that repository.
  git clone --quiet "$ADVISORY_DB" "$folder/advisory-db-3157b0e258782691"
  sed "s|^\[advisories\]|&\ndb-path = \"$folder\"|" .cargo/deny.toml >"$folder/deny.toml"
  cargo deny --locked --offline --config "$folder/deny.toml" check
  say "the advisories are those of $(git -C "$folder"/advisory-db-* log -1 --format=%cs)"
}

make_sbom() {
  cargo cyclonedx --quiet --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu --override-filename snapgate.cdx
  mv snapgate.cdx.json "$dist/snapgate-$(version).cdx.json"
}

make_all() {
  [ -z "$(git status --porcelain)" ] || fail "commit or remove your changes first: a release is made of a commit"
  say "licences, sources, bans and advisories"
  check_libraries
  rm -rf "$dist"
  mkdir -p "$dist"
  say "two builds, compared"
  reproduced release
  install -D -m 755 target/reproduced/one.bin target/release/snapgate
  make_extras target/release/snapgate
  say "packages"
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  make_deb
  make_rpm
  make_sbom
  local name
  name=snapgate-$(version)-$(uname -m)-linux-gnu
  container_root target/release/snapgate "target/package/$name"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --create --directory target/package "$name" | gzip -9n >"$dist/$name-container.tar.gz"
  gzip -9nc target/release/snapgate >"$dist/$name.gz"
  git archive --format=tar --prefix="snapgate-$(version)/" HEAD | gzip -9n >"$dist/snapgate-$(version).tar.gz"
  (cd "$dist" && sha256sum -- * >SHA256SUMS)
  say "made in $dist:"
  cat "$dist/SHA256SUMS"
}

case "${1:-}" in
  install) install_tools ;;
  extras) make_extras "$2" ;;
  deb) make_deb "${2:-}" ;;
  rpm) make_rpm "${2:-}" ;;
  container-root) container_root "$2" "$3" ;;
  reproduced) reproduced "$2" ;;
  all) make_all ;;
  *) sed -n '2,10p' "$0"; exit 64 ;;
esac
