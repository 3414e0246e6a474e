// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package verify turns untrusted Sigstore bundles into verified statements under
// pinned roots. It is the only producer of verified statements: a Statement that
// reports Valid was signed by an identity that the roots list for its predicate
// type, stands in a log the roots list, and has a trusted time.
//
// The standards are Sigstore bundle v0.3, DSSE, in-toto Statement v1, RFC 3161,
// RFC 6962, C2SP tlog-checkpoint and tlog-policy, and SLSA v1.2 verification.
// sigstore-go has the final word on every bundle; what this package checks
// before and after is what sigstore-go does not (who may sign what, witnesses,
// split views, strict parsing) and what gives a refusal its reason code.
//
// It opens no socket, starts no process, asks no clock and never trusts key
// material found in evidence. Every refusal is a *hallmark.Error of KindDenied
// with a reason code.
package verify
