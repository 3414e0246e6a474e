// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// systemUser is a user of this machine.
type systemUser struct{ uid, gid int }

// lookUp finds a user by name or number. Users of sandboxes are none.
func lookUp(name string) (systemUser, error) {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	var a systemUser
	if err == nil {
		a.uid, err = strconv.Atoi(u.Uid)
		if err == nil {
			a.gid, err = strconv.Atoi(u.Gid)
		}
	} else if n, nerr := strconv.Atoi(name); nerr == nil && n > 0 {
		a, err = systemUser{n, n}, nil
	}
	if err != nil || a.uid < 0 || a.gid < 0 {
		return a, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "there is no user %.80q", name), "make one: useradd --system --no-create-home --shell /usr/sbin/nologin hallmark-signer")
	}
	if a.uid >= firstSandboxUser {
		return a, hallmark.Errorf(hallmark.KindUsage, "user %d may be a sandbox's: want one below %d", a.uid, firstSandboxUser)
	}
	return a, nil
}

// firstSandboxUser is where the users begin that sandboxes of root draw.
const firstSandboxUser = 7 << 28

// UserID is the number of a user of this machine, by name or number.
func UserID(name string) (int, error) {
	a, err := lookUp(name)
	return a.uid, err
}

// Prepared says what was given to whom.
type Prepared struct {
	UID, GID int
	Socket   string
}

// PrepareSigner hands keys, log and fork guard of a home to the user of a signer.
// It may be run again at any time, also after it was killed: what it makes at last
// is the same.
func PrepareSigner(ctx context.Context, home, name string) (Prepared, error) {
	if err := checkHome(home); err != nil {
		return Prepared{}, err
	}
	if os.Geteuid() != 0 {
		return Prepared{}, hallmark.Errorf(hallmark.KindUsage, "only root can give files to another user: run it as root")
	}
	to, err := lookUp(name)
	if err != nil {
		return Prepared{}, err
	}
	l := Layout{home}
	server, err := serverOf(l)
	if err != nil {
		return Prepared{}, err
	}
	if to.uid == server.uid || to.uid == 0 {
		return Prepared{}, hallmark.WithHint(hallmark.Coded(hallmark.KindUsage, hallmark.CodeSignerNotSeparate, "user %d owns the home: its server would be its own signer", to.uid),
			"name a user that nothing else runs as")
	}
	// Nobody has the log open while it changes hands.
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock, err := durable.Lock(wait, l.LogLock())
	if err != nil {
		return Prepared{}, hallmark.Errorf(hallmark.KindUnavailable, "preparing the home: %w", err)
	}
	defer lock.Close()
	// Every name is looked up below the home, and no link in it is followed out.
	root, err := os.OpenRoot(home)
	if err != nil {
		return Prepared{}, hallmark.Errorf(hallmark.KindInvalid, "opening the home: %w", err)
	}
	defer root.Close()
	if err := handOver(root, l, server, to); err != nil {
		return Prepared{}, fmt.Errorf("preparing the home: %w", err)
	}
	return Prepared{UID: to.uid, GID: to.gid, Socket: l.SignerSocket()}, nil
}

func handOver(root *os.Root, l Layout, server, to systemUser) error {
	if err := moveFingerprintKey(root, l, server); err != nil {
		return err
	}
	if err := traversable(root, l.Home, to); err != nil {
		return err
	}
	for _, dir := range []string{"guard", "signer"} {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"keys", 0o700}, {"pki", 0o700}, {"guard", 0o700}, {"signer", 0o711}, {"log", 0o755}} {
		if err := give(root, d.name, to); err != nil {
			return err
		}
		if err := root.Chmod(d.name, d.mode); err != nil {
			return err
		}
	}
	if err := give(root, "log.lock", to); err != nil {
		return err
	}
	// It names the home and its administrators, and the signer reads it.
	if err := root.Chmod("home.json", 0o644); err != nil {
		return err
	}
	return fix(root, server)
}

