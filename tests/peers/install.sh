#!/bin/sh
# Installs published vhost-user programs that the tests can serve: tests/peers/install.sh DIR
#
# They land in DIR/bin. With PORTCULLIS_PEERS=DIR/bin the tests in tests/integration/published_peers.rs
# run against them; without it those tests are skipped.
#
# vhost-device-media generates bindings for V4L2: that needs libclang, and kernel headers that know AV1
# (6.5 or later). Debian 12 has older ones, so its backports' headers are unpacked beside, not installed.
set -eu

dir=${1:?usage: install.sh DIR}
mkdir -p "$dir/headers/lists/partial"
dir=$(cd "$dir" && pwd)

if [ ! -x "$dir/bin/vhost-device-media" ]; then
    # A llvm of the system's own version; nothing else of it is used.
    if ! ls /usr/lib/llvm-*/lib/libclang*.so* 2>/dev/null | grep -qv cpp; then
        apt-get update
        apt-get install -y --no-install-recommends libclang-dev
    fi
    headers=/usr/include
    if ! grep -q av1_film_grain "$headers/linux/videodev2.h" 2>/dev/null; then
        # From wherever this machine takes its own packages.
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        echo "deb $mirror $release-backports main" > "$dir/headers/backports.list"
        set -- -o "Dir::Etc::SourceList=$dir/headers/backports.list" \
            -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$dir/headers/lists"
        apt-get "$@" update
        rm -f "$dir"/headers/*.deb
        (cd "$dir/headers" && apt-get "$@" download linux-libc-dev)
        dpkg -x "$dir"/headers/linux-libc-dev_*.deb "$dir/headers/unpacked"
        headers=$dir/headers/unpacked/usr/include
    fi
    V4L2R_VIDEODEV2_H_PATH=$headers/linux BINDGEN_EXTRA_CLANG_ARGS=-I$headers \
        CARGO_TARGET_DIR=$dir/target cargo install --locked --debug --root "$dir" \
        --version 0.1.1 --no-default-features --features simple-capture vhost-device-media
fi
echo "PORTCULLIS_PEERS=$dir/bin"
