// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"strings"
)

// memfdSetting belongs to the pid namespace of whoever reads or writes it. With
// "2" no file in memory can be made executable, which would be a program that no
// file system ever held.
const memfdSetting = "/proc/sys/vm/memfd_noexec"

// bindMemfd asks for it. Only host root may write the setting, so that elsewhere
// the filter refuses the call unless the caller gives up execution itself.
func bindMemfd() {
	os.WriteFile(memfdSetting, []byte("2"), 0) //nolint:errcheck // memfdBound reads what came of it
}

func memfdBound() bool {
	b, err := os.ReadFile(memfdSetting)
	return err == nil && strings.TrimSpace(string(b)) == "2"
}
