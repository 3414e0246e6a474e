// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"os"
	"runtime/debug"
)

// QuickStart stands in the environment of our own binary when it is started again
// under another name. Half of the time of such a start went into collecting
// garbage while the packages that we are made of fill their tables, before a line
// of ours runs; a run starts a dozen of them. CollectGarbage ends it.
const QuickStart = "GOGC=off"

// CollectGarbage puts the collector to work, and keeps what a process starts from
// going without it.
func CollectGarbage() {
	os.Unsetenv("GOGC")
	debug.SetGCPercent(100)
}
