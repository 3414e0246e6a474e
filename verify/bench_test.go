// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// benchmark reports CPU time beside wall time: the goal is CPU per bundle, and
// build machines are shared.
func benchmark(b *testing.B, tr *trust, raw []byte) {
	v := tr.verifier(b, nil, nil)
	b.ReportAllocs()
	start := cpuNanos(b)
	for b.Loop() {
		if _, err := v.Verify(raw); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuNanos(b)-start)/float64(b.N)/1e6, "cpu-ms/op")
}

func cpuNanos(tb testing.TB) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
