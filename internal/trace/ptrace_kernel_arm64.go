// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import "golang.org/x/sys/unix"

const sysStatAt = unix.SYS_FSTATAT
