// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
)

func TestAttempts(t *testing.T) {
	var a attempts
	at := time.Now()
	for i := range maxAttempts {
		if err := a.allow("192.0.2.1:"+fmt.Sprint(i), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.allow("192.0.2.1:9", at.Add(attemptsIn-1)); hallmark.CodeOf(err) != hallmark.CodeAccessAttempts {
		t.Errorf("one too many: %v", err)
	}
	if err := a.allow("192.0.2.2:9", at); err != nil {
		t.Errorf("another address: %v", err)
	}
	if err := a.allow("192.0.2.1:9", at.Add(attemptsIn)); err != nil {
		t.Errorf("later: %v", err)
	}
	for i := range maxAttempts {
		if err := a.allow(fmt.Sprintf("[2001:db8::%x]:1", i+1), at.Add(attemptsIn)); err != nil {
			t.Fatal(err)
		}
	}
	if a.allow("[2001:db8::ffff:1]:1", at.Add(attemptsIn)) == nil {
		t.Error("another address of the same network")
	}
	if a.allow("[2001:db8:0:1::1]:1", at.Add(attemptsIn)) != nil {
		t.Error("another network")
	}
	var many attempts
	for i := range maxAddresses {
		if err := many.allow(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), at); err != nil {
			t.Fatal(err)
		}
	}
	if many.allow("192.0.2.1:1", at) == nil || len(many.of) != maxAddresses {
		t.Error("addresses without bound")
	}
}
