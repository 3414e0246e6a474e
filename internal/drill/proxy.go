// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// moduleProxy is a Go registry with one honest module, by its files. It returns
// where it is and the lines of go.sum.
func (g *ground) moduleProxy(mod, version string, files map[string]string) (at, sum string, err error) {
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	for _, name := range slices.Sorted(keys(files)) {
		w, err := z.Create(mod + "@" + version + "/" + name)
		if err != nil {
			return "", "", err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return "", "", err
		}
	}
	if err := z.Close(); err != nil {
		return "", "", err
	}
	file := g.path("module.zip")
	if err := os.WriteFile(file, archive.Bytes(), 0o600); err != nil {
		return "", "", err
	}
	h1, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		return "", "", err
	}
	mod1, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(files["go.mod"])), nil })
	if err != nil {
		return "", "", err
	}
	prefix := "/" + mod + "/@v/" + version
	at, err = keep(g, "module proxy", func() (string, error) {
		return g.serve(map[string][]byte{
			prefix + ".mod": []byte(files["go.mod"]), prefix + ".zip": archive.Bytes(), prefix + ".info": []byte(`{"Version":"` + version + `","Time":"2026-01-01T00:00:00Z"}`),
		})
	})
	return at, fmt.Sprintf("%s %s %s\n%[1]s %[2]s/go.mod %[4]s\n", mod, version, h1, mod1), err
}

// serve answers GET requests for the paths, one a connection, and returns where.
func (g *ground) serve(files map[string][]byte) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindUnavailable, "starting a registry: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			serving.Go(func() { answer(conn, files) })
		}
	})
	g.closers = append(g.closers, func() error {
		err := l.Close()
		serving.Wait()
		return err
	})
	return "http://" + l.Addr().String(), nil
}

func answer(conn net.Conn, files map[string][]byte) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(conn)
	request, _ := in.ReadString('\n')
	for {
		line, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			break
		}
	}
	status, body := "404 Not Found", []byte(nil)
	if f := strings.Fields(request); len(f) == 3 && f[0] == "GET" && files[f[1]] != nil {
		status, body = "200 OK", files[f[1]]
	}
	fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(body), body)
}

// parameter changes one of the policy of the throwaway home, and returns what
// changes it back.
func (g *ground) parameter(ctx context.Context, key, value string) (func() error, error) {
	state, err := app.PolicyShow(ctx, g.home.Home)
	if err != nil {
		return nil, err
	}
	was := ""
	for _, p := range state.Parameters {
		if p.Key == key {
			was = p.Value
		}
	}
	if was == "" {
		return nil, errors.New("there is no parameter " + key)
	}
	if _, err := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{key, value}}); err != nil {
		return nil, err
	}
	return func() error {
		_, err := app.PolicySet(ctx, g.home.Home, nil, [][2]string{{key, was}})
		return err
	}, nil
}
