// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/hallmark-sc/hallmark"
)

// secretPipes makes a pipe for each secret, which holds it already: nothing is
// written once the program runs, and what was read is gone.
func secretPipes(values [][]byte, hostID int) (readers []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(readers)
			readers = nil
		}
	}()
	for _, v := range values {
		if len(v) > MaxSecret {
			return readers, hallmark.Errorf(hallmark.KindInternal, "a secret of %d bytes, more than %d", len(v), MaxSecret)
		}
		r, w, err := os.Pipe()
		if err != nil {
			return readers, err
		}
		readers = append(readers, r)
		// So that the program can open /dev/fd/N: the pipe is its own.
		if os.Geteuid() == 0 {
			err = r.Chown(hostID, hostGID(hostID))
		}
		_, werr := w.Write(v)
		if err = errors.Join(err, werr, w.Close()); err != nil {
			return readers, fmt.Errorf("filling a pipe: %w", err)
		}
	}
	return readers, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// withGateway adds the one socket of the host that a room may show. Anything else
// in its place would be a way out that nobody asked for.
func withGateway(spec Spec) (Spec, error) {
	if spec.Gateway == "" {
		return spec, nil
	}
	st, err := os.Stat(spec.Gateway)
	if err != nil {
		return spec, fmt.Errorf("finding the gateway: %w", err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return spec, hallmark.Errorf(hallmark.KindInvalid, "the gateway %s is no socket", spec.Gateway)
	}
	spec.Mounts = append(slices.Clip(spec.Mounts), Mount{Source: spec.Gateway, Target: GatewayPath, Writable: true})
	return spec, nil
}
