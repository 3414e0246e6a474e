// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// peerOf asks the kernel who is at the other end: for a client, whoever listened.
func peerOf(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking who is at the other end: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		return nil, fmt.Errorf("asking who is at the other end: %w", errors.Join(err, cerr))
	}
	return cred, nil
}

// short names a socket through its open directory: the kernel wants names of at
// most 107 bytes, and homes have longer ones.
func short(path string) (string, *os.File, error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}

// Listen makes the socket. One that a killed notary left is replaced; anything
// else under that name is refused. Everybody who can reach it may connect: who is
// answered is decided by the user that the kernel names.
func Listen(path string) (*net.UnixListener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, hallmark.Errorf(hallmark.KindInvalid, "looking at the socket of the signer: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, hallmark.Errorf(hallmark.KindInvalid, "%s exists and is no socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "removing the socket of a signer that ended: %w", err)
		}
	}
	name, dir, err := short(path)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "opening the directory of the signer's socket: %w", err)
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindUnavailable, "listening on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // by then the short name may be another file's
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, hallmark.Errorf(hallmark.KindInternal, "opening the socket to others: %w", err)
	}
	return l, nil
}

// dial connects to a notary that runs as the given user, and as nobody else.
func dial(ctx context.Context, path string, uid int) (*net.UnixConn, error) {
	name, dir, err := short(path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, unreachable(path, err)
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, hallmark.Errorf(hallmark.KindInternal, "a Unix connection is none")
	}
	peer, err := peerOf(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	if own := os.Geteuid(); int(peer.Uid) == own {
		c.Close()
		return nil, hallmark.WithHint(hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerNotSeparate, "the signer at %s runs as our own user %d: whoever takes this process has its keys", path, own),
			"run it as another user: hallmark signer prepare --user NAME")
	}
	if int(peer.Uid) != uid {
		c.Close()
		return nil, hallmark.Coded(hallmark.KindDenied, hallmark.CodeSignerPeer, "the signer at %s runs as user %d, and the keys are of user %d", path, peer.Uid, uid)
	}
	return c, nil
}

func unreachable(path string, err error) error {
	return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSignerUnreachable, "the signer at %s can't be reached: %w", path, err),
		"start it: hallmark signer --socket PATH --for UID, as the user who owns the keys")
}