// fix makes the home root's where its server is another user: who owns a directory
// may rename what is another's in it, and put something else in its place. The
// server still makes files there, and takes its own away; what both believe, it only
// reads.
func fix(root *os.Root, server systemUser) error {
	if server.uid == 0 {
		return nil
	}
	for _, name := range []string{"home.json", "roots.json", "trusted_root.json", "signing_config.v0.2.json", "genesis.sigstore.jsonl"} {
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || st.Nlink != 1 {
			return hallmark.Errorf(hallmark.KindInvalid, "%s is a link, has a second name or is no file", name)
		}
		if err := errors.Join(root.Lchown(name, 0, 0), root.Chmod(name, 0o644)); err != nil {
			return err
		}
	}
	if err := root.Chown(".", 0, server.gid); err != nil {
		return err
	}
	return root.Chmod(".", os.ModeSticky|0o771)
}

// serverOf is the user whom a home is for: its owner, or, once it was prepared for a
// signer, the one that its blobs are of.
func serverOf(l Layout) (systemUser, error) {
	who, err := ownerOf(l.Home)
	if err != nil || who.uid != 0 {
		return who, err
	}
	if info, err := os.Lstat(l.Home); err != nil || info.Mode()&os.ModeSticky == 0 {
		return who, err
	}
	return ownerOf(l.Blobs())
}

// moveFingerprintKey takes the key that whoever scans needs from among those that
// sign.
func moveFingerprintKey(root *os.Root, l Layout, server systemUser) error {
	const from, to = "keys/fingerprint.key", "fingerprint.key"
	if _, err := root.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		key, err := readFingerprintKey(root, from)
		if err != nil {
			return err
		}
		if err := (durable.Disk{}).Create(filepath.Join(l.Home, to), key, 0o600); err != nil {
			return err
		}
	}
	if err := root.Lchown(to, server.uid, server.gid); err != nil {
		return err
	}
	if err := root.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readFingerprintKey reads that key and no other: a link in its place could lead to
// one that signs, and the server is given what is read.
func readFingerprintKey(root *os.Root, name string) ([]byte, error) {
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "the key of fingerprints, "+name+": "+format, args...)
	}
	if dir, err := root.Lstat(filepath.Dir(name)); err != nil || !dir.IsDir() {
		return bad("it lies in no directory: %w", err)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return bad("%w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return bad("%w", err)
	}
	seen, err := root.Lstat(name)
	if err != nil || !os.SameFile(info, seen) {
		return bad("it is a link")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || st.Nlink != 1 || info.Size() != 32 {
		return bad("want a file of 32 bytes with one name")
	}
	return io.ReadAll(io.LimitReader(f, 33))
}

// give makes a file, or a directory with all that is in it, a user's. A file with
// a second name may be somebody else's, and a link leads there: neither is given.
func give(root *os.Root, name string, to systemUser) error {
	return giveOf(root, name, to, func(*syscall.Stat_t) bool { return true })
}

// giveBack gives what root wrote, and nothing that is somebody's: whoever owns a
// directory can put another one under a name in it.
func giveBack(root *os.Root, name string, to systemUser) error {
	return giveOf(root, name, to, func(st *syscall.Stat_t) bool { return st.Uid == 0 })
}

func giveOf(root *os.Root, name string, to systemUser, which func(*syscall.Stat_t) bool) error {
	return fs.WalkDir(root.FS(), name, func(p string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != name {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := root.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return hallmark.Errorf(hallmark.KindInternal, "%s has no owner", p)
		}
		if int(st.Uid) == to.uid && int(st.Gid) == to.gid || !which(st) {
			return nil
		}
		if !info.IsDir() && (!info.Mode().IsRegular() || st.Nlink > 1) && info.Mode().Type() != fs.ModeSocket {
			return hallmark.Errorf(hallmark.KindInvalid, "%s is a link, has a second name or is no file", p)
		}
		return root.Lchown(p, to.uid, to.gid)
	})
}

// traversable lets the signer through the home, and wants it through all above.
func traversable(root *os.Root, home string, to systemUser) error {
	abs, err := filepath.Abs(home)
	if err != nil {
		return err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return err
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !passes(st, to) {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerNotPrepared, "user %d can't go through %s", to.uid, dir), "chmod o+x "+dir+", or put the home elsewhere")
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	st, err := root.Stat(".")
	if err != nil || passes(st, to) {
		return err
	}
	if st.Mode().Perm()&0o070 == 0 { // the group had nothing: it becomes the signer's
		if err := root.Chown(".", -1, to.gid); err != nil {
			return err
		}
		return root.Chmod(".", st.Mode().Perm()|0o010)
	}
	return root.Chmod(".", st.Mode().Perm()|0o001)
}

// passes reports whether a user may go through a directory, by its mode.
func passes(info os.FileInfo, a systemUser) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	bit := os.FileMode(0o001)
	if int(st.Uid) == a.uid {
		bit = 0o100
	} else if int(st.Gid) == a.gid {
		bit = 0o010
	}
	return info.Mode().Perm()&bit != 0
}

