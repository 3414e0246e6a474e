// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitcli

// WorkTree is the root of the work tree, or "" of a bare repository.
func (r *Repository) WorkTree() string { return r.work }
