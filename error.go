// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package hallmark

import (
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind int

// The kinds of error. A denial is not an error: it is a Decision.
const (
	KindInternal    Kind = iota + 1 // a fault of ours or of the machine
	KindInvalid                     // input that can't be read; names file, line or field
	KindUsage                       // a wrong command line
	KindNotFound                    // what was asked for does not exist
	KindUnpinned                    // trust material that no pin vouches for
	KindDenied                      // refused by policy or by a verification rule
	KindUnavailable                 // something this machine lacks, or a lock held by another
)

// Error is an error with a kind, and where one is known a stable reason code
// and the command or change that would mend it.
type Error struct {
	Kind Kind
	Code Code   // stable reason code; may be empty
	Msg  string // lower case, no full stop
	Hint string // what to do; may be empty
	Err  error  // cause; may be nil
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Msg + ": " + e.Err.Error()
	}
	return e.Msg
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of the given kind; %w keeps its cause.
func Errorf(kind Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Msg: err.Error(), Err: nil, Code: CodeOf(err), Hint: HintOf(err)}
}

// Coded makes an Error of the given kind that carries a reason code.
func Coded(kind Kind, code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Code: code, Msg: err.Error(), Hint: HintOf(err)}
}

// WithHint returns err with a hint that the command line prints after it.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Code: CodeOf(err), Msg: err.Error(), Hint: hint}
}

// KindOf returns the kind of the outermost Error in err's chain; an error that
// has none is internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != 0 {
		return e.Kind
	}
	return KindInternal
}

// CodeOf returns the first reason code in err's chain, or "".
func CodeOf(err error) Code {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Code != "" {
			return e.Code
		}
		err = e.Err
	}
	return ""
}

// HintOf returns the first hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// ExitCode is the one table from errors to exit codes: 0 done, 1 could not
// decide or failed, 2 usage, 3 denied.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	switch KindOf(err) {
	case KindUsage:
		return 2
	case KindDenied:
		return 3
	case KindInternal, KindInvalid, KindNotFound, KindUnpinned, KindUnavailable:
		return 1
	}
	return 1
}

// HTTPStatus is the same table for answers over HTTP (RFC 9110).
func HTTPStatus(err error) int {
	if err == nil {
		return 200
	}
	switch KindOf(err) {
	case KindUsage, KindInvalid, KindUnpinned:
		return 400
	case KindNotFound:
		return 404
	case KindDenied:
		return 403
	case KindUnavailable:
		return 503
	case KindInternal:
		return 500
	}
	return 500
}
