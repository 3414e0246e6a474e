// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0
)

// archAllowed is what this architecture calls by another name.
func archAllowed() []uint32 { return []uint32{unix.SYS_NEWFSTATAT} }

// archRefused are calls that only this architecture has: none.
func archRefused() []uint32 { return nil }

// nodeCalls make files of any kind; the value is the argument with the mode.
func nodeCalls() map[uint32]uint32 { return map[uint32]uint32{unix.SYS_MKNODAT: 2} }
