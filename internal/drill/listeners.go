// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// listeners stand for the sockets of a control plane: one on loopback, one with
// a path and one with an abstract name.
type listeners struct {
	port           int
	path, abstract string
	all            []net.Listener
	fences         chan struct{}
	served         sync.WaitGroup

	mu    sync.Mutex
	words int // guarded by mu: connections that said something else than fence
}

const (
	fence   = "fence\n"
	maxPath = 100 // the kernel takes 107 bytes
)

// listen makes the listeners of a ground, whose directory may have too long a
// name for a socket.
func (g *ground) listen() (*listeners, error) {
	path := g.path("control.sock")
	if len(path) > maxPath {
		dir, err := os.MkdirTemp("/tmp", dirPrefix)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindUnavailable, "making a directory for a socket: %w", err)
		}
		g.closers = append(g.closers, func() error { return os.RemoveAll(dir) })
		path = filepath.Join(dir, "control.sock")
	}
	l, err := listen(path, filepath.Base(g.dir))
	if err == nil {
		g.closers = append(g.closers, l.close)
	}
	return l, err
}

func listen(path, abstract string) (*listeners, error) {
	l := &listeners{path: path, abstract: abstract, fences: make(chan struct{})}
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", path}, {"unix", "@" + abstract}} {
		one, err := net.Listen(at[0], at[1])
		if err != nil {
			return nil, errors.Join(hallmark.Errorf(hallmark.KindUnavailable, "listening on %s: %w", at[1], err), l.close())
		}
		l.all = append(l.all, one)
		if tcp, ok := one.Addr().(*net.TCPAddr); ok {
			l.port = tcp.Port
		}
		l.served.Go(func() { l.serve(one) })
	}
	return l, nil
}

// serve takes connections one after the other, so that a fence is seen after
// everything that came before it.
func (l *listeners) serve(one net.Listener) {
	for {
		conn, err := one.Accept()
		if err != nil {
			return // closed
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		if line == fence {
			l.fences <- struct{}{}
			continue
		}
		l.mu.Lock()
		l.words++
		l.mu.Unlock()
	}
}

// heard counts the connections that came so far.
func (l *listeners) heard() (int, error) {
	for _, one := range l.all {
		conn, err := net.Dial(one.Addr().Network(), one.Addr().String())
		if err != nil {
			return 0, fmt.Errorf("asking our own listener: %w", err)
		}
		_, err = conn.Write([]byte(fence))
		conn.Close()
		if err != nil {
			return 0, fmt.Errorf("asking our own listener: %w", err)
		}
		<-l.fences
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.words, nil
}

func (l *listeners) close() error {
	var errs []error
	for _, one := range l.all {
		errs = append(errs, one.Close())
	}
	l.served.Wait()
	return errors.Join(errs...)
}
