// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog

import "github.com/hallmark-sc/hallmark/internal/durable"

// Break makes steps of the guard's writes fail.
func (g *FileGuard) Break(after func(durable.Step, string) error) { g.disk.After = after }
