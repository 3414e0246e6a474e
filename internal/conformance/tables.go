// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import "slices"

func nistRows() []Requirement { return slices.Concat(nistFlow(), nistBuild(), nistDeliver()) }

func slsaRows() []Requirement { return slices.Concat(slsaBuild(), slsaSource(), slsaVerify()) }

// ssdfRows are the tasks of SP 800-218 v1.1. The standard gives them no force:
// they are practices to select from by risk.
func ssdfRows() []Requirement { return slices.Concat(ssdfPrepare(), ssdfProduce()) }
