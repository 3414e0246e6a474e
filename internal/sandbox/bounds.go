// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"strconv"
	"strings"
	"time"
)

// bounds watches, while a program runs, that its limits are still there and that
// what it writes stays within them.
type bounds struct {
	pid   int
	group *cgroup
	disk  *disk
	limit int64 // bytes of disk

	hit  chan breach // one word at most
	stop chan struct{}
	done chan struct{}

	looks int // at the disk; read after done
	ended bool
}

// breach is why a program has to be stopped.
type breach struct {
	limit string   // that was hit
	lost  []string // limits that vanished
}

const (
	boundsEvery = 50 * time.Millisecond
	// That the limits are still there is asked at every fourth tick: a dozen files
	// have to be read for it.
	groupEvery = 4
	// A look at all that was written costs as much as there are files: it gets at
	// most this part of the time, unless the free space fell by this part of the
	// limit since the last one.
	diskShare, diskStep = 300, 64
)

func newBounds(pid int, group *cgroup, spec Spec) (*bounds, error) {
	d, err := newDisk(pid, spec)
	if err != nil {
		return nil, err
	}
	b := &bounds{pid: pid, group: group, disk: d, limit: spec.Limits.Disk, hit: make(chan breach, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go b.watch()
	return b, nil
}

func (b *bounds) watch() {
	defer close(b.done)
	tick := time.NewTicker(boundsEvery)
	defer tick.Stop()
	var rest time.Time
	var free uint64 // at the last look
	for ticks := 0; ; ticks++ {
		select {
		case <-b.stop:
			return
		case now := <-tick.C:
			if ticks%groupEvery == 0 {
				if lost := b.group.lost(b.pid); len(lost) > 0 && !b.disk.hurry.Load() {
					b.hit <- breach{lost: lost}
					return
				}
			}
			left, full := b.disk.free()
			fell := free > left && free-left > uint64(max(b.limit, 0))/diskStep
			if now.Before(rest) && !fell && !full {
				continue
			}
			used, full := b.disk.used()
			if b.disk.hurry.Load() {
				return // it did not look at everything
			}
			b.looks++
			rest, free = time.Now().Add(diskShare*time.Since(now)), left
			if used > b.limit || full {
				b.hit <- breach{limit: "disk"}
				return
			}
		}
	}
}

// hurry comes before the program is killed: what is seen from here on is its end.
func (b *bounds) hurry() { b.disk.hurry.Store(true) }

// end ends the watching, whatever it is at: a look at many files takes long.
func (b *bounds) end() {
	if !b.ended {
		b.ended = true
		b.hurry()
		close(b.stop)
		<-b.done
		b.disk.hurry.Store(false)
	}
}

// last looks once more, when nothing of the program is left that could write.
// Files without a name are gone by then, and take no space.
func (b *bounds) last() breach {
	b.end()
	defer b.disk.close()
	select {
	case found := <-b.hit:
		return found
	default:
	}
	used, full := b.disk.used()
	b.looks++
	if used > b.limit || full {
		return breach{limit: "disk"}
	}
	return breach{}
}

func (b *bounds) guarantee() Guarantee {
	return Guarantee{"disk-limit", b.looks > 0, "at most " + strconv.FormatInt(b.limit, 10) + " bytes in sum (workspace, caches, memory file systems, files without a name), looked at " + strconv.Itoa(b.looks) + " times while it ran"}
}

// mapsOnly reports whether the user map of a process, as we see it, has exactly
// our one line.
func mapsOnly(table string, inside, outside int) bool {
	f := strings.Fields(table)
	return len(f) == 3 && f[0] == strconv.Itoa(inside) && f[1] == strconv.Itoa(outside) && f[2] == "1"
}