func ownerOf(path string) (systemUser, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return systemUser{}, hallmark.Errorf(hallmark.KindInvalid, "looking at the home: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return systemUser{}, hallmark.Errorf(hallmark.KindInternal, "%s has no owner", path)
	}
	return systemUser{int(st.Uid), int(st.Gid)}, nil
}

// ownedBy wants keys, guard, log and the signer's directory to be one user's, and
// nobody else's to write.
func ownedBy(l Layout, uid int) error {
	no := func(format string, args ...any) error {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerNotPrepared, format, args...),
			fmt.Sprintf("as root: hallmark signer prepare --home %s --user %d", l.Home, uid))
	}
	home, err := os.Lstat(l.Home)
	if err != nil {
		return no("the signer, user %d, can't see the home: %w", uid, err)
	}
	if st, ok := home.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && int(st.Uid) != uid || home.Mode().Perm()&0o022 != 0 && home.Mode()&os.ModeSticky == 0 {
		return no("%s is of user %d (%s), who could put other keys and another log in place of the signer's", l.Home, st.Uid, home.Mode())
	}
	for _, dir := range []string{l.Keys(), l.Certificates(), l.Guard(), l.Signer(), l.Log(), l.LogLock()} {
		info, err := os.Lstat(dir)
		if err != nil {
			return no("the signer, user %d, can't see what is its own: %w", uid, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(st.Uid) != uid {
			return no("%s is of user %d, and the signer is user %d", dir, st.Uid, uid)
		}
		others := os.FileMode(0o022)
		if dir == l.Keys() || dir == l.Guard() {
			others = 0o077
		}
		if info.Mode().Perm()&others != 0 {
			return no("%s can be used by others (mode %04o)", dir, info.Mode().Perm())
		}
	}
	for _, dir := range []string{l.Log(), l.Guard()} {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return no("the signer, user %d, can't read what is its own: %w", uid, err)
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != uid {
				return no("%s is of user %d, and the signer is user %d", p, st.Uid, uid)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// giveLogBack makes log and guard the signer's again after root wrote to them, as
// an administrator's command does. The caller holds the log.
func giveLogBack(l Layout) error {
	if os.Geteuid() != 0 {
		return nil
	}
	to, err := ownerOf(l.Keys())
	if err != nil || to.uid == 0 {
		return err
	}
	root, err := os.OpenRoot(l.Home)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "opening the home: %w", err)
	}
	defer root.Close()
	for _, name := range []string{"log", "guard", "log.lock"} {
		if err := giveBack(root, name, to); err != nil {
			return fmt.Errorf("giving the log back to user %d: %w", to.uid, err)
		}
	}
	return nil
}

// giveHomeBack makes what root wrote in a home its owner's again, as an
// administrator's command does beside a server of another user. Blobs are the
// owner's from the beginning.
func giveHomeBack(l Layout) error {
	if os.Geteuid() != 0 {
		return nil
	}
	to, err := serverOf(l)
	if err != nil || to.uid == 0 {
		return err
	}
	root, err := os.OpenRoot(l.Home)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInvalid, "opening the home: %w", err)
	}
	defer root.Close()
	for _, name := range []string{"seen", "policy", "repositories", "index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "policy.lock"} {
		if err := giveBack(root, name, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("giving the home back to user %d: %w", to.uid, err)
		}
	}
	return nil
}

// mendLog gives the log back that a killed administrator's command left as root's.
func mendLog(l Layout) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lock, err := durable.Lock(ctx, l.LogLock())
	if err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "giving the log back: %w", err)
	}
	defer lock.Close()
	return giveLogBack(l)
}
