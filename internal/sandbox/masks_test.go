// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"strings"
	"testing"
)

// TestShowsNothingOfTheMachine asks for what a container runtime masks, and for
// what it does not.
func TestShowsNothingOfTheMachine(t *testing.T) {
	out, rep := sh(t, `for f in kcore keys key-users timer_list sched_debug kallsyms kmsg interrupts latency_stats sysrq-trigger config.gz modules iomem ioports slabinfo vmallocinfo kpageflags cmdline partitions diskstats swaps cgroups crypto sys/kernel/core_pattern sys/kernel/modprobe; do
		n=$(head -c 100 /proc/$f 2>/dev/null | wc -c); [ "$n" = 0 ] || echo "read $f $n"
	done
	for d in acpi asound scsi bus fs irq tty driver sysvipc pressure sys/kernel/keys; do
		n=$(ls /proc/$d 2>/dev/null | wc -l); [ "$n" = 0 ] || echo "listed $d"
	done
	echo '|/tmp/x' 2>/dev/null >/proc/sys/kernel/core_pattern && grep -q . /proc/sys/kernel/core_pattern && echo "wrote core_pattern"
	echo x 2>/dev/null >/proc/sys/kernel/hostname && echo "wrote hostname"
	echo c 2>/dev/null >/proc/sysrq-trigger # goes to /dev/null: the machine is still there
	ls /sys 2>/dev/null && echo "sys is there"
	find / -name release_agent -o -name cgroup.procs 2>/dev/null | grep . && echo "found cgroups"
	ls /dev | tr '\n' ' '; echo; grep -q processor /proc/cpuinfo && grep -q MemTotal /proc/meminfo && nproc >/dev/null && echo enough`, nil)
	for _, bad := range []string{"read ", "listed ", "wrote ", "is there", "found "} {
		if strings.Contains(out, bad) {
			t.Errorf("reached:\n%s", out)
			break
		}
	}
	if !strings.Contains(out, "fd null random shm stderr stdin stdout tty urandom zero") || !strings.Contains(out, "enough") {
		t.Error(out)
	}
	for _, name := range []string{"proc-masked", "sysfs-absent", "devices-minimal", "kernel-settings-closed", "memory-not-executable"} {
		if !holds(rep, name) {
			t.Errorf("%s does not hold: %+v", name, rep.Guarantees)
		}
	}
}
