// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import "os"

// BreakWrites makes every further write of t fail as on a full disk.
func BreakWrites(t *Temp) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	t.f.Close()
	t.f = full
}
