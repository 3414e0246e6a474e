// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import "runtime"

// lockThread gives the goroutine a thread of its own, which ends with it.
func lockThread() { runtime.LockOSThread() }
