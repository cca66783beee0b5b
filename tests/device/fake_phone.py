"""Files of /proc and /sys of four phones that get warm, throttle and drain."""

from __future__ import annotations

import threading
from pathlib import Path

V8_0 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
V8_2 = f"{V8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
V8_6 = f"{V8_2} sha3 asimdfhm dit uscat ilrcpc flagm ssbs sb bf16 i8mm"

Clusters = list[tuple[int, int, int, int, int]]

PHONES: dict[str, tuple[Clusters, str, bool]] = {
    # clusters as (first CPU, count, kHz, capacity, part), features, whether the battery is readable
    "three clusters": (
        [(0, 4, 1704000, 160, 0xD46), (4, 4, 2367000, 670, 0xD4D), (8, 1, 2914000, 1024, 0xD4E)],
        V8_6,
        True,
    ),
    "big cores only": (
        [(0, 4, 2000000, 700, 0xD81), (4, 3, 3300000, 950, 0xD82), (7, 1, 3620000, 1024, 0xD85)],
        V8_6,
        True,
    ),
    "two of eight": ([(0, 6, 2000000, 382, 0xD05), (6, 2, 2200000, 1024, 0xD0B)], V8_2, False),
    "one cluster": ([(0, 8, 1804800, 0, 0xD03)], V8_0, False),
}

QEMU_CPU = {V8_0: "cortex-a53", V8_2: "cortex-a76", V8_6: "max,sve=off,sme=off"}


class FakePhone:
    """The files of one phone below `root`; `tick` moves them on by a second of load."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.clusters, self.features, has_battery = PHONES[name]
        self.cpufreq = root / "sys/devices/system/cpu/cpufreq"
        self.supply = root / "sys/class/power_supply/battery"
        cpuinfo = ""
        for first, count, khz, capacity, part in self.clusters:
            cpus = range(first, first + count)
            policy = f"policy{first}"
            self.write(self.cpufreq / policy / "related_cpus", " ".join(map(str, cpus)))
            for file, value in (
                ("cpuinfo_max_freq", khz),
                ("scaling_max_freq", khz),
                ("scaling_cur_freq", khz // 2),
            ):
                self.write(self.cpufreq / policy / file, value)
            for cpu in cpus:
                if capacity:
                    self.write(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", capacity)
                cpuinfo += f"processor\t: {cpu}\nFeatures\t: {self.features}\n"
                cpuinfo += f"CPU implementer\t: 0x41\nCPU part\t: {part:#x}\n\n"
        self.write(root / "proc/cpuinfo", cpuinfo)
        self.write(root / "proc/meminfo", "MemTotal:        7812345 kB\nMemAvailable:    3456789 kB")
        zones = [
            ("cpu-0-0", 41000),
            ("cpu-1-0", 43500),
            ("skin", 33200),
            ("cpu-0-0", 40000),
            ("modem", -274000),
        ]
        for index, (kind, value) in enumerate(zones):
            self.write(self.zone(index) / "type", kind)
            self.write(self.zone(index) / "temp", value)
        self.write(root / "sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0")
        self.write(root / "sys/class/thermal/cooling_device0/cur_state", 0)
        if has_battery:
            values = {"type": "Battery", "status": "Discharging", "capacity": 71, "charge_counter": 2834000}
            values |= {"current_now": -612345, "voltage_now": 4012000, "temp": 295}
            for file, entry in values.items():
                self.write(self.supply / file, entry)

    @property
    def qemu_cpu(self) -> str:
        """The name of a CPU with these features in qemu."""
        return QEMU_CPU[self.features]

    def zone(self, index: int) -> Path:
        return self.root / f"sys/class/thermal/thermal_zone{index}"

    @staticmethod
    def write(path: Path, value: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def tick(self) -> None:
        """Warmer by 1.1 degrees, slower from 48 on, and 350 µAh less in the battery."""
        for index, rise in ((0, 900), (1, 1100), (2, 120)):
            temp = self.zone(index) / "temp"
            self.write(temp, int(temp.read_text()) + rise)
        hot = int((self.zone(1) / "temp").read_text()) > 48000
        for policy in self.cpufreq.iterdir():
            top = int((policy / "cpuinfo_max_freq").read_text())
            self.write(policy / "scaling_max_freq", top * 6 // 10 if hot else top)
            self.write(policy / "scaling_cur_freq", top * 6 // 10 if hot else top)
        self.write(self.root / "sys/class/thermal/cooling_device0/cur_state", int(hot))
        counter = self.supply / "charge_counter"
        if counter.exists():
            self.write(counter, int(counter.read_text()) - 350)


class Ticking:
    """Ticks a phone in the background while the block runs."""

    def __init__(self, phone: FakePhone, seconds: float) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(phone, seconds), daemon=True)

    def _run(self, phone: FakePhone, seconds: float) -> None:
        while not self._ended.wait(seconds):
            phone.tick()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
