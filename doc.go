// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package hallmark holds the words that every other package speaks: digests,
// artifacts, revisions, principals, findings, check outcomes, reasons and
// decisions. The words are those of NIST SP 800-204D, SLSA v1.2 and the in-toto
// attestation framework.
//
// It imports the standard library only, does no I/O and decides nothing. Every
// enumeration starts at 1, so that a zero value is "unset" and can never be read
// as "pass" or "allow".
package hallmark
