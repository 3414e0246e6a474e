// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// readers remember who read which file that the program can change: when
// somebody opens it for writing, those that still have it are misled if it
// changes.
type readers map[node]map[*proc]hallmark.Digest

func (r readers) add(key node, p *proc, d hallmark.Digest) {
	if r[key] == nil {
		r[key] = map[*proc]hallmark.Digest{}
	}
	r[key][p] = d
}

// stillReading takes note, in a file that is open for writing now, of those who
// read it before and have it open or mapped still.
func (t *tracer) stillReading(w *written) {
	for p, d := range t.readers[w.key] {
		if p.threads > 0 && holds(p.pid, w.key) {
			w.reads = append(w.reads, sight{t.rec.number(p.pid), d})
		}
	}
	delete(t.readers, w.key)
}

// holds reports whether a process has a file open or mapped. One that can't be
// asked is said to.
func holds(pid int, key node) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return !os.IsNotExist(err)
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(dir+"/"+n.Name(), &st) == nil && (node{st.Dev, st.Ino}) == key {
			return true
		}
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return !os.IsNotExist(err)
	}
	// The device of a mapping is not that of stat on every file system; the
	// number of the file says enough, since a wrong guess only asks for a look.
	ino := strconv.AppendUint(nil, key.ino, 10)
	for l := range bytes.Lines(maps) {
		if f := bytes.Fields(l); len(f) >= 5 && bytes.Equal(f[4], ino) {
			return true
		}
	}
	return false
}
