// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package forgetest gives recorded answers of forges, for tests: what was asked and
// answered, in its order (scripts/record-http).
package forgetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync"
)

// Exchange is one question with its answer. BASE in headers and bodies stands for
// the server's URL.
type Exchange struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"` // with its query
	Sent    any               `json:"sent"`
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Answer  any               `json:"answer"`
}

// Recording is a file of exchanges; its first words say where it is from.
type Recording struct {
	From      string     `json:"from,omitempty"`
	Exchanges []Exchange `json:"exchanges"`
}

// Replay serves the recording of a file.
func Replay(file string) (*httptest.Server, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r Recording
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return Serve(r.Exchanges), nil
}

// Serve answers questions as they were answered: those that only read as of after as
// many changes as were made so far, and a change only if it is the next one that was
// recorded, with the same body.
func Serve(all []Exchange) *httptest.Server {
	h := &replay{all: all}
	s := httptest.NewServer(h)
	h.base = s.URL
	return s
}

type replay struct {
	base string

	mu   sync.Mutex
	all  []Exchange
	from int // behind the last change
}

func (h *replay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e, why := h.next(r.Method, r.URL.RequestURI(), body)
	if e == nil {
		http.Error(w, `{"message":"`+why+`"}`, http.StatusNotImplemented)
		return
	}
	for k, v := range e.Headers {
		w.Header().Set(k, strings.ReplaceAll(v, "BASE", h.base))
	}
	w.WriteHeader(e.Status)
	if e.Answer != nil {
		text, err := json.Marshal(e.Answer)
		if err != nil {
			return
		}
		io.WriteString(w, strings.ReplaceAll(string(text), "BASE", h.base))
	}
}

func (h *replay) next(method, path string, body []byte) (*Exchange, string) {
	if method == http.MethodGet {
		var found *Exchange
		changed := false
		for i := range h.all {
			e := &h.all[i]
			switch {
			case e.Method != http.MethodGet:
				changed = changed || i >= h.from
			case e.Path != path:
			case i < h.from:
				found = e
			case !changed || found == nil:
				return e, ""
			}
		}
		return found, "nothing was recorded of this question"
	}
	for i := h.from; i < len(h.all); i++ {
		e := &h.all[i]
		if e.Method == http.MethodGet {
			continue
		}
		var sent any
		if len(body) > 0 && json.Unmarshal(body, &sent) != nil || e.Method != method || e.Path != path || !reflect.DeepEqual(sent, e.Sent) {
			return nil, "another change was recorded next: " + e.Method + " " + e.Path
		}
		h.from = i + 1
		return e, ""
	}
	return nil, "no more changes were recorded"
}
