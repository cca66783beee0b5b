#!/bin/sh
# namespace.sh FAKE COMMAND...: a phone in a namespace. Its root has Android's shell and tools (mksh, toybox), the /sys and /proc/cpuinfo
# of the folder FAKE, and arm64 programs run through qemu. COMMAND gets the root as its last argument. No system change outlives it.
if [ "$1" != inside ]; then
    exec unshare --user --map-root-user --mount --pid --fork --kill-child sh "$0" inside "$@"
fi
shift
FAKE=$1
shift
set -e
R=$FAKE/root
mkdir -p "$R"
mount -t tmpfs -o size=2g phone "$R"
mkdir -p "$R/system/bin" "$R/data/local/tmp" "$R/data/home" "$R/proc" "$R/sys" "$R/dev" "$R/binfmt" "$R/tmp"
ln -s system/bin "$R/bin"
TOYBOX=$(command -v toybox)
cp "$(command -v mksh-static)" "$R/system/bin/sh"
cp "$TOYBOX" "$R/system/bin/toybox"
for file in $(ldd "$TOYBOX" | grep -o '/[^ ]*'); do
    mkdir -p "$R$(dirname "$file")"
    cp "$file" "$R$file"
done
for tool in $(toybox); do
    case $tool in toybox | sh | uname | '[') ;; *) ln -s toybox "$R/system/bin/$tool" ;; esac
done
printf '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo Linux\n' > "$R/system/bin/uname"
chmod 755 "$R/system/bin/uname"
mount -t binfmt_misc binfmt "$R/binfmt"
printf '%s' ':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$(command -v qemu-aarch64-static)"':F' > "$R/binfmt/register"
mount -t proc proc "$R/proc"
mount --bind "$FAKE/proc/cpuinfo" "$R/proc/cpuinfo"
mount --bind "$FAKE/proc/meminfo" "$R/proc/meminfo"
mount --rbind /dev "$R/dev"
mount --bind "$FAKE/sys" "$R/sys"
exec "$@" "$R"
