// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/hallmark-sc/hallmark"
)

// counters count what the gates decided. The zero value is ready.
type counters struct {
	mu   sync.Mutex
	seen map[[3]string]int // gate, effect, code
}

// count counts one decision; one that could not be made is an error.
func (c *counters) count(gate string, d hallmark.Decision, err error) {
	effect, codes := "allow", []string{""}
	switch {
	case err != nil:
		effect, codes = "error", []string{string(hallmark.CodeOf(err))}
	case !d.Allowed():
		effect, codes = "deny", codesOf(d.Reasons)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = map[[3]string]int{}
	}
	for _, code := range codes {
		c.seen[[3]string{gate, effect, code}]++
	}
}

func (c *counters) write(w io.Writer) {
	c.mu.Lock()
	seen := maps.Clone(c.seen)
	c.mu.Unlock()
	fmt.Fprint(w, "# HELP hallmark_decisions_total Decisions of the gates, each reason of a denial by itself.\n# TYPE hallmark_decisions_total counter\n")
	keys := slices.SortedFunc(maps.Keys(seen), func(a, b [3]string) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		fmt.Fprintf(w, "hallmark_decisions_total{gate=%s,effect=%s,code=%s} %d\n", strconv.Quote(k[0]), strconv.Quote(k[1]), strconv.Quote(k[2]), seen[k])
	}
}
