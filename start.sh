#!/bin/sh
# ACE-Step LoRA on Linux and macOS: run this file (macOS: double-click start.command). It sets everything up the first
# time and opens the window. Where there is no suitable Python, one is fetched into the folder "python".
set -u

# --- What may be changed: addresses, tried in this order ---------------------------------------------------------
# uv fetches Python. Its file is the one with this checksum, wherever it comes from.
UV_FROM="https://files.pythonhosted.org/ https://mirrors.tuna.tsinghua.edu.cn/pypi/web/ https://mirrors.aliyun.com/pypi/"
# Where uv takes Python from; it knows the checksums. The third has only the newest builds, older ones fail there.
PYTHON_FROM="https://github.com/astral-sh/python-build-standalone/releases/download
https://registry.npmmirror.com/-/binary/python-build-standalone
https://mirror.nju.edu.cn/github-release/astral-sh/python-build-standalone"
PYTHON_VERSION=3.12
case "$(uname -s) $(uname -m)" in
"Linux x86_64")
    UV_FILE=packages/3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f/uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
    UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
    ;;
"Linux aarch64")
    UV_FILE=packages/fe/2f/51a5de367c602592c018a42a23d57fba5f2689fe6c3bf025dcf043b39c61/uv-0.13.9-py3-none-manylinux_2_28_aarch64.whl
    UV_SHA256=ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375
    ;;
"Darwin arm64")
    UV_FILE=packages/f3/a7/a8d7b074798c7fb3b26b37584b8fe2e29df2ccdc24ce7902caab2a53edbf/uv-0.13.9-py3-none-macosx_11_0_arm64.whl
    UV_SHA256=66c512266d633bef48384a1f53003f41f2a8e7b36fe6e7fbfd3e0fd52d96fa63
    ;;
"Darwin x86_64")
    UV_FILE=packages/1e/db/08e9ef4879bd667e6d7b4705e594e5bd3e4585f10fc63cb16b9fa2fac63e/uv-0.13.9-py3-none-macosx_10_12_x86_64.whl
    UV_SHA256=c16ed11e013557536b3e60065f1b912f6407bd6518e041b961e23ef9e6b4fbf5
    ;;
*) UV_FILE="" UV_SHA256="" ;;
esac
# -----------------------------------------------------------------------------------------------------------------

say() { printf '%s\n%s\n' "$1" "$2" >&2; }

give_up() {
    say "$1" "$2"
    exit 2
}

here=$(cd -- "$(dirname -- "$0")" && pwd) || exit 2
suitable='import struct, sys, tkinter, venv
sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14) and struct.calcsize("P") == 8))'
[ -f "$here/start.py" ] && [ -f "$here/ace_lora/set_up/environment.py" ] ||
    give_up "This file stands alone. Unpack the whole archive first, then run start.sh in the unpacked folder." \
        "只有本文件一个。请先把整个压缩包解压，再运行解压后文件夹里的 start.sh。"

for python in "$here/python/bin/python3" "$here/.venv/bin/python"; do
    [ -x "$python" ] && "$python" -c "" >/dev/null 2>&1 && exec "$python" "$here/start.py" "$@"
done
for python in python3.12 python3.11 python3.13 python3.14 python3.10 python3 python; do
    command -v "$python" >/dev/null 2>&1 && "$python" -c "$suitable" >/dev/null 2>&1 && exec "$python" "$here/start.py" "$@"
done

say "No suitable Python is installed. Fetching one into this folder, about 60 MB, once ..." \
    "没有找到合适的 Python，正在下载到本文件夹，约 60 MB，只需一次……"
[ -n "$UV_FILE" ] || give_up "There is no Python to fetch for this system ($(uname -s) $(uname -m)). Install Python 3.12." \
    "没有适合本系统的 Python 可下载。请安装 Python 3.12。"
command -v curl >/dev/null 2>&1 || give_up "The program curl is missing. Install it, or Python 3.12." "缺少 curl。请安装 curl 或 Python 3.12。"
part=$here/python.part
rm -rf "$part"
mkdir "$part" || give_up "This folder cannot be written: '$here'. Move the program elsewhere." "无法写入这个文件夹。请把程序移到别处。"

checksum() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi
}

unpack() {
    # A wheel is a zip; bsdtar (macOS) reads those, GNU tar does not.
    if command -v unzip >/dev/null 2>&1; then unzip -q "$1" -d "$2"; else tar -xf "$1" -C "$2"; fi
}

uv=""
for address in $UV_FROM; do
    echo "$address"
    curl --fail --location --connect-timeout 15 --speed-limit 10000 --speed-time 20 --output "$part/uv.zip" "$address$UV_FILE" || continue
    checksum "$part/uv.zip" | grep -qi "^$UV_SHA256" || continue
    unpack "$part/uv.zip" "$part" && uv=$(echo "$part"/uv-*.data/scripts/uv) && chmod +x "$uv" && break
done
no_network_en="Python could not be fetched from any address. Check the network and run this again, or change the addresses at the top of start.sh, or install Python 3.12."
no_network_zh="所有地址都无法下载 Python。请检查网络后重试；也可以修改 start.sh 开头的地址，或安装 Python 3.12。"
[ -n "$uv" ] || give_up "$no_network_en" "$no_network_zh"

fetched=""
for address in $PYTHON_FROM; do
    echo "$address"
    UV_PYTHON_INSTALL_DIR=$part/versions UV_CACHE_DIR=$part/cache UV_PYTHON_INSTALL_MIRROR=$address UV_HTTP_TIMEOUT=30 \
        "$uv" python install --no-config --no-bin "$PYTHON_VERSION" && fetched=yes && break
done
[ -n "$fetched" ] || give_up "$no_network_en" "$no_network_zh"
[ ! -e "$here/python" ] || mv "$here/python" "$here/python.old.$$"
mv "$part/versions/cpython-$PYTHON_VERSION".* "$here/python" && rm -rf "$part"
exec "$here/python/bin/python3" "$here/start.py" "$@"
