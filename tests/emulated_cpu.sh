#!/bin/bash
# Run a program on a CPU that this machine lacks: tests/emulated_cpu.sh BOCHS PROGRAM [ARGUMENT-OF-ONE-RUN ...]
#
# Boots Linux in the Bochs emulator with nothing but the program and its libraries, runs it once for each further argument
# (once without any if there is none), prints what the emulated machine prints and fails unless every run ended well.
# docs/emulated-cpus.md says which packages it needs. From the environment: PACKAGES, the folder they were unpacked in, if they
# are not installed; ALSO, files and folders that the program finds at the same places, with the libraries they need; CPU and
# WITHOUT, the model as Bochs names it and features it shall lack; ONEDNN_MAX_CPU_ISA, which reaches the program.
set -euo pipefail

bochs=${1:?the emulator is missing} program=$(realpath "${2:?the program is missing}")
shift 2
if ldd "$program" | grep 'not found'; then exit 1; fi
cpu=${CPU:-sapphire_rapids}
# AMX: Linux enables it only beside a register that Bochs lacks. Pages of five levels: the BIOS, called once more by Linux to
# switch ACPI on, cannot return to them.
without=${WITHOUT-amx,amx_int8,amx_bf16,la57}
from=${PACKAGES:-}
work=$(mktemp -d)
emulator=
trap 'if [ "$emulator" ]; then kill "$emulator"; fi; rm -rf "$work"' EXIT

mkdir -p "$work"/root/{bin,dev,proc,tmp} "$work"/disc/isolinux
cp "$from/bin/busybox" "$work/root/bin/"
for name in sh mount grep sleep poweroff; do ln -s busybox "$work/root/bin/$name"; done
read -ra also <<<"${ALSO:-}"
cp -rL --parents "$program" "${also[@]}" "$work/root"
find "$work/root" -name '*.so*' -o -path "$work/root$program" | { xargs ldd 2>/dev/null || true; } |
  grep -oP '(=> |^\s)\K/[^ ]+(?= )' | sort -u | while read -r library; do
  library=${library#"$work/root"}
  mkdir -p "$work/root/$(dirname "$library")"
  cp -nL "$library" "$work/root/$library"
done
{
  echo '#!/bin/sh'
  echo 'mount -t proc proc /proc; mount -t devtmpfs dev /dev; grep -m1 flags /proc/cpuinfo; failed=0'
  if [ "${ONEDNN_MAX_CPU_ISA:-}" ]; then printf 'export ONEDNN_MAX_CPU_ISA=%q\n' "$ONEDNN_MAX_CPU_ISA"; fi
  if [ $# -eq 0 ]; then printf '%q || failed=1\n' "$program"; fi
  for argument in "$@"; do printf '%q %q || failed=1\n' "$program" "$argument"; done
  echo 'echo "emulated: failed=$failed"; sleep 1; poweroff -f'
} >"$work/root/init"
chmod +x "$work/root/init"
(cd "$work/root" && find . | "$from/bin/busybox" cpio -o -H newc 2>/dev/null) >"$work/disc/initrd"

# clearcpuid: Linux lets no rep movsb copy long blocks here but would take it for short ones, and then copies wrongly.
kernels=("$from"/boot/vmlinuz-*)
cp "${kernels[-1]}" "$work/disc/linux"
cp "$from"/usr/lib/{ISOLINUX/isolinux.bin,syslinux/modules/bios/ldlinux.c32} "$work/disc/isolinux/"
printf '%s\n' 'default tests' 'label tests' 'kernel /linux' \
  'append initrd=/initrd console=ttyS0 quiet mitigations=off tsc=reliable panic=1 clearcpuid=fsrm' \
  >"$work/disc/isolinux/isolinux.cfg"
"$from/usr/bin/genisoimage" -quiet -R -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
  -no-emul-boot -boot-load-size 4 -boot-info-table "$work/disc"

# The clock counts instructions, so a time limit inside the program means as many whatever this machine is busy with.
cat >"$work/bochsrc" <<END
display_library: nogui
romimage: file=$from/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$from/usr/share/vgabios/vgabios.bin
megs: 1024
cpu: model=$cpu, ips=200000000, reset_on_triple_fault=0, exclude_features="$without"
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=$work/printed
panic: action=fatal
log: $work/log
END
touch "$work/printed"
"$bochs" -q -f "$work/bochsrc" >"$work/console" 2>&1 </dev/null &
emulator=$!
tail --pid=$emulator -n +1 -f "$work/printed"
emulator=
if ! grep -q 'emulated: failed=' "$work/printed"; then tail -n 20 "$work/console" "$work/log" || true; fi
grep -q 'emulated: failed=0' "$work/printed"
