// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// engine records one sandbox. attach returns when nothing can happen unseen any
// more; run records until finish is closed and everything that happened before
// is in the recorder.
type engine interface {
	name() string
	attach(s Subject, r *recorder) error
	run(finish <-chan struct{})
}

// Main is an agent. It returns its exit code.
func Main() int {
	CollectGarbage()
	// Nothing that is traced may reach into the agent, and no other descriptor of
	// the control plane is its business.
	out := json.NewEncoder(os.NewFile(fdMessages, "messages"))
	if err := seal(); err != nil {
		out.Encode(message{Error: err.Error()})
		return 1
	}
	var s Subject
	if err := json.NewDecoder(os.NewFile(fdSubject, "subject")).Decode(&s); err != nil {
		out.Encode(message{Error: "reading what to record: " + err.Error()})
		return 1
	}
	r, err := newRecorder(s.Log)
	if err != nil {
		out.Encode(message{Error: err.Error()})
		return 1
	}
	r.hide(s.Hidden)
	e, err := begin(s, r)
	if err != nil {
		out.Encode(message{Error: err.Error()})
		return 1
	}
	if err := out.Encode(message{Ready: true, Engine: e.name()}); err != nil {
		return 1
	}
	finish := make(chan struct{})
	go listen(os.NewFile(fdNotices, "notices"), r, finish)
	e.run(finish)
	t := r.finish(e.name())
	if out.Encode(message{Trace: &t}) != nil {
		return 1
	}
	return 0
}

// begin attaches the engine that was asked for.
func begin(s Subject, r *recorder) (engine, error) {
	var tried []error
	kept := s.Digests
	for _, e := range candidates(s) {
		if kept != "" { // each engine knows versions of files in its own way
			s.Digests = kept + "." + e.name()
		}
		err := e.attach(s, r)
		if err == nil {
			return e, nil
		}
		tried = append(tried, fmt.Errorf("%s: %w", e.name(), err))
	}
	if len(tried) == 0 {
		return nil, errors.New("no engine can trace here")
	}
	return nil, errors.Join(tried...)
}

// candidates are the engines to try, in order.
func candidates(s Subject) []engine {
	switch Pick(s.Engine) {
	case Kernel:
		return []engine{&kernel{}}
	case Ptrace:
		return []engine{newTracer()}
	}
	return nil
}

// listen takes notices until the control plane has no more; one that ends without
// saying so is gone, and so is the sandbox.
func listen(f io.Reader, r *recorder, finish chan<- struct{}) {
	defer close(finish)
	dec := json.NewDecoder(f)
	for {
		var n notice
		if err := dec.Decode(&n); err != nil {
			r.fail("the control plane ended before the step did")
			return
		}
		switch {
		case n.Connect != nil:
			r.connected(*n.Connect)
		case n.Finish:
			return
		}
	}
}

func seal() error {
	if err := unix.CloseRange(fdNotices+1, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keeping descriptors back: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("closing the agent's memory: %w", err)
	}
	return nil
}
