// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkAppend measures from Append to its return, when a published
// checkpoint covers the entry: p50 and p95, one at a time and 16 at once.
func BenchmarkAppend(b *testing.B) {
	for _, adders := range []int{1, 16} {
		b.Run(fmt.Sprintf("adders=%d", adders), func(b *testing.B) {
			l := newLab(b)
			log := l.open()
			var next atomic.Int64
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			var all sync.WaitGroup
			for range adders {
				all.Go(func() {
					for {
						i := int(next.Add(1)) - 1
						if i >= b.N {
							return
						}
						req := request(b, l.entry, fmt.Sprint(i))
						start := time.Now()
						if _, err := log.Append(b.Context(), req); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(start)
					}
				})
			}
			all.Wait()
			b.StopTimer()
			if err := log.Close(); err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))]) / 1e6 }
			b.ReportMetric(at(0.50), "p50-ms")
			b.ReportMetric(at(0.95), "p95-ms")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
